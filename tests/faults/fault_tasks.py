"""The tasks that run under faults: each says when it begins and when it ends, in a file of its process's own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

from queue_pg import store, store_sync
from queue_pg.tasks import current_job, task
from tests.faults.ledgers import LineFile

# Where this process is to kill itself, such as `finish:after`, and how often it passes there before it does.
POINT: Final = os.environ.get("FAULTS_POINT", "")
_passes = int(os.environ.get("FAULTS_PASSES", "0"))


def _pass(point: str) -> None:
    global _passes
    if point == POINT:
        if _passes <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        _passes -= 1


def _arm() -> None:
    """Put the points around the statements of the worker itself."""
    claim, finish, heartbeat = store.claim_for_worker, store.finish, store_sync.heartbeat

    async def claiming(*arguments: Any, **options: Any) -> Any:
        _pass("claim:before")
        jobs = await claim(*arguments, **options)
        if jobs:
            _pass("claim:after")
        return jobs

    async def finishing(*arguments: Any, **options: Any) -> Any:
        _pass("finish:before")
        answer = await finish(*arguments, **options)
        _pass("finish:after")
        return answer

    def beating(*arguments: Any, **options: Any) -> Any:
        _pass("heartbeat:before")
        answer = heartbeat(*arguments, **options)
        _pass("heartbeat:after")
        return answer

    store.claim_for_worker, store.finish, store_sync.heartbeat = claiming, finishing, beating


if POINT:
    _arm()


@cache
def _effects(pid: int) -> LineFile:
    return LineFile(Path(os.environ["FAULTS_FOLDER"], f"effects-{pid}.jsonl"), durable=False)


def note(word: str, n: int) -> None:
    """Write a line about the job that runs here. It outlives the process, not the machine."""
    job = current_job()
    _effects(os.getpid()).write(word, n, str(job.job_id), job.lease_token, os.getpid(), time.monotonic_ns())


@task
async def work(n: int, seconds: float = 0.0) -> dict[str, Any]:
    """Take some time and return the lease that did it."""
    _pass("begin:before")
    note("begin", n)
    _pass("begin:after")
    await asyncio.sleep(seconds)
    _pass("end:before")
    note("end", n)
    _pass("end:after")
    return {"token": current_job().lease_token}


@task
async def block(n: int, seconds: float) -> dict[str, Any]:
    """Hold the event loop all the time, as careless code does."""
    note("begin", n)
    time.sleep(seconds)  # noqa: ASYNC251 - that is what it is for
    note("end", n)
    return {"token": current_job().lease_token}


@task
async def die(n: int) -> None:
    """Take the whole process along, as broken native code does."""
    note("begin", n)
    os.kill(os.getpid(), signal.SIGSEGV)


@task
async def shout(n: int, what: str) -> None:
    """Fail with a message that is hard to store."""
    note("begin", n)
    messages = {"nul": "a\0b", "surrogate": "a\ud800b", "huge": "x" * 10_000_000, "bytes": "\udcff\udcfe"}
    note("end", n)
    raise RuntimeError(messages[what])
