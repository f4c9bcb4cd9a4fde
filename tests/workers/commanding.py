"""Workers that run commands, and looking at what is left of the commands they ran."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from in_process import PATIENCE_SECONDS, running
from queue_pg_workers.commands.runner import CommandRunner
from queue_pg_workers.commands.settings import CommandSettings
from queue_pg_workers.worker import Worker

from queue_pg import Queue
from queue_pg.models import Job

# Commands of tests are in Python where the programs of a machine could differ.
PYTHON = sys.executable


def python(code: str, *arguments: str) -> list[str]:
    """Return the command that runs some Python."""
    return [PYTHON, "-I", "-S", "-c", code, *arguments]


@contextmanager
def command_runner(folder: Path, **settings: Any) -> Generator[CommandRunner]:
    """Make a runner with its workspaces in a folder, closed at the end."""
    runner = CommandRunner(CommandSettings(**{"commands": "any", "temp_dir": str(folder), **settings}))
    try:
        yield runner
    finally:
        runner.close()


@asynccontextmanager
async def commands(
    dsn: str, folder: Path, *, worker: dict[str, Any] | None = None, **settings: Any
) -> AsyncGenerator[Worker]:
    """Run a worker that runs commands."""
    with command_runner(folder, **settings) as runner:
        async with running(dsn, commands=runner, **(worker or {})) as running_worker:
            yield running_worker


async def run(queue: Queue, *cmd: str, max_attempts: int = 1, **payload: Any) -> Job:
    """Submit a command and wait for its end."""
    job = await queue.submit("command", {"cmd": list(cmd), **payload}, max_attempts=max_attempts)
    return await queue.wait(job.id, timeout=PATIENCE_SECONDS)


async def lines(queue: Queue, job: Job, stream: str | None = None) -> list[str]:
    """Return what the job's log has."""
    page = await queue.logs(job.id, stream=stream, limit=1000)
    return [each.line for each in page.lines]


async def all_gone(pids: list[int], within_seconds: float) -> None:
    """Wait until these processes have ended, at most so long."""
    left = {pid: descriptor for pid in pids if (descriptor := _pidfd(pid)) is not None}
    try:
        ended = await asyncio.to_thread(_wait, dict(left), within_seconds)
        assert not ended, f"alive after {within_seconds} s: {ended}"
    finally:
        for descriptor in left.values():
            os.close(descriptor)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait(left: dict[int, int], seconds: float) -> list[int]:
    import time

    deadline = time.monotonic() + seconds
    while left and (patience := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select(list(left.values()), [], [], patience)
        left = {pid: descriptor for pid, descriptor in left.items() if descriptor not in ready}
    return list(left)


def parent_of(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid: int, word: str) -> list[int]:
    """Return the children of a process in whose command line a word stands."""
    found: list[int] = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if parent_of(int(path.name)) == pid and word in (path / "cmdline").read_text():
                    found.append(int(path.name))
            except OSError:
                continue
    return found
