"""Two sessions at once, in the orders that matter. Blocked sessions are seen in pg_stat_activity, never slept for."""

from __future__ import annotations

import asyncio
from itertools import permutations
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection

ACTIONS = {
    "claim": "select count(*) from queue_pg.claim('other', '{default}')",
    "heartbeat": "select count(*) from queue_pg.heartbeat(array[%(id)s::uuid], array[1::bigint])",
    "complete": "select accepted from queue_pg.finish(array[%(id)s::uuid], array[1::bigint], array['complete'])",
    "fail": "select accepted from queue_pg.finish(array[%(id)s::uuid], array[1::bigint], array['fail'])",
    "snooze": "select accepted from queue_pg.finish(array[%(id)s::uuid], array[1::bigint], array['snooze'])",
    "reap": "select count(*) from queue_pg.reap()",
    "cancel": "select state::text from queue_pg.cancel(%(id)s)",
    "watch": "select count(*) from queue_pg.watch(array[%(id)s::uuid])",
}


async def blocked(conn: Connection, pid: int) -> bool:
    row = await (
        await conn.execute("select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", (pid,))
    ).fetchone()
    return row is not None and row[0] is True


async def until_done_or_blocked(conn: Connection, task: asyncio.Task[Any], pid: int) -> None:
    while not task.done() and not await blocked(conn, pid):
        await asyncio.wait({task}, timeout=0.01)


@pytest.mark.parametrize(("first", "second"), list(permutations(ACTIONS, 2)))
async def test_every_pair_on_an_expired_lease_records_at_most_one_outcome(
    conn: Connection, dsn: str, clock: Clock, first: str, second: str
) -> None:
    """The first holds its transaction open over the second; then both commit."""
    row = await (await conn.execute("select queue_pg.submit('k')")).fetchone()
    assert row is not None
    job: UUID = row[0]
    await conn.execute("select queue_pg.claim('w', '{default}')")
    clock.advance(31)
    async with await Connection.connect(dsn) as a, await Connection.connect(dsn, autocommit=True) as b:
        await a.execute(ACTIONS[first], {"id": job})

        async def run_second() -> str | None:
            try:
                await b.execute(ACTIONS[second], {"id": job})
            except psycopg.Error as error:
                return error.sqlstate
            return None

        pending = asyncio.create_task(run_second())
        await until_done_or_blocked(conn, pending, b.info.backend_pid)
        await a.commit()
        # Being told that the job is in another state by now is an answer; a deadlock or a lost row is not.
        assert await pending in (None, "QP002")
    rows = await (await conn.execute("select state::text from queue_pg.all_jobs where id = %s", (job,))).fetchall()
    assert len(rows) == 1, "a job must exist exactly once, live or finished"
    ends = {"complete": "completed", "cancel": "cancelled"}
    if first in ends:
        # What was recorded first stays.
        assert rows == [(ends[first],)]


async def test_watch_never_misses_an_end_that_is_being_committed(conn: Connection, dsn: str) -> None:
    row = await (await conn.execute("select queue_pg.submit('k')")).fetchone()
    assert row is not None
    await conn.execute("select queue_pg.claim('w', '{default}')")
    async with await Connection.connect(dsn) as worker, await Connection.connect(dsn, autocommit=True) as waiter:
        await worker.execute("select queue_pg.complete(%s, 1)", row)
        watching = asyncio.create_task(waiter.execute("select state::text from queue_pg.watch(array[%s::uuid])", row))
        await until_done_or_blocked(conn, watching, waiter.info.backend_pid)
        assert not watching.done()
        await worker.commit()
        assert await (await watching).fetchall() == [("completed",)]


async def test_a_watched_end_notifies_with_its_id_and_an_unwatched_one_does_not(conn: Connection, dsn: str) -> None:
    ids: list[UUID] = []
    for _ in range(2):
        row = await (await conn.execute("select queue_pg.submit('k')")).fetchone()
        assert row is not None
        ids.append(row[0])
    await conn.execute("select queue_pg.watch(array[%s::uuid])", (ids[1],))
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_result")
        await conn.execute("select queue_pg.claim('w', '{default}', max_jobs => 2)")
        for job in ids:
            await conn.execute("select queue_pg.complete(%s, 1)", (job,))
        assert [n.payload async for n in listener.notifies(timeout=20, stop_after=1)] == [str(ids[1])]


async def test_batches_in_opposite_order_do_not_deadlock(conn: Connection, dsn: str) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 400)")
    rows = await (await conn.execute("select id from queue_pg.claim('w', '{default}', max_jobs => 400)")).fetchall()
    ids = [row[0] for row in rows]

    async def beat(order: list[UUID], statement: str) -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            await own.execute("set deadlock_timeout = '10ms'")
            for _ in range(5):
                await own.execute(statement, (order, [1] * len(order)))

    heartbeat = "select count(*) from queue_pg.heartbeat(%s, %s)"
    await asyncio.gather(beat(ids, heartbeat), beat(ids[::-1], heartbeat))
    finish = "select count(*) from queue_pg.finish(%s, %s, array_fill('complete'::text, array[400]))"
    await asyncio.gather(beat(ids, finish), beat(ids[::-1], finish), beat(ids, heartbeat))
    row = await (await conn.execute("select count(*) from queue_pg.finished_jobs")).fetchone()
    assert row == (400,)


async def test_a_claim_passes_over_what_somebody_has_locked(conn: Connection, dsn: str) -> None:
    rows = await (await conn.execute("select queue_pg.submit('k') from generate_series(1, 2)")).fetchall()
    first, second = sorted(job for (job,) in rows)
    async with await Connection.connect(dsn) as holder, await Connection.connect(dsn, autocommit=True) as worker:
        await holder.execute("select from queue_pg.jobs where id = %s for update", (first,))
        claiming = asyncio.create_task(worker.execute("select id from queue_pg.claim('w', '{default}')"))
        await until_done_or_blocked(conn, claiming, worker.info.backend_pid)
        passed_over = claiming.done()
        await holder.rollback()
        assert passed_over
        assert await (await claiming).fetchall() == [(second,)]


async def test_watching_a_queued_job_wakes_the_worker_that_had_to_skip_it(conn: Connection, dsn: str) -> None:
    row = await (await conn.execute("select queue_pg.submit('k')")).fetchone()
    assert row is not None
    async with (
        await Connection.connect(dsn) as waiter,
        await Connection.connect(dsn, autocommit=True) as worker,
    ):
        await worker.execute("listen queue_pg_wake")
        await waiter.execute("select queue_pg.watch(array[%s::uuid])", row)
        claim = "select count(*) from queue_pg.claim('w', '{default}', arm => true)"
        claiming = asyncio.create_task(worker.execute(claim))
        await until_done_or_blocked(conn, claiming, worker.info.backend_pid)
        await waiter.commit()
        assert await (await claiming).fetchone() == (0,)
        assert [n.payload async for n in worker.notifies(timeout=20, stop_after=1)] == ["default"]
        assert await (await worker.execute(claim)).fetchone() == (1,)


BATCHES = {
    "heartbeat": "select count(*) from queue_pg.heartbeat(%(ids)s, array[1, 1])",
    "complete": "select count(*) from queue_pg.finish(%(ids)s, array[1, 1], array['complete', 'complete'])",
    "fail": "select count(*) from queue_pg.finish(%(ids)s, array[1, 1], array['fail', 'fail'])",
    "append events": "select count(*) from queue_pg.append_events("
    "%(ids)s, array[1, 1], array['mine', 'mine'], array['{}', '{}']::jsonb[])",
    "watch": "select count(*) from queue_pg.watch(%(ids)s)",
}


@pytest.mark.parametrize("batch", BATCHES)
async def test_batches_lock_in_the_order_of_ids_whatever_order_they_are_given_in(
    conn: Connection, dsn: str, batch: str
) -> None:
    """Whoever waits for the first row must not hold the second: two such batches would wait for each other."""
    jobs = await (await conn.execute("select queue_pg.submit('k') from generate_series(1, 2)")).fetchall()
    await conn.execute("select queue_pg.claim('w', '{default}', max_jobs => 2)")
    first, second = sorted(job for (job,) in jobs)
    async with await Connection.connect(dsn) as holder, await Connection.connect(dsn, autocommit=True) as other:
        await holder.execute("select from queue_pg.jobs where id = %s for update", (first,))
        pending = asyncio.create_task(other.execute(BATCHES[batch], {"ids": [second, first]}))
        await until_done_or_blocked(conn, pending, other.info.backend_pid)
        try:
            assert not pending.done()
            await conn.execute("select from queue_pg.jobs where id = %s for update nowait", (second,))
        finally:
            # Or the other's connection, which is in use until then, could not be closed.
            await holder.rollback()
        assert await (await pending).fetchone() == (2,)
