"""Running the command line: inside the test's process (fast), or as a program where the process itself matters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.cli import main

DEADLINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def ids(self) -> list[str]:
        return self.out.split()


@pytest.fixture
def bare_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """Run a command in an empty folder, without a database."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main(list(argv))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def cli(bare_cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, dsn: str) -> Callable[..., Result]:
    """Run a command in an empty folder, on the test's database."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    return bare_cli


@dataclass(frozen=True, slots=True)
class Work:
    """A plain connection that plays the worker, and looks."""

    database: psycopg.Connection[Any]

    def claim(self, queue: str = "default") -> tuple[UUID, int]:
        """Take the next job of a queue; return its id and lease token."""
        row = self.database.execute("select id, lease_token from queue_pg.claim('w', array[%s])", [queue]).fetchone()
        assert row is not None, "there was no job to claim"
        return row[0], row[1]

    def complete(self, result: str = '{"text": "done"}') -> UUID:
        """Run the next job to its end."""
        job_id, token = self.claim()
        self.database.execute("select queue_pg.complete(%s, %s, %s::jsonb)", [job_id, token, result])
        return job_id

    def fail(self, error: str = '{"code": "boom", "message": "it broke"}') -> UUID:
        """Fail the next job for good."""
        job_id, token = self.claim()
        self.database.execute("select queue_pg.fail(%s, %s, %s::jsonb, false)", [job_id, token, error])
        return job_id

    def value(self, query: str, *parameters: Any) -> Any:
        """Return the first value of the first row."""
        row = self.database.execute(query.encode(), parameters).fetchone()
        return None if row is None else row[0]

    def until(self, query: str, *parameters: Any) -> None:
        """Wait until another process has made the query's value true."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self.value(query, *parameters):
            assert time.monotonic() < deadline, f"never became true: {query}"
            time.sleep(0.01)


@pytest.fixture
def work(dsn: str) -> Iterator[Work]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield Work(connection)


class Program:
    """Commands as processes; those still running at the end of the test are killed."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        command = [sys.executable, "-m", "queue_pg.cli", *argv]
        process = subprocess.Popen(command, env=self.env, cwd=self.folder, text=True, **{**pipes, **options})
        self._started.append(process)
        return process

    def run(self, *argv: str, **options: Any) -> Result:
        process = self.start(*argv, **options)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        return Result(process.returncode, out, err)

    def end(self) -> None:
        for process in self._started:
            with suppress(ProcessLookupError):
                process.kill()
            process.communicate()


@pytest.fixture
def bare_program(tmp_path: Path) -> Iterator[Program]:
    """Run commands as processes in an empty folder, without a database."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.path.join(root, "api"), os.path.join(root, "workers")])
    program = Program(tmp_path, {**os.environ, "PYTHONPATH": path})
    yield program
    program.end()


@pytest.fixture
def program(bare_program: Program, dsn: str) -> Program:
    """Run commands as processes in an empty folder, on the test's database."""
    bare_program.env["DATABASE_URL"] = dsn
    return bare_program
