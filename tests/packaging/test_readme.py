"""The README, followed word by word against running services."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def services(dsn: str, port: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """API and worker on the test's database, as the demo runs them; yields the environment of a second terminal."""
    (tmp_path / ".venv").symlink_to(PROGRAMS.parent)
    environment = {**os.environ, "DATABASE_URL": dsn}
    started = [
        subprocess.Popen(
            [PROGRAMS / "queue-pg", *words], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        for words in (["serve", "--port", port], ["worker"])
    ]
    try:
        assert started[0].stderr is not None
        assert started[0].stderr.readline().startswith("API on http://127.0.0.1:")
        yield environment
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.communicate(timeout=60)


def block(containing: str) -> str:
    found = [text for _, text in BLOCKS if containing in text]
    assert len(found) == 1, containing
    return found[0]


@pytest.mark.parametrize(
    "containing", ["config --json", "curl", "psql", "SyncQueue", "queue-pg wait"], ids=lambda text: text.split()[0]
)
def test_way_in_works_as_printed(
    containing: str, services: dict[str, str], port: str, dsn: str, tmp_path: Path
) -> None:
    if containing == "curl" and shutil.which("curl") is None:
        pytest.skip("no curl here")
    text = block(containing).replace("localhost:8000", f"127.0.0.1:{port}")
    if containing == "SyncQueue":
        (tmp_path / "ask.py").write_text(text)
        text = ".venv/bin/python ask.py"
    if containing == "config --json":
        text += 'echo "$DATABASE_URL"'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=services,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if containing == "config --json":
        assert done.stdout.strip() == dsn
        return
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select count(*) from queue_pg.all_jobs where kind = 'chat'").fetchone() == (1,)
    if containing != "psql":
        assert re.search(r"completed|finish_reason", done.stdout), done.stdout


def test_task_file_is_a_worker_module(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(block("async def greet"))
    look = "import tasks, asyncio; print(tasks.greet.kind, asyncio.run(tasks.greet(name='you')))"
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip().endswith("Hello, you")


def test_links_and_commands_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    code = [*re.findall(r"`([^`]+)`", prose), *(text for _, text in BLOCKS)]
    used = {target for text in code for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert {"demo", "test", "test-on", "help", "check"} <= used <= targets
