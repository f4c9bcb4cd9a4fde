"""The tasks that run under faults: each says when it begins and when it ends, in a file of its process's own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from queue_pg import Snooze, store, store_sync
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
async def work(n: int, seconds: float = 0.0, ballast: str = "") -> dict[str, Any]:
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
    raise RuntimeError(messages[what])


@task
async def tick() -> dict[str, Any]:
    """Run by a schedule, which numbers nothing."""
    note("begin", 0)
    note("end", 0)
    return {"token": current_job().lease_token}


@task
async def tell_time(n: int) -> dict[str, Any]:
    """Say what this machine takes for the time."""
    note("begin", n)
    note("end", n)
    return {"token": current_job().lease_token, "time": time.time()}


@task(max_attempts=9, retry_base_seconds=0.02, retry_cap_seconds=0.1)
async def flaky(n: int) -> dict[str, Any]:
    """Fail twice, then succeed."""
    note("begin", n)
    if current_job().attempt < 3:
        raise RuntimeError("not yet")
    note("end", n)
    return {"token": current_job().lease_token}


@task
def nap(n: int) -> Any:
    """Ask to be run again a little later, once."""
    job = current_job()
    note("begin", n)
    asked = Path(os.environ["FAULTS_FOLDER"], f"napped-{job.job_id}")
    again = asked.exists()
    asked.touch()
    note("end", n)
    return {"token": job.lease_token} if again else Snooze(timedelta(seconds=0.05))


@task
async def stepped(n: int) -> dict[str, Any]:
    """Do two steps with a sleep in between, each of which is written down where it is done."""
    job = current_job()
    note("begin", n)
    first = await job.step("first", _step, "first")
    await job.sleep(0.02)
    second = await job.step("second", _step, "second")
    note("end", n)
    return {"token": job.lease_token, "steps": {"first": first, "second": second}}


def _step(name: str) -> int:
    job = current_job()
    _steps(os.getpid()).write(str(job.job_id), name, job.lease_token)
    return job.lease_token


@cache
def _steps(pid: int) -> LineFile:
    return LineFile(Path(os.environ["FAULTS_FOLDER"], f"steps-{pid}.jsonl"), durable=False)


@task
async def maker(n: int) -> dict[str, Any]:
    """Say something and leave a file."""
    job = current_job()
    note("begin", n)
    await job.log("half way")
    await job.artifact("out.txt", b"done\n")
    await job.progress(1.0)
    note("end", n)
    return {"token": job.lease_token}


@task
async def told(batch: dict[str, Any]) -> dict[str, Any]:
    """Be what a batch submits when it has ended."""
    del batch
    note("begin", 0)
    note("end", 0)
    return {"token": current_job().lease_token}
