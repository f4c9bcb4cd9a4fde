"""A worker that is told to end while a claim is under way: its jobs are nobody's until somebody says whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg
from in_process import row, running, soon

from queue_pg import Queue
from queue_pg.tasks import Tasks

WAITS = """
select count(*) from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock' and query like '%claim_for_worker%'
"""
# The worker's connections, those that it has cut off itself among them.
LEFT = """
select count(*) from pg_stat_activity
where datname = current_database() and application_name like 'queue-pg worker%'
"""


def tasks() -> Tasks:
    made = Tasks()

    @made.task
    async def never() -> None:
        raise AssertionError("a worker that ends starts nothing")

    return made


@asynccontextmanager
async def held_up(conn: psycopg.AsyncConnection, dsn: str) -> AsyncGenerator[tuple[UUID, psycopg.AsyncConnection]]:
    """Give a job and the transaction that every claim of it waits for; some worker's claim does."""
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        await holder.execute("lock table queue_pg.settings in access exclusive mode")
        cursor = await conn.execute("insert into queue_pg.jobs (kind) values ('never') returning id")
        [[job]] = await cursor.fetchall()
        await _until(conn, WAITS, some=True)
        yield job, holder


async def test_what_the_last_claim_brings_is_handed_back(dsn: str, queue: Queue, conn: psycopg.AsyncConnection) -> None:
    async with running(dsn, tasks(), maintenance=False) as worker, held_up(conn, dsn) as (job, holder):
        worker.stop()
        # Nothing runs, so it would have been done by now.
        await asyncio.sleep(0)
        await holder.commit()
        await _until(conn, LEFT, some=False)
    assert await _state(conn, job) == ("queued", 0, None)


async def test_a_last_claim_that_takes_too_long_is_given_up_by_the_server(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    async with running(dsn, tasks(), maintenance=False) as worker:
        async with held_up(conn, dsn) as (job, holder):
            worker.stop()
            # The claim, however long somebody holds it up.
            await _until(conn, WAITS, some=False)
            await holder.commit()
        await _until(conn, LEFT, some=False)
    assert await _state(conn, job) == ("queued", 0, None)


async def _until(conn: psycopg.AsyncConnection, counts: str, *, some: bool) -> None:
    """Wait until a count is none, or some; other processes do that, which no event of ours tells."""

    async def looking() -> None:
        while ((await (await conn.execute(counts.encode())).fetchone()) != (0,)) is not some:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    await soon(looking())


async def _state(conn: psycopg.AsyncConnection, job: UUID) -> tuple[str, int, object]:
    found = await row(conn, job)
    return found["state"], found["attempt"], found["error"]
