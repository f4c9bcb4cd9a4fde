"""Jobs that share work, when two sessions meet: nobody waits for nothing, and the work is done by one at a time."""

from __future__ import annotations

import asyncio
import random
from itertools import permutations
from typing import Any
from uuid import UUID

import psycopg
import pytest

Connection = psycopg.AsyncConnection

SUBMIT = "select queue_pg.submit('k', '{{\"a\": 1}}', cache => true{})"
# `holder` does the work, `waiting` waits for it, `ended` was cancelled.
STEER = {
    "cancel holder": "select count(*) from queue_pg.cancel(%(holder)s)",
    "cancel waiting": "select count(*) from queue_pg.cancel(%(waiting)s)",
    "expire waiting": "select queue_pg.expire()",
    "watch waiting": "select count(*) from queue_pg.watch(array[%(waiting)s::uuid])",
    "retry ended": "select count(*) from queue_pg.retry(%(ended)s)",
    "submit": SUBMIT.format(""),
    "submit urgent": SUBMIT.format(", priority => 9"),
    "submit fresh": SUBMIT.format(", cache_for => '0'"),
    "settle": "select queue_pg.settle_deferred_cache()",
    "sweep": "select queue_pg.sweep()",
}
RUNNING = {
    "complete": "select queue_pg.complete(%(holder)s, 1, '1')",
    "fail": "select queue_pg.fail(%(holder)s, 1, '{}', retry => false)",
    "give back": "select queue_pg.release(%(holder)s, 1)",
    **STEER,
}
QUEUED = {
    "claim": "select count(*) from queue_pg.claim('w', '{default}')",
    "submit more urgent": SUBMIT.format(", priority => 10"),
    **STEER,
}


async def all_of(conn: Connection, query: str, *args: Any) -> list[Any]:
    return await (await conn.execute(query, args)).fetchall()


async def submit(conn: Connection) -> UUID:
    [row] = await all_of(conn, SUBMIT.format(""))
    return row[0]


async def until_done_or_blocked(conn: Connection, task: asyncio.Task[Any], pid: int) -> bool:
    """Return whether it is blocked."""
    query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    while not task.done():
        if await all_of(conn, query, pid) == [(True,)]:
            return True
        await asyncio.wait({task}, timeout=0.01)
    return False


async def check(conn: Connection) -> None:
    """After a step of maintenance: whoever waits does so for a job that lives, and one at most does the work."""
    await conn.execute("select queue_pg.maintain()")
    wrong = await all_of(
        conn,
        "select w.id, c.job_id from queue_pg.jobs w left join queue_pg.cache_entries c on c.cache_key = w.cache_key"
        " where w.state = 'waiting' and not exists ("
        "  select from queue_pg.jobs h where h.id = c.job_id and h.state <> 'waiting')",
    )
    assert wrong == []
    wrong = await all_of(
        conn,
        "select h.id, h.state, c.job_id from queue_pg.jobs h left join queue_pg.cache_entries c"
        " on c.cache_key = h.cache_key where h.state <> 'waiting' and c.job_id is distinct from h.id",
    )
    assert wrong == []
    assert await all_of(conn, "select * from queue_pg.unsettled_cache") == []


async def drive(conn: Connection) -> None:
    """Run what there is to its end."""
    while True:
        claimed = await all_of(conn, "select id, lease_token from queue_pg.claim('w', '{default}', max_jobs => 100)")
        rows = claimed or await all_of(conn, "select id, lease_token from queue_pg.jobs where state = 'running'")
        for row in rows:
            await conn.execute("select queue_pg.complete(%s, %s, '1')", row)
        await check(conn)
        if not rows:
            break
    assert await all_of(conn, "select id, state from queue_pg.jobs") == []


async def meet(conn: Connection, dsn: str, actions: dict[str, str], first: str, second: str, *, started: bool) -> None:
    """The first holds its transaction open over the second; then both commit."""
    ended = await submit(conn)
    await conn.execute("select queue_pg.cancel(%s)", (ended,))
    holder, waiting = await submit(conn), await submit(conn)
    await submit(conn)
    if started:
        await conn.execute("select queue_pg.claim('w', '{default}')")
    if "expire waiting" in (first, second):
        await conn.execute("update queue_pg.jobs set expires_at = queue_pg.now() where id = %s", (waiting,))
    ids = {"holder": holder, "waiting": waiting, "ended": ended}
    async with await Connection.connect(dsn) as one, await Connection.connect(dsn, autocommit=True) as other:
        await one.execute(actions[first].encode(), ids)

        async def run_second() -> str | None:
            try:
                await other.execute(actions[second].encode(), ids)
            except psycopg.Error as error:
                return error.sqlstate
            return None

        pending = asyncio.create_task(run_second())
        await until_done_or_blocked(conn, pending, other.info.backend_pid)
        await one.commit()
        # Being told that the job is in another state by now is an answer; a deadlock is none.
        assert await pending in (None, "QP002", "QP003")
    await check(conn)
    await drive(conn)


@pytest.mark.parametrize(("first", "second"), list(permutations(RUNNING, 2)))
async def test_every_pair_over_work_that_runs(conn: Connection, dsn: str, first: str, second: str) -> None:
    await meet(conn, dsn, RUNNING, first, second, started=True)


@pytest.mark.parametrize(("first", "second"), list(permutations(QUEUED, 2)))
async def test_every_pair_over_work_that_is_queued(conn: Connection, dsn: str, first: str, second: str) -> None:
    await meet(conn, dsn, QUEUED, first, second, started=False)


async def test_an_open_submission_does_not_hold_up_the_end_of_the_work(conn: Connection, dsn: str) -> None:
    holder = await submit(conn)
    await conn.execute("select queue_pg.claim('w', '{default}')")
    async with await Connection.connect(dsn) as application:
        late = await submit(application)
        await conn.execute("select count(*) from queue_pg.heartbeat(array[%s::uuid], '{1}')", (holder,))
        await conn.execute("select queue_pg.complete(%s, 1, '1')", (holder,))
        await conn.execute("select queue_pg.maintain()")
        assert len(await all_of(conn, "select * from queue_pg.unsettled_cache")) == 1
    await check(conn)
    assert await all_of(conn, "select state::text, cached_from from queue_pg.job(%s)", late) == [("completed", holder)]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_an_open_submission_does_not_hold_up_one_that_overtakes(conn: Connection, dsn: str, end: str) -> None:
    """And what the second makes is an answer to the first, although nobody saw it when the work ended."""
    overtaken = await submit(conn)
    async with await Connection.connect(dsn) as application:
        late = await submit(application)
        [(urgent,)] = await all_of(conn, SUBMIT.format(", priority => 9"))
        assert await all_of(conn, "select id from queue_pg.claim('w', '{default}')") == [(urgent,)]
        await conn.execute("select queue_pg.complete(%s, 1, '1')", (urgent,))
        await conn.execute("select queue_pg.maintain()")
        assert await all_of(conn, "select queue_pg.state_of(%s)", overtaken) == [("waiting",)]
        await (application.commit() if end == "commit" else application.rollback())
    await check(conn)
    answered = await all_of(
        conn, "select id, cached_from from queue_pg.all_jobs where state = 'completed' and id <> %s", urgent
    )
    assert set(answered) == {(job, urgent) for job in ([overtaken, late] if end == "commit" else [overtaken])}


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_two_that_begin_the_same_work_at_once(conn: Connection, dsn: str, end: str) -> None:
    async with await Connection.connect(dsn) as one, await Connection.connect(dsn, autocommit=True) as other:
        await submit(one)
        pending = asyncio.create_task(submit(other))
        assert await until_done_or_blocked(conn, pending, other.info.backend_pid)
        await (one.commit() if end == "commit" else one.rollback())
        second = await pending
    [row] = await all_of(conn, "select queue_pg.state_of(%s)", second)
    assert row == ("waiting" if end == "commit" else "queued",)
    await drive(conn)


async def test_a_submission_that_is_rolled_back_leaves_the_work_free(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn) as application:
        await submit(application)
        await application.rollback()
    assert await all_of(conn, "select * from queue_pg.cache_entries") == []


async def test_one_that_is_locked_is_answered_when_it_is_free(conn: Connection, dsn: str) -> None:
    holder, waiting = await submit(conn), await submit(conn)
    await conn.execute("select queue_pg.claim('w', '{default}')")
    async with await Connection.connect(dsn) as application:
        await application.execute("select from queue_pg.jobs where id = %s for update", (waiting,))
        await conn.execute("select queue_pg.complete(%s, 1, '1')", (holder,))
        await conn.execute("select queue_pg.maintain()")
        assert await all_of(conn, "select state::text from queue_pg.jobs") == [("waiting",)]
    await check(conn)
    assert await all_of(conn, "select state::text from queue_pg.job(%s)", waiting) == [("completed",)]


async def test_a_transaction_with_an_old_look_leaves_the_end_to_maintenance(conn: Connection, dsn: str) -> None:
    holder = await submit(conn)
    async with await Connection.connect(dsn) as application:
        await application.execute("set transaction isolation level repeatable read")
        await application.execute("select 1 from queue_pg.jobs")
        waiting = await submit(conn)
        await application.execute("select queue_pg.cancel(%s)", (holder,))
    await check(conn)
    assert await all_of(conn, "select state::text from queue_pg.job(%s)", waiting) == [("queued",)]


async def test_those_who_came_to_wait_for_work_that_is_cancelled_begin_it_one_at_a_time(
    conn: Connection, dsn: str
) -> None:
    """They all wait for the row that names the job, find that it has gone, and want to be the one that is named."""
    fresh = SUBMIT.format(", cache_for => '0'")
    await submit(conn)
    await drive(conn)
    sessions = [await Connection.connect(dsn, autocommit=True) for _ in range(8)]
    try:
        for _ in range(10):
            [(holder,)] = await all_of(conn, fresh)
            async with await Connection.connect(dsn) as canceller:
                await canceller.execute("select count(*) from queue_pg.cancel(%s)", (holder,))
                pending = [asyncio.create_task(all_of(each, fresh)) for each in sessions]
                for task, each in zip(pending, sessions, strict=True):
                    assert await until_done_or_blocked(conn, task, each.info.backend_pid)
            await asyncio.gather(*pending)
            await check(conn)
            await drive(conn)
    finally:
        for each in sessions:
            await each.close()


async def test_many_sessions_do_the_same_work_once(conn: Connection, dsn: str) -> None:
    """Twenty sessions at once, three times: each work is done by one, and all get its result."""
    connections = [await Connection.connect(dsn, autocommit=True) for _ in range(20)]
    try:
        for _ in range(3):
            await asyncio.gather(*(submit(each) for each in connections))
    finally:
        for each in connections:
            await each.close()
    assert await all_of(conn, "select state::text, count(*) from queue_pg.jobs group by state::text order by 1") == [
        ("queued", 1),
        ("waiting", 59),
    ]
    await drive(conn)
    assert await all_of(conn, "select count(*), count(started_at), count(distinct result) from queue_pg.all_jobs") == [
        (60, 1, 1)
    ]


@pytest.mark.parametrize("seed", range(4))
async def test_a_crowd_at_random(conn: Connection, dsn: str, seed: int) -> None:
    """Sessions submit, cancel, retry, claim, complete and fail as they like; in the end all jobs have ended."""
    chosen = random.Random(seed)
    plans = [
        [
            chosen.choice(["submit", "submit", "urgent", "fresh", "cancel", "retry", "claim", "claim", "end", "settle"])
            for _ in range(60)
        ]
        for _ in range(6)
    ]

    async def session(plan: list[str], own: random.Random) -> list[str | None]:
        refused: list[str | None] = []
        async with await Connection.connect(dsn, autocommit=True) as each:
            for action in plan:
                try:
                    await act(each, action, own)
                except psycopg.Error as error:
                    refused.append(error.sqlstate)
        return refused

    async def act(each: Connection, action: str, own: random.Random) -> None:
        jobs = "select id, lease_token, state::text from queue_pg.all_jobs order by random() limit 1"
        if action in ("submit", "urgent", "fresh"):
            options = {"submit": "", "urgent": f", priority => {own.randrange(9)}", "fresh": ", cache_for => '0'"}
            payload = f"'{{\"n\": {own.randrange(3)}}}'"
            await each.execute(f"select queue_pg.submit('k', {payload}, cache => true{options[action]})".encode())
        elif action == "claim":
            await each.execute("select count(*) from queue_pg.claim('w', '{default}', max_jobs => 2)")
        elif action == "settle":
            await each.execute("select queue_pg.maintain()")
        else:
            for job, token, state in await all_of(each, jobs):
                if action == "cancel" and own.random() < 0.5:
                    await each.execute("select count(*) from queue_pg.cancel(%s)", (job,))
                elif action == "retry":
                    await each.execute("select count(*) from queue_pg.retry(%s)", (job,))
                elif action == "end" and state == "running":
                    end = own.choice(["complete", "complete", "discard", "cancel", "release"])
                    await each.execute("select queue_pg.finish_one(%s, %s, %s, '1', '{}', null)", (job, token, end))

    results = await asyncio.gather(*(session(plan, random.Random(f"{seed} {n}")) for n, plan in enumerate(plans)))
    assert {state for refused in results for state in refused} <= {"QP001", "QP002", "QP003"}
    await check(conn)
    await drive(conn)
    assert await all_of(conn, "select count(*) from queue_pg.cache_entries where job_id is not null") == [(0,)]
    wrong = (
        "select id from queue_pg.finished_jobs"
        " where state = 'completed' and (cached_from is null) <> (started_at is not null)"
    )
    assert await all_of(conn, wrong) == []
