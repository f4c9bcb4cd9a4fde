"""Workers write the schedules of their tasks, fire them, and run what comes of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import psycopg
import pytest
from in_process import emitted, finished, running

from queue_pg import ConfigError, Queue
from queue_pg.tasks import Tasks, current_job
from queue_pg.testing import Clock


def tasks_with(cron: str) -> Tasks:
    tasks = Tasks()

    @tasks.task(cron=cron, time_zone="Europe/Berlin", queue="reports", priority=4, missed="skip")
    def report(to: str = "all") -> None: ...

    return tasks


async def test_workers_write_the_schedules_of_their_tasks(dsn: str, queue: Queue) -> None:
    async with (
        running(dsn, tasks_with("0 9 * * *"), maintenance=False),
        running(dsn, tasks_with("0 9 * * *"), maintenance=False),
    ):
        [made] = await queue.schedules()
    assert (made.name, made.kind, made.cron, made.time_zone) == ("report", "report", "0 9 * * *", "Europe/Berlin")
    assert (made.queue, made.priority, made.missed, made.origin, made.payload) == ("reports", 4, "skip", "code", {})

    # Another version has another time; one whose code has none leaves it.
    await queue.pause_schedule("report")
    async with running(dsn, tasks_with("0 10 * * *"), maintenance=False):
        changed = await queue.get_schedule("report")
    assert (changed.id, changed.cron, changed.paused) == (made.id, "0 10 * * *", True)
    async with running(dsn, Tasks(), maintenance=False):
        assert await queue.get_schedule("report") == changed

    # People's word is the last.
    await queue.schedule("report", "report", cron="0 11 * * *")
    async with running(dsn, tasks_with("0 9 * * *"), maintenance=False):
        assert (await queue.get_schedule("report")).cron == "0 11 * * *"


@pytest.mark.parametrize("cron", ["0 25 * * *", "\x00"])
async def test_a_worker_whose_code_has_an_impossible_schedule_does_not_start(dsn: str, cron: str) -> None:
    with pytest.raises(ConfigError, match="schedule of the task 'report' cannot be: cron"):
        async with running(dsn, tasks_with(cron), maintenance=False):
            pass


async def test_it_fires_and_runs(dsn: str, queue: Queue, conn: psycopg.AsyncConnection, clock: Clock) -> None:
    tasks = Tasks()
    fired: asyncio.Queue[str] = asyncio.Queue()

    @tasks.task(every=timedelta(hours=1))
    async def tick() -> str:
        fire_at = str(current_job().metadata["schedule"]["fire_at"])
        fired.put_nowait(fire_at)
        return fire_at

    async with running(dsn, tasks) as worker, emitted(worker, "finished") as ended:
        [made] = await queue.schedules()
        clock.advance(3601)
        first = await asyncio.wait_for(fired.get(), 20)
        await ended()
        known = await queue.get_schedule("tick")
        assert known.last_fire_at == made.next_fires[0]
        assert known.last_job_id is not None
        assert (await finished(queue, known.last_job_id)).result == first


async def test_one_that_is_made_with_an_early_fire_is_not_kept_waiting(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    fired = asyncio.Event()

    @tasks.task
    async def soon() -> None:
        fired.set()

    async with running(dsn, tasks):
        await queue.schedule("soon", "soon", every=1)
        await asyncio.wait_for(fired.wait(), 20)
