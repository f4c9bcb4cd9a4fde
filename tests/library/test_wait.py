"""Waiting for jobs: woken by notifications, right without them, one statement for all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from queue_pg import JobNotFound, JobState, NewJob, Queue, QueuePgError, SyncQueue, WaitTimeout, store, waiting
from queue_pg.models import Outcome
from queue_pg.testing import Clock

SOON = 20.0  # seconds; only a failing test waits that long


class Counted:
    """Counts the statements that ask about waited jobs, and tells when there was one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        self._asked = asyncio.Condition()
        for name in ("watch", "job_states"):
            monkeypatch.setattr(store, name, self._counting(getattr(store, name)))

    def _counting(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(conn: Any, ids: list[UUID]) -> Any:
            found = await function(conn, ids)
            async with self._asked:
                self.asked.append(len(ids))
                self._asked.notify_all()
            return found

        return counted

    async def until(self, ids: int) -> None:
        """Wait until `ids` ids have been asked about, in however many statements."""
        async with asyncio.timeout(SOON), self._asked:
            await self._asked.wait_for(lambda: sum(self.asked) >= ids)


async def finish_all(queue: Queue, worker: str = "w") -> int:
    done = 0
    while claimed := await queue.claim(worker, ["default"], max_jobs=200):
        async with queue.connection() as conn:
            await store.finish(
                conn, [Outcome(id=job.id, lease_token=job.lease_token, outcome="complete") for job in claimed]
            )
        done += len(claimed)
    return done


async def finish_one(queue: Queue) -> None:
    # A claim passes over a row that watch() holds locked at that moment.
    while not await finish_all(queue):
        pass


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the periodic re-check, only a notification can end a wait."""
    monkeypatch.setattr(waiting, "RECHECK_SECONDS", 3600.0)


@pytest.mark.usefixtures("no_fallback")
async def test_a_notification_ends_the_wait(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id, SOON))
        await counted.until(1)
        assert await asyncio.to_thread(queue.wakeups.wait_listening, SOON)
        await finish_one(queue)
        assert (await waiter).state is JobState.COMPLETED


@pytest.mark.usefixtures("no_fallback")
async def test_a_job_that_ends_around_the_start_of_the_wait_is_not_missed(dsn: str) -> None:
    async with Queue(dsn) as queue, Queue(dsn) as worker:
        for _ in range(30):
            job = await queue.submit("k")
            ended, _ = await asyncio.gather(queue.wait(job.id, SOON), finish_one(worker))
            assert ended.finished


async def test_a_finished_job_needs_no_waiting(dsn: str) -> None:
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        await finish_one(queue)
        assert (await queue.wait(job.id, SOON)).id == job.id


async def test_a_timeout_of_zero_asks_whether_the_job_has_ended(dsn: str) -> None:
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        with pytest.raises(WaitTimeout, match="still queued after 0 s"):
            await queue.wait(job.id, timeout=0)
        await queue.cancel(job.id)
        assert (await queue.wait(job.id, timeout=0)).state == "cancelled"
        with pytest.raises(JobNotFound):
            await queue.wait(uuid4(), timeout=0)


async def test_a_job_known_to_have_ended_when_the_time_is_over_is_told(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, late = store.get_jobs, asyncio.Event()

    async def read_late(*arguments: Any, **options: Any) -> Any:
        # The first read, between which and the look at the state the time ends, waits for the next.
        if not late.is_set():
            monkeypatch.setattr(store, "get_jobs", read_at_once)
            await asyncio.wait_for(late.wait(), SOON)
        return await read(*arguments, **options)

    async def read_at_once(*arguments: Any, **options: Any) -> Any:
        late.set()
        return await read(*arguments, **options)

    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        await queue.cancel(job.id)
        monkeypatch.setattr(store, "get_jobs", read_late)
        assert (await queue.wait(job.id, 0.2)).state == "cancelled"


@pytest.mark.parametrize("notify", [True, False])
async def test_many_waiters_share_statements(dsn: str, notify: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    async with Queue(dsn, notify=notify) as queue:
        made = await queue.submit_many([NewJob(kind="k") for _ in range(300)])
        waiters = [asyncio.create_task(queue.wait(one.id, SOON)) for one in made for _ in range(2)]
        await counted.until(300)
        assert len(counted.asked) <= 10
        done = 0
        while done < 300:
            done += await finish_all(queue)
        ended = await asyncio.gather(*waiters)
        assert {job.id for job in ended} == {one.id for one in made}
        assert all(job.state is JobState.COMPLETED for job in ended)
        assert len(counted.asked) < 100


@pytest.mark.parametrize("notify", [True, False])
async def test_the_time_out_tells_the_state(dsn: str, notify: bool) -> None:
    async with Queue(dsn, notify=notify) as queue:
        job = await queue.submit("k")
        # The first look is always taken, so a wait of a moment is enough to learn the state.
        with pytest.raises(WaitTimeout) as caught:
            await queue.wait(job.id, 0.5)
        assert (caught.value.state, caught.value.timeout, caught.value.job_id) == ("queued", 0.5, job.id)


@pytest.mark.usefixtures("no_fallback")
async def test_a_lost_listen_connection_is_made_up_for(
    dsn: str, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id, SOON))
        await counted.until(1)
        assert await asyncio.to_thread(queue.wakeups.wait_listening, SOON)
        pid = queue.wakeups.backend_pid
        await conn.execute("select pg_terminate_backend(%s)", (pid,))
        # The notification of this end goes to nobody, or to the new connection: the waiter must not care.
        await finish_one(queue)
        assert (await waiter).finished


async def test_an_outage_while_waiting_is_waited_out(
    dsn: str, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id, SOON))
        await counted.until(1)
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        async with Queue(dsn, notify=False) as worker:
            await finish_one(worker)
        assert (await waiter).finished


async def test_a_retried_job_is_waited_for_again(dsn: str) -> None:
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        await queue.cancel(job.id)
        assert (await queue.wait(job.id, SOON)).state is JobState.CANCELLED
        await queue.retry(job.id)
        waiter = asyncio.create_task(queue.wait(job.id, SOON))
        await finish_one(queue)
        assert (await waiter).state is JobState.COMPLETED


async def test_a_job_whose_retention_passes_is_not_found(dsn: str, clock: Clock) -> None:
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        await finish_one(queue)
        clock.advance(40 * 24 * 3600)
        with pytest.raises(JobNotFound):
            await queue.wait(job.id, SOON)


async def test_closing_ends_waits(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id))
        await counted.until(1)
    with pytest.raises(QueuePgError, match="closed"):
        await waiter


async def test_a_cancelled_waiter_is_forgotten(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    async with Queue(dsn) as queue:
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id))
        await counted.until(1)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert queue._waiting is not None
        assert queue._waiting._waiters == {}


@pytest.mark.parametrize("notify", [True, False])
def test_threads_wait_with_the_blocking_twin(dsn: str, notify: bool) -> None:
    with SyncQueue(dsn, notify=notify) as queue, SyncQueue(dsn, notify=False) as worker:
        ids = [one.id for one in queue.submit_many([NewJob(kind="k") for _ in range(8)])]
        ended: list[str] = []
        threads = [
            threading.Thread(target=lambda job_id=job_id: ended.append(queue.result(job_id, SOON))) for job_id in ids
        ]
        for thread in threads:
            thread.start()
        done = 0
        while done < 8:  # a claim passes over rows that watch() holds locked at that moment
            for claimed in worker.claim("w", ["default"], max_jobs=8):
                worker.complete(claimed.id, claimed.lease_token, str(claimed.id))
                done += 1
        for thread in threads:
            thread.join(SOON)
        assert sorted(ended) == sorted(map(str, ids))
