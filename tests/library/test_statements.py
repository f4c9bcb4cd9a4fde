"""Every file of sql/ is one statement that Postgres takes, is named by its header, and is used."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

import queue_pg
from queue_pg.statements import statement

FOLDER = Path(queue_pg.__file__).parent
FILES = sorted((FOLDER / "sql").glob("*.sql"))
SOURCES = "\n".join(path.read_text() for path in FOLDER.rglob("*.py"))
# What is computed: listen_<channel>.
USED_BY_PREFIX = re.compile(r"listen_queue_pg_(wake|result|cancel|due|events|transitions)")
# DDL, DO, COPY, VACUUM and LISTEN cannot be prepared, and the test clock's table is not there; other tests run these.
UNPREPARABLE = re.compile(r"^(listen|unlisten|copy|create|do|lock|set|vacuum)\b|testing_clock", re.MULTILINE)


def test_there_are_statements() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_named_and_used(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[0] == f"/* queue_pg:{path.stem} */"
    assert USED_BY_PREFIX.fullmatch(path.stem) or f'"{path.stem}"' in SOURCES
    assert statement(path.stem) == path.read_bytes()
    assert "%(" not in "".join(re.findall(r"'[^']*'", re.sub(r"--.*", "", text))), "a placeholder inside quotes"


@pytest.mark.parametrize(
    "path", [path for path in FILES if not UNPREPARABLE.search(path.read_text())], ids=lambda path: path.stem
)
def test_postgres_takes_it(path: Path, dsn: str) -> None:
    text = path.read_text()
    names = dict.fromkeys(re.findall(r"%\((\w+)\)[sb]", text))
    for number, name in enumerate(names, 1):
        text = re.sub(rf"%\({name}\)[sb]", f"${number}", text)
    with psycopg.connect(dsn) as conn:
        conn.execute(f"prepare checked as {text}")


def test_all_statements_show_a_job_alike() -> None:
    """What a job's JSON holds is written out in each statement; the copies must not drift apart."""
    blocks = {
        path.stem: match.group(0)
        for path in FILES
        if (match := re.search(r"\(select to_json\(r\).*?as job,", path.read_text(), re.DOTALL))
    }
    assert set(blocks) == {
        "submit",
        "get_job",
        "get_jobs",
        "list_jobs",
        "look_job",
        "cancel",
        "retry",
        "rerun",
        "reprioritize",
        "submit_task",
        "get_task",
        "list_tasks",
        "list_child_tasks",
    }
    assert len(set(blocks.values())) == 1
