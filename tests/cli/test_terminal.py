"""What a person at a terminal sees, in 80 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from typing import Any

import pytest


@pytest.fixture
def terminal(program: Any) -> Any:
    """Run a command on a terminal of 80 columns and return what it showed, without colours, and its exit code."""

    def run(*argv: str) -> tuple[str, int]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        program.env |= {"TERM": "xterm", "COLUMNS": "80"}
        process = program.start(*argv, stdout=theirs, stderr=theirs, stdin=theirs)
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not chunk:
                break
            shown += chunk
        os.close(ours)
        process.communicate()
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r", ""), process.returncode

    return run


def test_tables_fit_and_ids_stay_whole(terminal: Any, work: Any) -> None:
    for n in range(3):
        work.value(
            "select queue_pg.submit(%s, queue => 'a-queue-with-a-long-name')", f"a-kind-with-a-rather-long-name-{n}"
        )
    ids = [str(row[0]) for row in work.database.execute("select id from queue_pg.jobs").fetchall()]
    shown, code = terminal("list")
    assert code == 0
    assert all(job_id in shown for job_id in ids)
    assert max(map(len, shown.splitlines())) <= 80
    for argv in (["queues"], ["stats"], ["doctor"], ["config"]):
        shown, code = terminal(*argv)
        assert code == 0
        assert max(map(len, shown.splitlines())) <= 80


def test_columns_that_say_nothing_are_left_out(terminal: Any, work: Any) -> None:
    work.value("select queue_pg.submit('chat')")
    shown, _ = terminal("queues")
    assert "queued" in shown
    assert "cancelled" not in shown


def test_brackets_in_stored_text_are_no_markup(terminal: Any, work: Any) -> None:
    work.value("select queue_pg.submit('chat', queue => '[red]x[/red]')")
    shown, code = terminal("queues")
    assert code == 0
    assert "[red]x[/red]" in shown


def test_a_progress_bar_while_submitting_lines(terminal: Any, tmp_path: Any, work: Any) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"kind": "chat"}\n' * 1500)
    shown, code = terminal("submit", "--jsonl", "jobs.jsonl")
    assert code == 0
    assert "1,500 jobs" in shown
    assert "1,500 job(s) submitted." in shown
    assert work.value("select count(*) from queue_pg.jobs") == 1500


def test_json_is_indented_for_people(terminal: Any, work: Any) -> None:
    job_id = work.value("select queue_pg.submit('chat')")
    shown, _ = terminal("get", str(job_id), "--json")
    assert f'\n  "id": "{job_id}",\n' in shown
