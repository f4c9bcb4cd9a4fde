"""Through PgBouncer in transaction mode, where it is installed: nothing may depend on the session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from queue_pg import NewJob, Queue, SyncQueue, store
from queue_pg.connections import connect_async, prepare_if_direct
from queue_pg.maintenance import MaintenanceLoop
from queue_pg.pool import AsyncPool
from tests.faults.pooler import PROGRAM, pooled

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no pgbouncer here")


@pytest.fixture(params=["", "ignore_startup_parameters = options"], ids=["options refused", "options ignored"])
def bouncer(dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of the test's database behind a pooler of two server connections."""
    with pooled(dsn, connections=2, extra=request.param) as through:
        yield through


async def test_everything_works(bouncer: str) -> None:
    async with Queue(bouncer, notify=False, max_connections=8) as queue:
        jobs = await asyncio.gather(*(queue.submit("k", {"n": number}) for number in range(50)))
        await queue.submit_many([NewJob(kind="k")] * 1200)
        waiter = asyncio.create_task(queue.wait(jobs[-1].id, 30))

        async def work(worker: str) -> None:
            while claimed := await queue.claim(worker, ["default"], max_jobs=50):
                for job in claimed:
                    assert await queue.complete(job.id, job.lease_token) == "completed"

        while (await queue.stats())[0].queued:
            await asyncio.gather(*(work(f"w{number}") for number in range(8)))
        assert (await waiter).state == "completed"
        assert [stats.completed for stats in await queue.stats()] == [1250]
    pool = AsyncPool(bouncer)
    assert (await MaintenanceLoop(pool).step()).step is not None
    await pool.close()


async def test_nothing_is_prepared(bouncer: str) -> None:
    async with await connect_async(bouncer) as conn:
        await prepare_if_direct(conn)
        assert conn.prepare_threshold is None


async def test_vacuum(bouncer: str, conn: psycopg.AsyncConnection) -> None:
    async with await connect_async(bouncer) as pooled:
        await store.vacuum(pooled, "jobs")
        await store.vacuum(pooled, "queue_counters")
    tables = "'queue_pg.jobs'::regclass, 'queue_pg.queue_counters'::regclass"
    cursor = await conn.execute(f"select pg_stat_get_vacuum_count(oid) from pg_class where oid in ({tables})")
    assert await cursor.fetchall() == [(1,), (1,)]


async def test_listening_goes_nowhere_and_waiting_still_ends(bouncer: str) -> None:
    async with Queue(bouncer) as queue:
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id, 30))
        await queue.cancel(job.id)
        assert (await waiter).state == "cancelled"


async def test_listening_past_the_pooler(bouncer: str, dsn: str) -> None:
    pool = AsyncPool(bouncer)
    async with Queue(dsn) as queue:
        queue._pool = pool
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id, 30))
        assert await asyncio.to_thread(queue.wakeups.wait_listening, 30)
        await queue.cancel(job.id)
        assert (await waiter).state == "cancelled"


def test_the_blocking_twin(bouncer: str) -> None:
    with SyncQueue(bouncer, notify=False) as queue:
        assert queue.get(queue.submit("k").id).state == "queued"
