"""What queue_pg.testing gives to tests of applications."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queue_pg import Cancel, Fail, Queue, Snooze, SyncQueue, Tasks, current_job
from queue_pg.testing import Clock, drain, drain_sync, states, submitted, submitted_sync


@pytest.fixture
async def queue(dsn: str) -> Any:
    async with Queue(dsn, notify=False) as queue:
        yield queue


@pytest.fixture
def tasks(queue: Queue) -> Tasks:
    tasks = Tasks()

    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    @tasks.task
    async def double(n: int) -> dict[str, int]:
        return {"n": 2 * n}

    @tasks.task(queue="others")
    async def chain(left: int) -> None:
        if left:
            await chain.using(queue=queue).submit(left - 1)

    return tasks


def task(tasks: Tasks, kind: str) -> Any:
    found = tasks.get(kind)
    assert found is not None
    return found


async def test_drain_runs_what_is_queued(queue: Queue, tasks: Tasks) -> None:
    one = await task(tasks, "add").using(queue=queue).submit(1, 2)
    two = await task(tasks, "double").using(queue=queue).submit(n=21)
    foreign = await queue.submit("unknown")
    ran = await drain(queue, tasks)
    assert [job.id for job in ran] == [one.id, two.id]
    assert [job.result for job in ran] == [3, {"n": 42}]
    assert states(ran) == ["completed", "completed"]
    assert (await queue.get(foreign.id)).state == "queued"
    assert await drain(queue, tasks) == []


async def test_drain_runs_what_jobs_submit(queue: Queue, tasks: Tasks) -> None:
    await task(tasks, "chain").using(queue=queue).submit(5)
    assert len(await drain(queue, tasks)) == 6
    await task(tasks, "chain").using(queue=queue).submit(50)
    with pytest.raises(RuntimeError, match="has run 10 jobs"):
        await drain(queue, tasks, max_jobs=10)
    assert len(await drain(queue, tasks, queues=["default"])) == 0
    assert len(await drain(queue, tasks, queues=["others"])) == 41


async def test_every_way_to_end(queue: Queue, clock: Clock) -> None:
    tasks = Tasks()

    class Report(BaseModel):
        attempt: int

    @tasks.task
    def ends(how: str) -> Any:
        job = current_job()
        match how:
            case "raise" if job.attempt == 1:
                raise KeyError("missing\x00")
            case "snooze" if clock.now() - job_times[job.job_id] < timedelta(hours=1):
                return Snooze(timedelta(hours=1))
            case "cancel":
                return Cancel("no need")
            case "fail":
                return Fail("never works", code="never", retry=False, details={"status": 400})
            case "bad":
                return {"a": float("nan")}
            case _:
                return Report(attempt=job.attempt)

    job_times = {}
    jobs = {}
    for how in ("raise", "snooze", "cancel", "fail", "bad", "fine"):
        jobs[how] = await ends.using(queue=queue, max_attempts=2).submit(how)
        job_times[jobs[how].id] = jobs[how].created_at
    ran = dict(zip(jobs, await drain(queue, tasks), strict=True))
    assert {how: str(job.state) for how, job in ran.items()} == {
        "raise": "scheduled",
        "snooze": "scheduled",
        "cancel": "cancelled",
        "fail": "failed",
        "bad": "failed",
        "fine": "completed",
    }
    assert ran["raise"].error is not None
    assert ran["raise"].error["code"] == "KeyError"
    assert "test_testing.py" in ran["raise"].error["traceback"]
    assert ran["cancel"].error == {"code": "cancelled", "message": "no need"}
    assert ran["fail"].error == {"code": "never", "message": "never works", "status": 400}
    assert ran["bad"].error == {"code": "result_invalid", "message": "result.a: is nan, which JSON cannot hold"}
    assert ran["fine"].result == {"attempt": 1}
    clock.advance(2 * 3600)
    again = await drain(queue, tasks)
    assert {job.id: job.result for job in again} == {
        jobs["raise"].id: {"attempt": 2},
        jobs["snooze"].id: {"attempt": 1},
    }


async def test_bad_payloads_fail_for_good(queue: Queue, tasks: Tasks, conn: psycopg.AsyncConnection) -> None:
    await conn.execute(
        """insert into queue_pg.jobs (kind, payload) values
        ('add', '{"a": 1}'), ('add', '[]'), ('add', '{"a": 1, "b": 1e5000}'), ('add', '{"a": 1, "b": 2}')"""
    )
    ran = await drain(queue, tasks)
    assert states(ran) == ["failed", "failed", "failed", "completed"]
    assert [(job.error or {}).get("code") for job in ran] == [
        "payload_invalid",
        "payload_invalid",
        "payload_unreadable",
        None,
    ]
    assert ran[0].error == {"code": "payload_invalid", "message": "payload.b: is missing", "field": "payload.b"}


async def test_submitted_tells_what_was(queue: Queue) -> None:
    for number in range(3):
        await queue.submit("a", {"n": number})
    gone = await queue.submit("b", queue="other")
    await queue.cancel(gone.id)
    assert [job.payload for job in await submitted(queue, kind="a")] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert [job.kind for job in await submitted(queue)] == ["a", "a", "a", "b"]
    assert [job.id for job in await submitted(queue, in_queue="other")] == [gone.id]


def test_blocking_code_is_tested_alike(dsn: str) -> None:
    tasks = Tasks()

    @tasks.task
    async def greet(name: str) -> str:
        return f"Hello {name}"

    with SyncQueue(dsn, notify=False) as queue:
        greet.using(queue=queue).submit_sync("you")
        assert [job.payload for job in submitted_sync(queue, kind="greet")] == [{"name": "you"}]
        assert [job.result for job in drain_sync(queue, tasks)] == ["Hello you"]


async def test_the_clock_moves_for_everybody(queue: Queue, clock: Clock, dsn: str) -> None:
    job = await queue.submit("k")
    before = clock.now()
    after = clock.advance(timedelta(days=3))
    assert timedelta(days=3) <= after - before < timedelta(days=3, minutes=1)
    assert (await queue.submit("k")).created_at - job.created_at >= timedelta(days=3)
    # A second clock of the same database goes on from there.
    assert Clock(dsn).advance(60) - after >= timedelta(seconds=60)
