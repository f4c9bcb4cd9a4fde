"""The order in which our functions take locks, shown one lock at a time.

Somebody holds one row. Whoever takes rows in the order of their keys then has all that come before it, none that comes
after it, and waits. Rows are looked at with SKIP LOCKED, so nothing depends on who is quicker.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

Connection = psycopg.AsyncConnection[Any]
JOBS: Final = 4

# Each is told of the jobs in an order that is not theirs. Who is to find nothing to do still has to lock them.
FUNCTIONS: Final = {
    "finish": "select queue_pg.finish(%(ids)s, %(tokens)s, array_fill('complete'::text, array[%(count)s]))",
    "finish with a failure": "select queue_pg.finish(%(ids)s, %(tokens)s, array_fill('fail'::text, array[%(count)s]))",
    "snooze": "select queue_pg.finish(%(ids)s, %(tokens)s, array_fill('snooze'::text, array[%(count)s]))",
    "release": "select queue_pg.finish(%(ids)s, %(tokens)s, array_fill('release'::text, array[%(count)s]))",
    "heartbeat": "select queue_pg.heartbeat(%(ids)s, %(tokens)s)",
    "heartbeat with a lease": "select queue_pg.heartbeat(%(ids)s, %(tokens)s, '60 seconds')",
    "append events": (
        "select queue_pg.append_events(%(ids)s, %(tokens)s::bigint[], array_fill('log'::text, array[%(count)s]),"
        ' array_fill(\'{"message": "m"}\'::jsonb, array[%(count)s]))'
    ),
    "watch": "select queue_pg.watch(%(ids)s)",
    "follow": "select queue_pg.follow(%(ids)s)",
    "submit a child": "select queue_pg.submit('k', depends_on => to_jsonb(%(ids)s::uuid[]))",
    "cancel a batch": "select queue_pg.cancel_batch(%(batch)s)",
    "set a limit": "select queue_pg.set_limit('key', 'one', max_running => 9)",
    "remove a limit": "select queue_pg.remove_limit('key', 'one')",
}
# These pass over what somebody holds.
NEVER_WAIT: Final = {
    "claim": "select queue_pg.claim('w2', '{default}', max_jobs => 9)",
    "reap": "select queue_pg.reap()",
    "promote": "select queue_pg.promote()",
    "expire": "select queue_pg.expire()",
    "maintain": "select queue_pg.maintain()",
}
# These put back all that has failed of a batch.
RETRIES: Final = {
    "retry_failed": "select * from queue_pg.retry_failed(%(batch)s)",
    "act_on_jobs": "select * from queue_pg.act_on_jobs('retry', jsonb_build_object('batch_id', %(batch)s::uuid))",
}
HELD: Final = "select id from queue_pg.jobs where id = %s for update"
FREE: Final = "select id from queue_pg.jobs where id = any (%s) order by id for update skip locked"


async def rows(conn: Connection, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    return await (await conn.execute(query.encode(), parameters)).fetchall()


async def claimed(conn: Connection, *, limited: bool = True) -> tuple[list[UUID], UUID]:
    """Submit jobs in a batch and under a limit, claim them, and return their ids in order and the batch."""
    [[batch]] = await rows(conn, "select queue_pg.create_batch('b')")
    if limited:
        await rows(conn, "select queue_pg.set_limit('key', 'one', max_running => 100)")
    jobs = [{"kind": "k", "batch_id": str(batch), "limit_key": "one"} for _ in range(JOBS)]
    ids = [row[0] for row in await rows(conn, "select id from queue_pg.submit_many(%s)", (json.dumps(jobs),))]
    assert len(await rows(conn, "select queue_pg.claim('w', '{default}', max_jobs => 9)")) == JOBS
    return sorted(ids), batch


@asynccontextmanager
async def under_way(conn: Connection, dsn: str, statement: str, parameters: Any) -> AsyncGenerator[asyncio.Task[Any]]:
    """Run a statement in a session of its own until it waits for a lock or is done; it ends with the block."""
    async with await psycopg.AsyncConnection.connect(dsn) as session:
        task = asyncio.create_task(session.execute(statement.encode(), parameters))
        waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
        async with asyncio.timeout(20):
            while not task.done() and await rows(conn, waits, (session.info.backend_pid,)) != [(True,)]:
                await asyncio.wait({task}, timeout=0.01)
        try:
            yield task
        finally:
            await session.cancel_safe()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()


async def check_order(conn: Connection, dsn: str, statement: str, ids: list[UUID], batch: UUID) -> None:
    """Hold one job after the other, and see what the statement has by the time it waits for that."""
    shuffled = [ids[2], ids[0], ids[3], ids[1]]
    parameters = {"ids": shuffled, "tokens": [1] * JOBS, "count": JOBS, "batch": batch}
    for index, held in enumerate(ids):
        async with (
            await psycopg.AsyncConnection.connect(dsn) as holder,
            await psycopg.AsyncConnection.connect(dsn) as eye,
        ):
            await holder.execute(HELD, (held,))
            async with under_way(conn, dsn, statement, parameters) as task:
                assert not task.done(), f"does not wait for job {index}: {task.exception() or task.result()}"
                free = [row[0] for row in await rows(eye, FREE, (ids,))]
                assert free == ids[index + 1 :], f"waits for job {index} and has others than those before it"


@pytest.mark.parametrize("name", FUNCTIONS)
async def test_jobs_are_locked_in_the_order_of_their_ids(conn: Connection, dsn: str, name: str) -> None:
    ids, batch = await claimed(conn, limited=name != "set a limit")
    await check_order(conn, dsn, FUNCTIONS[name], ids, batch)


@pytest.mark.parametrize("order", ["array_position(%(ids)s::uuid[], j.id)", "j.id desc"])
async def test_another_order_is_seen(conn: Connection, dsn: str, order: str) -> None:
    ids, batch = await claimed(conn)
    statement = f"select 1 from queue_pg.jobs j where j.id = any (%(ids)s) order by {order} for update"
    with pytest.raises(AssertionError, match="has others than those before it"):
        await check_order(conn, dsn, statement, ids, batch)


@pytest.mark.parametrize("name", NEVER_WAIT)
async def test_who_looks_for_work_waits_for_no_job(conn: Connection, dsn: str, name: str) -> None:
    ids, _ = await claimed(conn)
    await rows(conn, "select queue_pg.submit('k'), queue_pg.submit('k', delay => '1 ms')")
    await rows(
        conn,
        "update queue_pg.jobs set lease_expires_at = queue_pg.now() - interval '1 s' where id = any (%s) returning 1",
        (ids,),
    )
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        await rows(holder, "select id from queue_pg.jobs for update")
        async with under_way(conn, dsn, NEVER_WAIT[name], None) as task:
            assert task.done()


@pytest.mark.parametrize("name", ["finish", "snooze", "cancel a batch", "remove a limit"])
async def test_limits_are_locked_after_all_jobs(conn: Connection, dsn: str, name: str) -> None:
    ids, batch = await claimed(conn)
    parameters = {"ids": ids[::-1], "tokens": [1] * JOBS, "count": JOBS, "batch": batch}
    limit = "select 1 from queue_pg.limits where name = 'one' for update"
    async with await psycopg.AsyncConnection.connect(dsn) as holder, await psycopg.AsyncConnection.connect(dsn) as eye:
        # Who waits for the limit has all the jobs.
        await holder.execute(limit)
        async with under_way(conn, dsn, FUNCTIONS[name], parameters) as task:
            assert not task.done()
            assert await rows(eye, FREE, (ids,)) == []
        await holder.rollback()
        await eye.rollback()
        # Who waits for the last job has no limit.
        await holder.execute(HELD, (ids[-1],))
        async with under_way(conn, dsn, FUNCTIONS[name], parameters) as task:
            assert not task.done()
            assert await rows(eye, f"{limit} skip locked") == [(1,)]


async def test_a_batch_is_locked_before_its_jobs(conn: Connection, dsn: str) -> None:
    ids, batch = await claimed(conn)
    parameters = {"batch": batch}
    async with await psycopg.AsyncConnection.connect(dsn) as holder, await psycopg.AsyncConnection.connect(dsn) as eye:
        await holder.execute("select 1 from queue_pg.batches where id = %s for update", (batch,))
        async with under_way(conn, dsn, FUNCTIONS["cancel a batch"], parameters) as task:
            assert not task.done()
            assert [row[0] for row in await rows(eye, FREE, (ids,))] == ids


async def failed(conn: Connection, jobs: list[dict[str, Any]]) -> UUID:
    """Submit jobs in a batch, of which all that can start fail, and return the batch."""
    [[batch]] = await rows(conn, "select queue_pg.create_batch('b')")
    await rows(
        conn, "select queue_pg.submit_many(%s)", (json.dumps([{**job, "batch_id": str(batch)} for job in jobs]),)
    )
    await rows(
        conn,
        "select queue_pg.fail(c.id, c.lease_token, '{}', retry => false)"
        " from queue_pg.claim('w', '{default}', max_jobs => 9) c",
    )
    assert await rows(conn, "select state::text from queue_pg.finished_jobs where batch_id = %s", (batch,)) == [
        ("failed",)
    ] * len(jobs)
    return batch


async def check_pair(conn: Connection, dsn: str, statement: str, batch: UUID, lock: str, low: Any, high: Any) -> None:
    """Hold one of two rows, and see whether the statement that waits for it has the other."""
    for held, other, has in ((low, high, False), (high, low, True)):
        async with (
            await psycopg.AsyncConnection.connect(dsn) as holder,
            await psycopg.AsyncConnection.connect(dsn) as eye,
        ):
            assert len(await rows(holder, lock, (held,))) == 1
            async with under_way(conn, dsn, statement, {"batch": batch}) as task:
                assert not task.done(), f"does not wait: {task.exception() or task.result()}"
                assert (await rows(eye, f"{lock} skip locked", (other,)) == []) is has


@pytest.mark.parametrize("name", RETRIES)
async def test_retries_of_many_lock_the_parents_of_all_in_one_order(conn: Connection, dsn: str, name: str) -> None:
    """The first child waits for the later parent, the second one for the earlier."""
    low, high = [row[0] for row in await rows(conn, "select queue_pg.submit('p') from generate_series(1, 2)")]
    assert low < high
    batch = await failed(
        conn,
        [{"kind": "c", "depends_on": [{"job": str(parent), "on_unsuccessful": "fail"}]} for parent in (high, low)],
    )
    await rows(conn, "select queue_pg.retry(p) from unnest(%s) p", ([low, high],))
    await check_pair(conn, dsn, RETRIES[name], batch, HELD, low, high)
    assert await rows(conn, RETRIES[name], {"batch": batch}) != []
    assert await rows(conn, "select state::text from queue_pg.jobs where batch_id = %s", (batch,)) == [("waiting",)] * 2


@pytest.mark.parametrize("name", RETRIES)
async def test_retries_of_many_lock_unique_keys_in_one_order(conn: Connection, dsn: str, name: str) -> None:
    batch = await failed(conn, [{"kind": "k", "unique_key": key} for key in ("b", "a")])
    lock = "select 1 from queue_pg.unique_keys where unique_key = %s for update"
    await check_pair(conn, dsn, RETRIES[name], batch, lock, "a", "b")


@pytest.mark.parametrize("name", RETRIES)
async def test_retries_of_many_lock_shared_work_before_their_batch(conn: Connection, dsn: str, name: str) -> None:
    batch = await failed(conn, [{"kind": "k"}, {"kind": "k", "cache": True}])
    # Somebody else does that work now.
    await rows(conn, "select queue_pg.submit('k', cache => true)")
    async with await psycopg.AsyncConnection.connect(dsn) as holder, await psycopg.AsyncConnection.connect(dsn) as eye:
        assert len(await rows(holder, "select 1 from queue_pg.cache_entries for update")) == 1
        async with under_way(conn, dsn, RETRIES[name], {"batch": batch}) as task:
            assert not task.done()
            assert (
                len(await rows(eye, "select 1 from queue_pg.batches where id = %s for update skip locked", (batch,)))
                == 1
            )
