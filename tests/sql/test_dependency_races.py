"""Parents that end while their children are submitted, told or cancelled: nothing is missed, and no deadlocks."""

from __future__ import annotations

import asyncio
import json
import random
from itertools import permutations
from typing import Any
from uuid import UUID

import psycopg
import pytest

Connection = psycopg.AsyncConnection

COMPLETE = "select queue_pg.complete(%({})s, 1)"
FAIL = "select queue_pg.fail(%({})s, 1, '{{}}', retry => false)"
ACTIONS = {
    "complete a": COMPLETE.format("a"),
    "complete b": COMPLETE.format("b"),
    "fail b": FAIL.format("b"),
    "cancel a": "select count(*) from queue_pg.cancel(%(a)s)",
    "cancel child": "select count(*) from queue_pg.cancel(%(child)s)",
    "expire child": "select queue_pg.expire()",
    "watch child": "select count(*) from queue_pg.watch(array[%(child)s::uuid])",
    "submit under a": "select queue_pg.submit('late', depends_on => jsonb_build_array(%(a)s))",
    "submit under both": "select queue_pg.submit('late', depends_on => jsonb_build_array(%(b)s, %(a)s))",
    "submit under child": "select queue_pg.submit('late', depends_on => jsonb_build_array(%(child)s))",
    "settle": "select queue_pg.settle()",
}


async def all_of(conn: Connection, query: str, *args: Any) -> list[Any]:
    return await (await conn.execute(query, args)).fetchall()


async def until_done_or_blocked(conn: Connection, task: asyncio.Task[Any], pid: int) -> None:
    query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    while not task.done() and await all_of(conn, query, pid) != [(True,)]:
        await asyncio.wait({task}, timeout=0.01)


async def submit(conn: Connection, *jobs: dict[str, Any]) -> list[UUID]:
    given = json.dumps([{"kind": "k", **job} for job in jobs])
    return [row[0] for row in await all_of(conn, "select id from queue_pg.submit_many(%s) order by position", given)]


async def check_all_told(conn: Connection) -> None:
    """After a step of maintenance: who waits has a parent that lives, and counts those alone."""
    await conn.execute("select queue_pg.maintain()")
    wrong = await all_of(
        conn,
        "select j.id, j.state, j.parents_left, d.told, d.live from queue_pg.jobs j cross join lateral ("
        " select count(*) filter (where d.outcome is null) as told,"
        " count(*) filter (where exists (select from queue_pg.jobs p where p.id = d.parent_id)) as live"
        " from queue_pg.dependencies d where d.child_id = j.id) d"
        " where (j.state = 'waiting') <> (d.live > 0) or (j.state = 'waiting' and (j.parents_left, j.parents_left)"
        " <> (d.told, d.live))",
    )
    assert wrong == []
    assert await all_of(conn, "select * from queue_pg.unsettled") == []


@pytest.mark.parametrize(("first", "second"), list(permutations(ACTIONS, 2)))
async def test_every_pair_leaves_every_child_told(conn: Connection, dsn: str, first: str, second: str) -> None:
    """The first holds its transaction open over the second; then both commit."""
    a, b, child = await submit(conn, {"key": "a"}, {"key": "b"}, {"key": "c", "depends_on": ["a", "b"]})
    await submit(conn, {"depends_on": [str(child)]})
    await conn.execute("select queue_pg.claim('w', '{default}', max_jobs => 2)")
    if "expire child" in (first, second):
        await conn.execute("update queue_pg.jobs set expires_at = queue_pg.now() where id = %s", (child,))
    ids = {"a": a, "b": b, "child": child}
    async with await Connection.connect(dsn) as one, await Connection.connect(dsn, autocommit=True) as other:
        await one.execute(ACTIONS[first], ids)

        async def run_second() -> str | None:
            try:
                await other.execute(ACTIONS[second], ids)
            except psycopg.Error as error:
                return error.sqlstate
            return None

        pending = asyncio.create_task(run_second())
        await until_done_or_blocked(conn, pending, other.info.backend_pid)
        await one.commit()
        # Being told that the job is in another state by now is an answer; a deadlock is none.
        assert await pending in (None, "QP002", "QP003")
    await check_all_told(conn)
    for parent in (a, b):
        await conn.execute("select queue_pg.cancel(%s) where queue_pg.state_of(%s) = 'running'", (parent, parent))
    await check_all_told(conn)
    assert await all_of(conn, "select id from queue_pg.jobs where state = 'waiting' and id = %s", child) == []


async def test_an_open_transaction_over_a_child_does_not_hold_up_the_end_of_its_parent(
    conn: Connection, dsn: str
) -> None:
    parent, child = await submit(conn, {"key": "p"}, {"depends_on": ["p"]})
    await conn.execute("select queue_pg.claim('w', '{default}')")
    async with await Connection.connect(dsn) as application:
        await application.execute("select queue_pg.watch(array[%s::uuid])", (child,))
        await conn.execute("select queue_pg.complete(%s, 1)", (parent,))
        assert await all_of(conn, "select child_id from queue_pg.unsettled") == [(child,)]
        # Still locked: looked at, and kept for the next time.
        await conn.execute("select queue_pg.maintain()")
        assert await all_of(conn, "select child_id from queue_pg.unsettled") == [(child,)]
    await conn.execute("select queue_pg.maintain()")
    assert await all_of(conn, "select state::text from queue_pg.jobs") == [("queued",)]
    assert await all_of(conn, "select * from queue_pg.unsettled") == []


async def test_a_submission_that_is_rolled_back_leaves_its_parent_alone(conn: Connection, dsn: str) -> None:
    [parent] = await submit(conn, {})
    await conn.execute("select queue_pg.claim('w', '{default}')")
    async with await Connection.connect(dsn) as application:
        await application.execute(ACTIONS["submit under a"], {"a": parent})
        finishing = asyncio.create_task(conn.execute("select queue_pg.complete(%s, 1)", (parent,)))
        async with await Connection.connect(dsn, autocommit=True) as looking:
            await until_done_or_blocked(looking, finishing, conn.info.backend_pid)
        await application.rollback()
        await finishing
    assert await all_of(conn, "select kind from queue_pg.all_jobs") == [("k",)]


async def test_finishing_cancelling_and_submitting_at_once_in_a_graph(conn: Connection, dsn: str) -> None:
    """Workers finish batches whose children they share, while others cancel, watch and add children.

    Who ends a parent waits 100 ms for a child and then leaves it: before Postgres looks for deadlocks, after a second.
    """
    chosen = random.Random(3)
    width, depth = 20, 12
    keys = [f"n{n}" for n in chosen.sample(range(width * depth), width * depth)]  # ids not in the graph's order
    jobs = [
        {"key": key, "depends_on": [keys[(n // width - 1) * width + m] for m in chosen.sample(range(width), 4)]}
        if n >= width
        else {"key": key}
        for n, key in enumerate(keys)
    ]
    chosen.shuffle(jobs)
    for job in jobs:
        job["depends_on"] = [
            {"job": parent, "on_unsuccessful": chosen.choice(("cancel", "run", "fail"))}
            for parent in job.get("depends_on", ())
        ]
    ids = await submit(conn, *jobs)

    async def work(worker: int) -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            while await all_of(own, "select from queue_pg.jobs limit 1"):
                rows = await all_of(
                    own, "select id, lease_token from queue_pg.claim(%s, '{default}', max_jobs => 7)", str(worker)
                )
                for outcome in ("complete", "discard"):
                    part = rows[:-1] if outcome == "complete" else rows[-1:]
                    ended = "select count(*) from queue_pg.finish(%s, %s, array_fill(%s::text, array[%s]))"
                    if part:
                        await own.execute(ended, ([r[0] for r in part], [r[1] for r in part], outcome, len(part)))
                await own.execute("select queue_pg.settle()")

    async def meddle(worker: int) -> None:
        own_choice = random.Random(worker)
        async with await Connection.connect(dsn, autocommit=True) as own:
            for _ in range(30):
                some = own_choice.sample(ids, 3)
                try:
                    await own.execute("select queue_pg.watch(%s)", (some,))
                    await own.execute(
                        "select queue_pg.submit('late', depends_on => %s)", (json.dumps([str(i) for i in some]),)
                    )
                    await own.execute("select queue_pg.cancel(%s)", (own_choice.choice(some),))
                except psycopg.Error as error:
                    if error.sqlstate != "QP002":  # it has ended already
                        raise

    await asyncio.wait_for(asyncio.gather(*(work(n) for n in range(4)), *(meddle(n) for n in range(4))), timeout=120)
    assert await all_of(conn, "select id from queue_pg.jobs") == []
    assert await all_of(conn, "select child_id from queue_pg.dependencies where outcome is null") == []
