"""Where features meet: a job that is of several of them at once, and what people do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection[Any]

CACHED = "select queue_pg.submit('k', '{\"a\": 1}', cache => true)"
# Two subtasks in a queue of their own.
PLAN = '{"subtasks": ["a", "b"], "queue": "parts"}'


async def connect(dsn: str, *, autocommit: bool = False) -> Connection:
    """A session in which nothing waits for ever."""
    return await Connection.connect(dsn, autocommit=autocommit, options="-c statement_timeout=10s")


async def rows(conn: Connection, query: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(query.encode(), args)).fetchall()


async def value(conn: Connection, query: str, *args: Any) -> Any:
    [(found,)] = await rows(conn, query, *args)
    return found


async def states(conn: Connection, *jobs: UUID) -> list[str]:
    return [await value(conn, "select queue_pg.state_of(%s)", job) for job in jobs]


async def claim(conn: Connection, queue: str = "default", wanted: int = 10) -> list[tuple[UUID, int]]:
    return await rows(conn, "select id, lease_token from queue_pg.claim('w', array[%s], max_jobs => %s)", queue, wanted)


async def finish(conn: Connection, job: tuple[UUID, int], outcome: str = "complete", result: str = "1") -> None:
    await conn.execute("select queue_pg.finish_one(%s, %s, %s, %s, null, null)", (*job, outcome, result))


async def until_blocked(conn: Connection, pending: asyncio.Task[Any], pid: int) -> None:
    """Return when it waits for a lock, or has ended."""
    query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    while not pending.done() and await rows(conn, query, pid) != [(True,)]:
        await asyncio.wait({pending}, timeout=0.01)


async def sqlstate_of(conn: Connection, query: str, args: Sequence[Any] = ()) -> str | None:
    """How the statement is refused; None: it is not."""
    try:
        await conn.execute(query.encode(), args)
    except psycopg.Error as error:
        return error.sqlstate
    return None


# --- a plan whose result is shared ------------------------------------------------------------------------------------


async def planned(conn: Connection) -> tuple[UUID, list[tuple[UUID, int]]]:
    """A job of the cache that waits for its subtasks, which run."""
    task = await value(conn, CACHED)
    [held] = await claim(conn)
    await finish(conn, held, "plan", PLAN)
    return task, await claim(conn, "parts")


async def test_a_planned_job_answers_those_who_share_its_work(conn: Connection) -> None:
    task, subtasks = await planned(conn)
    waiting = await value(conn, CACHED)
    assert await states(conn, task, waiting) == ["waiting", "waiting"]
    for subtask in subtasks:
        await finish(conn, subtask)
    assert await states(conn, task, waiting) == ["completed", "completed"]
    assert await rows(conn, "select result, cached_from from queue_pg.job(%s)", waiting) == [([1, 1], task)]
    assert await states(conn, await value(conn, CACHED)) == ["completed"]


@pytest.mark.parametrize("way", ["a subtask fails", "cancel", "expire"])
async def test_a_planned_job_that_does_not_complete_passes_its_work_on(
    conn: Connection, clock: Clock, way: str
) -> None:
    task, subtasks = await planned(conn)
    waiting = await value(conn, CACHED)
    if way == "a subtask fails":
        await finish(conn, subtasks[0], "discard")
    elif way == "cancel":
        await conn.execute("select queue_pg.cancel(%s)", (task,))
    else:
        await conn.execute("update queue_pg.jobs set expires_at = queue_pg.now() where id = %s", (task,))
        clock.advance(1)
        await conn.execute("select queue_pg.maintain()")
    assert await states(conn, waiting) == ["queued"]


async def test_a_planned_job_is_none_of_those_who_wait_for_the_work(conn: Connection) -> None:
    """An older answer is not for it, and the work that it does is not given to it again."""
    task, subtasks = await planned(conn)
    await conn.execute("select queue_pg.cancel(%s)", (task,))
    [done] = [await value(conn, CACHED)]
    [held] = await claim(conn)
    await finish(conn, held)
    assert await states(conn, done) == ["completed"]
    await conn.execute("select queue_pg.retry(%s)", (task,))
    await value(conn, "select queue_pg.submit('k', '{\"a\": 1}', cache_for => '0')")
    await conn.execute("select queue_pg.defer_cache(array(select cache_key from queue_pg.cache_entries))")
    await conn.execute("select queue_pg.maintain()")
    assert await states(conn, task) == ["waiting"]
    subtasks = await claim(conn, "parts")
    assert len(subtasks) == 2
    for subtask in subtasks:
        await finish(conn, subtask)
    assert await rows(conn, "select state::text, result from queue_pg.job(%s)", task) == [("completed", [1, 1])]
    assert await rows(conn, "select id from queue_pg.jobs where state = 'waiting'") == []


async def test_a_planned_job_is_retried_beside_the_one_that_does_its_work_now(conn: Connection) -> None:
    """It has subtasks of its own: it takes those up again instead of waiting for the other."""
    task, [first, second] = await planned(conn)
    await finish(conn, first, "discard")
    await finish(conn, second)
    other = await value(conn, CACHED)
    [held] = await claim(conn)
    await conn.execute("select queue_pg.retry(%s)", (task,))
    await finish(conn, held, result='"other"')
    assert await states(conn, task, other) == ["waiting", "completed"]
    [again] = await claim(conn, "parts")
    await finish(conn, again)
    assert await rows(conn, "select state::text, result, cached_from from queue_pg.job(%s)", task) == [
        ("completed", [1, 1], None)
    ]


# --- what is cancelled together with its subtasks ---------------------------------------------------------------------


async def test_cancelling_a_batch_and_its_subtasks_keeps_the_order_of_locks(conn: Connection, dsn: str) -> None:
    """The worker that heartbeats a subtask and a later job of the batch has both or waits for both."""
    batch = await value(conn, "select queue_pg.create_batch()")
    task = await value(conn, "select queue_pg.submit('k', batch_id => %s)", batch)
    [held] = await claim(conn)
    await finish(conn, held, "plan", PLAN)
    later = await value(conn, "select queue_pg.submit('k', batch_id => %s)", batch)
    [first, _] = await claim(conn, "parts")
    [last] = await claim(conn)
    async with await connect(dsn) as worker, await connect(dsn) as other:
        await worker.execute("select queue_pg.heartbeat(array[%s], array[%s::bigint])", first)
        pending = asyncio.create_task(sqlstate_of(other, "select queue_pg.cancel_batch(%s)", (batch,)))
        await until_blocked(conn, pending, other.info.backend_pid)
        # As its next statement would; in one it comes to the same.
        assert await sqlstate_of(worker, "select queue_pg.heartbeat(array[%s], array[%s::bigint])", last) is None
        await worker.commit()
        assert await pending is None
        await other.commit()
    assert await states(conn, task, later, first[0]) == ["cancelled", "cancelled", "cancelled"]


@pytest.mark.parametrize("way", ["cancel", "cancel_batch"])
async def test_limits_are_locked_after_all_jobs_of_a_cancel(conn: Connection, dsn: str, way: str) -> None:
    """A task has a running subtask, and a subtask of that is about to be finished; all count against one key."""
    await conn.execute("select queue_pg.set_limit('key', 'a', max_running => 9)")
    batch = await value(conn, "select queue_pg.create_batch()")
    task = await value(conn, "select queue_pg.submit('k', limit_key => 'a', batch_id => %s)", batch)
    [held] = await claim(conn)
    await finish(conn, held, "plan", PLAN)
    [runs, inner] = await claim(conn, "parts")
    await finish(conn, inner, "plan", PLAN)
    [innermost, _] = await claim(conn, "parts")
    async with await connect(dsn) as worker, await connect(dsn) as other:
        await worker.execute("select from queue_pg.jobs where id = %s for update", (innermost[0],))
        pending = asyncio.create_task(
            sqlstate_of(other, f"select queue_pg.{way}(%s)", (batch if way == "cancel_batch" else task,))
        )
        await until_blocked(conn, pending, other.info.backend_pid)
        assert await sqlstate_of(worker, "select queue_pg.complete(%s, %s)", innermost) is None
        await worker.commit()
        assert await pending is None
        await other.commit()
    assert await states(conn, task, runs[0], inner[0]) == ["cancelled"] * 3
    assert await value(conn, "select running from queue_pg.limits") == 0
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []


async def test_a_plan_made_while_a_cancel_waits_for_it_is_cancelled_too(conn: Connection, dsn: str) -> None:
    batch = await value(conn, "select queue_pg.create_batch()")
    task = await value(conn, "select queue_pg.submit('k', batch_id => %s)", batch)
    [held] = await claim(conn)
    async with await connect(dsn) as worker, await connect(dsn) as other:
        await worker.execute("select queue_pg.finish_one(%s, %s, 'plan', %s, null, null)", (*held, PLAN))
        pending = asyncio.create_task(sqlstate_of(other, "select queue_pg.cancel_batch(%s)", (batch,)))
        await until_blocked(conn, pending, other.info.backend_pid)
        await worker.commit()
        assert await pending is None
        await other.commit()
    assert await states(conn, task) == ["cancelled"]
    assert await rows(conn, "select id from queue_pg.jobs") == []


async def test_a_cancel_of_many_leaves_the_task_whose_subtask_somebody_holds(conn: Connection, dsn: str) -> None:
    """It waits for no more than a moment, with what it has locked."""
    await conn.execute("select queue_pg.set_limit('key', 'a', max_running => 9)")
    task = await value(conn, "select queue_pg.submit('k', limit_key => 'a')")
    [held] = await claim(conn)
    await finish(conn, held, "plan", PLAN)
    [subtask, _] = await claim(conn, "parts")
    later = await value(conn, "select queue_pg.submit('k', limit_key => 'a')")
    await claim(conn)
    act = "select matched, changed, skipped from queue_pg.act_on_jobs('cancel', '{\"queue\": \"default\"}')"
    async with await connect(dsn) as worker, await connect(dsn, autocommit=True) as other:
        await worker.execute("select from queue_pg.jobs where id = %s for update", (subtask[0],))
        assert await rows(other, act) == [(2, 1, {"locked": 1})]
        assert await states(conn, task, later) == ["waiting", "cancelled"]
        assert await sqlstate_of(worker, "select queue_pg.complete(%s, %s)", subtask) is None
        await worker.commit()
        assert await rows(other, act) == [(1, 1, {})]
    assert await rows(conn, "select id from queue_pg.jobs") == []
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []


async def test_retries_of_many_lock_batches_in_one_order(conn: Connection, dsn: str) -> None:
    [low, high] = [await value(conn, "select queue_pg.create_batch()") for _ in range(2)]
    # The first is of the batch that comes second.
    for batch in (high, low):
        await conn.execute("select queue_pg.submit('k', batch_id => %s)", (batch,))
    for job in await claim(conn):
        await finish(conn, job, "discard")
    act = "select * from queue_pg.act_on_jobs('retry', '{\"state\": \"failed\"}')"
    lock = "select from queue_pg.batches where id = %s for update"
    async with await connect(dsn) as one, await connect(dsn) as other:
        await one.execute(lock.encode(), (low,))
        pending = asyncio.create_task(sqlstate_of(other, act))
        await until_blocked(conn, pending, other.info.backend_pid)
        assert await sqlstate_of(one, lock, (high,)) is None
        await one.commit()
        assert await pending is None
        await other.commit()


async def test_one_task_that_cannot_be_retried_keeps_no_other_from_it(conn: Connection, clock: Clock) -> None:
    """Its subtask is forgotten sooner than itself."""
    await conn.execute("select queue_pg.configure_queue('parts', retention => '1 minute')")
    batch = await value(conn, "select queue_pg.create_batch()")
    task = await value(conn, "select queue_pg.submit('k', batch_id => %s)", batch)
    [held] = await claim(conn)
    await finish(conn, held, "plan", PLAN)
    plain = await value(conn, "select queue_pg.submit('k', batch_id => %s)", batch)
    for job in (*await claim(conn, "parts"), *await claim(conn)):
        await finish(conn, job, "discard")
    clock.advance(3600)
    await conn.execute("select queue_pg.sweep()")
    assert await rows(conn, "select retried from queue_pg.retry_failed(%s)", batch) == [(1,)]
    assert await states(conn, task, plain) == ["failed", "queued"]
    await conn.execute("select queue_pg.cancel(%s)", (plain,))
    for state, changed, skipped in (("failed", 0, {"incomplete": 1}), ("cancelled", 1, {})):
        assert await rows(
            conn,
            "select changed, skipped from queue_pg.act_on_jobs('retry', jsonb_build_object('state', %s::text))",
            state,
        ) == [(changed, skipped)]
    assert await states(conn, task, plain) == ["failed", "queued"]


# --- locks of shared work ---------------------------------------------------------------------------------------------


async def by_key(conn: Connection) -> list[str]:
    """Two payloads, the one with the greater key of the cache first."""
    return [
        row[0]
        for row in await rows(
            conn,
            "select n::text from generate_series(1, 2) n order by queue_pg.cache_key('default', 'k', to_jsonb(n)) desc",
        )
    ]


async def test_those_who_retry_a_batch_and_those_who_submit_the_same_work_do_not_deadlock(
    conn: Connection, dsn: str
) -> None:
    batch = await value(conn, "select queue_pg.create_batch()")
    [high, low] = await by_key(conn)
    for payload in (high, low):
        await conn.execute("select queue_pg.submit('k', %s::jsonb, cache => true, batch_id => %s)", (payload, batch))
    for job in await claim(conn):
        await finish(conn, job, "discard")
    submit = "select queue_pg.submit('k', %s::jsonb, cache => true)"
    async with await connect(dsn) as one, await connect(dsn) as other:
        await one.execute(submit.encode(), (low,))
        pending = asyncio.create_task(sqlstate_of(other, "select queue_pg.retry_failed(%s)", (batch,)))
        await until_blocked(conn, pending, other.info.backend_pid)
        assert await sqlstate_of(one, submit, (high,)) is None
        await one.commit()
        assert await pending is None
        await other.commit()


async def test_forgetting_answers_and_submitting_the_same_work_do_not_deadlock(conn: Connection, dsn: str) -> None:
    # As they lie in the table is not the order of their keys.
    [high, low] = await by_key(conn)
    for cache_for in (None, "0"):
        for payload in (high, low):
            await conn.execute(
                "select queue_pg.submit('k', %s::jsonb, cache => true, cache_for => %s::interval)", (payload, cache_for)
            )
        if cache_for is None:
            for job in await claim(conn):
                await finish(conn, job)
    submit = "select queue_pg.submit('k', %s::jsonb, cache_for => '0')"
    async with await connect(dsn) as one, await connect(dsn) as other:
        await one.execute(submit.encode(), (low,))
        pending = asyncio.create_task(sqlstate_of(other, "select queue_pg.forget_answers()"))
        await until_blocked(conn, pending, other.info.backend_pid)
        assert await sqlstate_of(one, submit, (high,)) is None
        await one.commit()
        assert await pending is None
        await other.commit()


async def test_two_who_wait_for_the_same_work_and_then_overtake_it_do_not_deadlock(conn: Connection, dsn: str) -> None:
    await value(conn, CACHED)
    twice = "select * from queue_pg.submit_many('[{p}, {q}]')".replace(
        "{p}", '{"kind": "k", "payload": {"a": 1}, "cache": true}'
    ).replace("{q}", '{"kind": "k", "payload": {"a": 1}, "cache": true, "priority": 9}')
    async with await connect(dsn) as one, await connect(dsn) as other, await connect(dsn) as third:
        for each in (one, other):
            await each.execute(CACHED.encode())
        assert await sqlstate_of(one, CACHED.replace("=> true", "=> true, priority => 5")) is None
        # In two calls, and in one.
        others = [
            asyncio.create_task(sqlstate_of(other, CACHED.replace("=> true", "=> true, priority => 7"))),
            asyncio.create_task(sqlstate_of(third, twice)),
        ]
        for pending, each in zip(others, (other, third), strict=True):
            await until_blocked(conn, pending, each.info.backend_pid)
        await one.commit()
        done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result() for task in done} == {None}
        if others[0].done():
            await other.commit()
        else:
            await third.commit()
        assert [await pending for pending in others] == [None, None]
        await other.commit()
        await third.commit()


async def test_a_retry_that_waits_for_the_same_work_does_not_hold_its_batch(conn: Connection, dsn: str) -> None:
    batch = await value(conn, "select queue_pg.create_batch()")
    retried = await value(conn, "select queue_pg.submit('k', '{\"a\": 1}', cache => true, batch_id => %s)", batch)
    [held] = await claim(conn)
    await finish(conn, held, "discard")
    async with (
        await connect(dsn) as one,
        await connect(dsn) as other,
        await connect(dsn, autocommit=True) as third,
    ):
        await one.execute(CACHED.encode())
        pending = asyncio.create_task(sqlstate_of(other, "select queue_pg.retry(%s)", (retried,)))
        await until_blocked(conn, pending, other.info.backend_pid)
        closing = asyncio.create_task(sqlstate_of(third, "select queue_pg.close_batch(%s)", (batch,)))
        await until_blocked(conn, closing, third.info.backend_pid)
        assert await sqlstate_of(one, "select queue_pg.submit('k', batch_id => %s)", (batch,)) in (None, "QP002")
        await one.rollback()
        assert await pending is None
        await other.commit()
        assert await closing is None


async def test_a_retry_in_a_batch_and_its_cancel_do_not_deadlock(conn: Connection, dsn: str) -> None:
    """The retried job waits for a parent of the same batch."""
    batch = await value(conn, "select queue_pg.create_batch()")
    parent = await value(conn, "select queue_pg.submit('k', batch_id => %s)", batch)
    child = await value(
        conn,
        "select queue_pg.submit('k', batch_id => %s, depends_on => jsonb_build_array(%s::text))",
        batch,
        str(parent),
    )
    await conn.execute("select queue_pg.cancel(%s)", (child,))
    async with await connect(dsn) as one, await connect(dsn, autocommit=True) as other, await connect(dsn) as third:
        # Holds the batch, as maintenance does for a moment.
        await third.execute("select from queue_pg.batches for update")
        pending = asyncio.create_task(sqlstate_of(other, "select queue_pg.retry(%s)", (child,)))
        await until_blocked(conn, pending, other.info.backend_pid)
        # Not locked by who waits for the batch.
        await one.execute("select from queue_pg.jobs where id = %s for update nowait", (parent,))
        await one.rollback()
        await third.commit()
        assert await pending is None
    assert await states(conn, parent, child) == ["queued", "waiting"]


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_limit_removed_while_its_jobs_run_counts_right_when_a_template_makes_it_again(conn: Connection) -> None:
    await conn.execute("select queue_pg.set_limit('key', 't:*', max_running => 1)")
    await conn.execute("insert into queue_pg.jobs (kind, limit_key) select 'k', 't:1' from generate_series(1, 3)")
    [first] = await claim(conn)
    await conn.execute("select queue_pg.remove_limit('key', 't:1')")
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []
    [second] = await claim(conn)
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []
    await finish(conn, first)
    assert await value(conn, "select running from queue_pg.limits where name = 't:1'") == 1
    assert await claim(conn) == []
    await finish(conn, second)
    assert len(await claim(conn)) == 1
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []


async def test_a_limit_is_removed_while_a_worker_ends_its_job(conn: Connection, dsn: str) -> None:
    await conn.execute("select queue_pg.set_limit('key', 't:*', max_running => 1)")
    await conn.execute("insert into queue_pg.jobs (kind, limit_key) select 'k', 't:1' from generate_series(1, 2)")
    [first] = await claim(conn)
    async with await connect(dsn) as worker, await connect(dsn, autocommit=True) as other:
        await worker.execute("select queue_pg.heartbeat(array[%s], array[%s::bigint])", first)
        pending = asyncio.create_task(sqlstate_of(other, "select queue_pg.remove_limit('key', 't:1')"))
        await until_blocked(conn, pending, other.info.backend_pid)
        # Takes its slot off the limit: no lock of that is held by who waits for the job.
        assert await sqlstate_of(worker, "select queue_pg.complete(%s, %s)", first) is None
        await worker.commit()
        assert await pending is None
    await claim(conn)
    assert await value(conn, "select running from queue_pg.limits where name = 't:1'") == 1
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []


async def test_a_limit_is_removed_while_a_worker_has_a_job_and_waits_for_a_later_one(
    conn: Connection, dsn: str
) -> None:
    """The earlier one has started only after the later one was locked."""
    await conn.execute("select queue_pg.set_limit('key', 'a', max_running => 9)")
    early = await value(conn, "select queue_pg.submit('k', delay => '1 hour', limit_key => 'a')")
    late = await value(conn, "select queue_pg.submit('k', limit_key => 'a')")
    await claim(conn)
    lock = "select from queue_pg.jobs where id = %s for update"
    async with (
        await connect(dsn) as worker,
        await connect(dsn) as holder,
        await connect(dsn, autocommit=True) as other,
    ):
        # If they wait for each other it is the removal that finds out.
        await worker.execute("set deadlock_timeout = '1min'")
        await worker.commit()
        await other.execute("set deadlock_timeout = '500ms'")
        await holder.execute("select from queue_pg.limits for update")
        pending = asyncio.create_task(sqlstate_of(other, "select queue_pg.remove_limit('key', 'a')"))
        await until_blocked(conn, pending, other.info.backend_pid)
        await worker.execute(
            "update queue_pg.jobs set state = 'running', counted = 2, worker_id = 'w', lease_token = 1,"
            " claimed_at = now(), lease_expires_at = 'infinity' where id = %s",
            (early,),
        )
        await worker.commit()
        await worker.execute(lock.encode(), (early,))
        wanting = asyncio.create_task(sqlstate_of(worker, lock, (late,)))
        await until_blocked(conn, wanting, worker.info.backend_pid)
        assert not wanting.done()
        await holder.commit()
        assert await wanting is None
        await worker.commit()
        assert await pending is None
    assert await rows(conn, "select from queue_pg.limits") == []
    assert await rows(conn, "select counted from queue_pg.jobs order by id") == [(None,), (None,)]


async def test_a_limit_set_while_a_claim_makes_it_from_a_template_counts_that_claim(conn: Connection, dsn: str) -> None:
    await conn.execute("select queue_pg.set_limit('key', 't:*', max_running => 2)")
    await conn.execute("insert into queue_pg.jobs (kind, limit_key) select 'k', 't:1' from generate_series(1, 9)")
    async with await connect(dsn) as worker, await connect(dsn, autocommit=True) as other:
        assert len(await claim(worker)) == 2
        set_limit = "select queue_pg.set_limit('key', 't:1', max_running => 3)"
        pending = asyncio.create_task(sqlstate_of(other, set_limit))
        await until_blocked(conn, pending, other.info.backend_pid)
        await worker.commit()
        assert await pending is None
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []
    assert len(await claim(conn)) == 1


async def test_a_claim_waits_once_however_many_limits_are_held(conn: Connection, dsn: str) -> None:
    keys = [f"k{number}" for number in range(200)]
    for key in keys:
        await conn.execute("select queue_pg.set_limit('key', %s, max_running => 1)", (key,))
        await conn.execute("insert into queue_pg.jobs (kind, limit_key) values ('k', %s)", (key,))
    async with await connect(dsn) as other:
        await other.execute("select from queue_pg.limits for update")
        # A tenth of a second for each would be 20 s.
        await conn.execute("set statement_timeout = '15s'")
        assert await claim(conn, wanted=500) == []
        await conn.execute("set statement_timeout = 0")
    assert len(await claim(conn, wanted=500)) == 200


async def test_a_limit_that_somebody_has_set_is_not_forgotten_with_those_of_its_template(conn: Connection) -> None:
    await conn.execute("select queue_pg.set_limit('key', 't:*', max_running => 1)")
    await conn.execute("insert into queue_pg.jobs (kind, limit_key) select 'k', 't:1' from generate_series(1, 9)")
    [job] = await claim(conn)
    await conn.execute("select queue_pg.set_limit('key', 't:1', max_running => 3)")
    await finish(conn, job)
    await conn.execute("select queue_pg.tidy_limits()")
    await conn.execute("select queue_pg.set_limit('key', 't:*', max_running => 2)")
    assert await value(conn, "select max_running from queue_pg.limits where name = 't:1'") == 3
    assert len(await claim(conn)) == 3


async def test_a_limit_whose_pause_is_over_is_forgotten_when_it_is_idle(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.set_limit('key', 't:*', max_running => 1)")
    await conn.execute("insert into queue_pg.jobs (kind, limit_key) values ('k', 't:1')")
    [job] = await claim(conn)
    await conn.execute("select queue_pg.pause_limit('key', 't:1', queue_pg.now() + interval '1 hour')")
    await finish(conn, job)
    assert await value(conn, "select queue_pg.tidy_limits()") == 0
    clock.advance(3601)
    assert await value(conn, "select queue_pg.tidy_limits()") == 1


async def test_setting_a_limit_keeps_no_observer_waiting(conn: Connection, dsn: str) -> None:
    async with await connect(dsn) as other:
        await other.execute("select queue_pg.set_limit('key', 'a', max_running => 1)")
        await conn.execute("set lock_timeout = '1s'")
        assert await sqlstate_of(conn, "select queue_pg.observe('me')") is None
        assert await sqlstate_of(conn, "select queue_pg.unobserve('me')") is None


# --- copies -----------------------------------------------------------------------------------------------------------


async def test_a_rerun_that_ends_with_its_parents_keeps_its_limit_and_cost(conn: Connection) -> None:
    parent = await value(conn, "select queue_pg.submit('k')")
    child = await value(
        conn,
        "select queue_pg.submit('k', depends_on => jsonb_build_array(%s::text), limit_key => 'a', cost => 7)",
        str(parent),
    )
    [held] = await claim(conn)
    await finish(conn, held, "discard")
    assert await rows(conn, "select state::text, limit_key, cost, rerun_of from queue_pg.rerun(%s)", child) == [
        ("cancelled", "a", 7, child)
    ]


async def test_a_schedule_without_an_organisation_is_that_of_the_default_one(conn: Connection) -> None:
    await conn.execute("set statement_timeout = '5s'")
    [made, known] = [
        await value(conn, "select created from queue_pg.schedule('s', 'k', every => '1 hour', org => null)")
        for _ in range(2)
    ]
    assert (made, known) == (True, False)
    assert await value(conn, "select org from queue_pg.schedules") == "default"
