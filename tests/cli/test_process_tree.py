"""The process tree: restarted while that helps, given up when it does not, stopped within the grace, nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from queue_pg.cli import process_tree
from queue_pg.cli.process_tree import Child, ProcessTree, Program

ROOT = Path(__file__).resolve().parents[2]


class Log:
    """Collects what the children write, and waits for words in it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = asyncio.Event()

    def show(self, name: str, line: str) -> None:
        self.lines.append(f"{name}: {line}")
        self._changed.set()

    async def says(self, words: str, *, times: int = 1) -> None:
        async with asyncio.timeout(30):
            while sum(words in line for line in self.lines) < times:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def tree(log: Log, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ProcessTree]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(part) for part in (ROOT, ROOT / "api", ROOT / "workers")))
    monkeypatch.setattr(process_tree, "RESTART_PAUSE_SECONDS", 0.01)
    async with ProcessTree(show=log.show) as made:
        yield made


def reaper(dsn: str) -> Program:
    return Program("reaper", ["reaper"], {"DATABASE_URL": dsn})


def pid_of(child: Child) -> int:
    assert child.pid is not None
    return child.pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_is_asked_to_end_and_does(tree: ProcessTree, log: Log, dsn: str) -> None:
    child = tree.start(reaper(dsn))
    await log.says("Maintenance runs")
    pid = pid_of(child)
    await tree.stop(["reaper"], grace_seconds=30)
    assert "reaper: Stopped." in log.lines
    assert not alive(pid)
    assert not tree.failed.done()


async def test_a_killed_child_is_started_again(tree: ProcessTree, log: Log, dsn: str) -> None:
    child = tree.start(reaper(dsn))
    await log.says("Maintenance runs")
    first = pid_of(child)
    os.kill(first, signal.SIGKILL)
    await log.says("ended with signal SIGKILL; starting it again")
    await log.says("Maintenance runs", times=2)
    assert pid_of(child) != first


async def test_a_child_that_keeps_dying_is_given_up(tree: ProcessTree) -> None:
    tree.start(Program("reaper", ["reaper"], {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "LOG_LEVEL": "nonsense"}))
    async with asyncio.timeout(30):
        reason = await tree.failed
    assert "reaper ended with exit code 2: LOG_LEVEL=" in reason.message


async def test_quick_deaths_are_counted(tree: ProcessTree, log: Log) -> None:
    tree.start(
        Program("get", ["get", "018f0000-0000-7000-8000-000000000000"], {"DATABASE_URL": "postgresql://127.0.0.1:1/x"})
    )
    async with asyncio.timeout(60):
        reason = await tree.failed
    assert "get ended with exit code 5" in reason.message
    assert sum("starting it again" in line for line in log.lines) == process_tree.MAX_QUICK_DEATHS - 1


async def test_who_does_not_end_within_the_grace_is_killed(tree: ProcessTree, log: Log, dsn: str) -> None:
    child = tree.start(reaper(dsn))
    await log.says("Maintenance runs")
    pid = pid_of(child)
    os.kill(pid, signal.SIGSTOP)  # it will not hear SIGTERM
    await tree.stop(["reaper"], grace_seconds=0.2)
    assert not alive(pid)


async def test_at_once_cuts_the_grace_short(tree: ProcessTree, log: Log, dsn: str) -> None:
    child = tree.start(reaper(dsn))
    await log.says("Maintenance runs")
    os.kill(pid_of(child), signal.SIGSTOP)
    at_once = asyncio.Event()
    at_once.set()
    started = time.monotonic()
    await tree.stop(["reaper"], grace_seconds=60, at_once=at_once)
    assert time.monotonic() - started < 30


async def test_leaving_the_tree_leaves_nothing(log: Log, dsn: str, tree: ProcessTree) -> None:
    del tree  # for its environment
    async with ProcessTree(show=log.show) as inner:
        child = inner.start(reaper(dsn))
        await log.says("Maintenance runs")
        pid = pid_of(child)
    assert not alive(pid)
