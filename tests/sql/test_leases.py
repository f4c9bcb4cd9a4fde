"""Claiming, keeping and losing leases; the fence on every write by a worker."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def rows(conn: Connection, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement, args)).fetchall()


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    (row,) = await rows(conn, statement, *args)
    return row[0] if len(row) == 1 else row


async def submit(conn: Connection, **columns: Any) -> UUID:
    named = ", ".join(f"{name} => %({name})s" for name in columns)
    statement = f"select queue_pg.submit('k'{', ' + named if named else ''})"
    row = await (await conn.execute(statement, columns)).fetchone()
    assert row is not None
    return row[0]


async def claim(conn: Connection, worker: str = "w", **named: Any) -> list[tuple[Any, ...]]:
    extra = "".join(f", {name} => %({name})s" for name in named)
    statement = f"select id, lease_token from queue_pg.claim(%(worker)s, '{{default}}'{extra})"
    return await (await conn.execute(statement, {"worker": worker, **named})).fetchall()


STALE_WRITES = {
    "heartbeat": "select count(*) = 0 from queue_pg.heartbeat(array[%(id)s::uuid], array[%(token)s::bigint])",
    "held": "select count(*) = 0 from queue_pg.held(array[%(id)s::uuid], array[%(token)s::bigint])",
    **{
        outcome: "select not accepted from"
        f" queue_pg.finish(array[%(id)s::uuid], array[%(token)s::bigint], array['{outcome}'])"
        for outcome in ("complete", "fail", "discard", "snooze", "release", "cancel")
    },
}


@pytest.mark.parametrize("write", STALE_WRITES)
@pytest.mark.parametrize("how", ["reaped", "claimed again", "snoozed and claimed again", "cancelled", "retried"])
async def test_a_stale_lease_can_write_nothing(conn: Connection, clock: Clock, write: str, how: str) -> None:
    job = await submit(conn)
    assert await claim(conn, "first") == [(job, 1)]
    if how == "snoozed and claimed again":
        await conn.execute("select queue_pg.snooze(%s, 1, '0')", (job,))
    elif how in ("cancelled", "retried"):
        await conn.execute("select queue_pg.cancel(%s)", (job,))
    else:
        clock.advance(31)
        assert await rows(conn, "select state from queue_pg.reap()") == [("queued",)]
    if how == "retried":
        await conn.execute("select queue_pg.retry(%s)", (job,))
    if how.endswith("claimed again") or how == "retried":
        # The attempt is 1 once more: it would be no fence.
        assert await claim(conn, "second") == [(job, 2)]
    before = await one(conn, "select row(j.*)::text from queue_pg.all_jobs j where id = %s", job)
    row = await (await conn.execute(STALE_WRITES[write], {"id": job, "token": 1})).fetchone()
    assert row == (True,)
    assert await one(conn, "select row(j.*)::text from queue_pg.all_jobs j where id = %s", job) == before


@pytest.mark.parametrize("outcome", ["complete", "fail", "discard", "snooze", "release", "cancel"])
async def test_no_token_is_no_lease(conn: Connection, outcome: str) -> None:
    queued, running = await submit(conn), await submit(conn, priority=1)
    await claim(conn)
    answers = await rows(
        conn,
        "select accepted, state from queue_pg.finish(%s::uuid[], array[null, null]::bigint[], array[%s, %s])",
        [running, queued],
        outcome,
        outcome,
    )
    assert answers == [(False, "running"), (False, "queued")]


async def test_of_a_job_named_twice_the_first_entry_counts(conn: Connection) -> None:
    job = await submit(conn)
    await claim(conn)
    statement = (
        "select accepted, state from queue_pg.finish(array[%s, %s]::uuid[], %s::bigint[], '{complete,complete}',"
        " array['1', '2']::jsonb[])"
    )
    assert await rows(conn, statement, job, job, [0, 1]) == [(False, "running"), (False, "running")]
    assert await rows(conn, statement, job, job, [1, 0]) == [(True, "completed"), (False, "completed")]
    assert await one(conn, "select result from queue_pg.job(%s)", job) == 1


async def test_stale_single_writes_raise_lease_lost_with_the_state(conn: Connection) -> None:
    job = await submit(conn)
    await claim(conn)
    await conn.execute("select queue_pg.complete(%s, 1)", (job,))
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute("select queue_pg.complete(%s, 1)", (job,))
    assert refused.value.sqlstate == "QP003"
    assert '"state": "completed"' in str(refused.value.diag.message_detail)


async def test_lost_leases_burn_no_attempt_until_the_job_is_the_cause(conn: Connection, clock: Clock) -> None:
    job = await submit(conn, max_attempts=1)
    for loss in (1, 2, 3):
        assert await claim(conn) == [(job, loss)]
        assert await one(conn, "select attempt from queue_pg.job(%s)", job) == 1
        clock.advance(31)
        await conn.execute("select queue_pg.reap()")
    assert await one(conn, "select state::text, error->>'code' from queue_pg.job(%s)", job) == ("failed", "lease_lost")


async def test_heartbeat_keeps_the_lease_but_not_beyond_the_timeout(conn: Connection, clock: Clock) -> None:
    job = await submit(conn, timeout=timedelta(seconds=60))
    await claim(conn)
    beats = 0
    for _ in range(10):
        clock.advance(20)
        if not await rows(conn, "select 1 from queue_pg.heartbeat(array[%s::uuid], array[1::bigint])", job):
            break
        beats += 1
        assert await rows(conn, "select 1 from queue_pg.reap()") == []
    # 60 s of timeout and one lease of 30 s: the beats at 20, 40, 60, 80 count, the one at 100 s does not.
    assert beats == 4
    assert await rows(conn, "select state from queue_pg.reap()") == [("scheduled",)]
    assert await one(conn, "select error->>'code' from queue_pg.job(%s)", job) == "timeout"


async def test_lease_length_comes_from_claim_then_queue_then_settings(conn: Connection) -> None:
    async def length(**named: Any) -> Any:
        await submit(conn)
        ((job, _),) = await claim(conn, **named)
        return await one(conn, "select lease_expires_at - claimed_at from queue_pg.jobs where id = %s", job)

    assert await length() == timedelta(seconds=30)
    await conn.execute("select queue_pg.configure_queue('default', lease => '7 s')")
    assert await length() == timedelta(seconds=7)
    assert await length(lease=timedelta(seconds=3)) == timedelta(seconds=3)


async def test_order_is_priority_then_due_time_then_submission(conn: Connection) -> None:
    for name, priority, hours in (("c", 0, 1), ("d", 0, 0), ("a", 20, 0), ("b", 1, 0), ("e", -20, 5)):
        await conn.execute(
            "insert into queue_pg.jobs (kind, tags, priority, run_at)"
            " values ('k', array[%s], %s, queue_pg.now() - %s::interval)",
            (name, priority, timedelta(hours=hours)),
        )
    claimed = await rows(conn, "select tags[1] from queue_pg.claim('w', '{default}', max_jobs => 9)")
    assert [name for (name,) in claimed] == ["a", "b", "c", "d", "e"]


async def test_claims_take_only_what_was_asked_for(conn: Connection) -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, queue, org) values ('x', 'q1', 'a'), ('y', 'q1', 'b'), ('x', 'q2', 'a')"
    )
    found = "select kind, queue, org from queue_pg.claim('w', %s, %s, 10, '1 s', %s)"
    assert await rows(conn, found, ["q1"], ["z"], None) == []
    assert await rows(conn, found, ["q3"], None, None) == []
    assert await rows(conn, found, ["q1"], ["x"], "b") == []
    assert sorted(await rows(conn, found, ["q1", "q2"], ["x"], "a")) == [("x", "q1", "a"), ("x", "q2", "a")]
    assert await rows(conn, found, ["q1"], None, None) == [("y", "q1", "b")]


async def test_a_big_tenant_cannot_starve_a_small_one(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, org) select 'k', 'big' from generate_series(1, 500)")
    await conn.execute("insert into queue_pg.jobs (kind, org) select 'k', 'small' from generate_series(1, 3)")
    orgs = [row[0] for row in await rows(conn, "select org from queue_pg.claim('w', '{default}', max_jobs => 10)")]
    assert len(orgs) == 10
    assert orgs.count("small") == 3


async def test_a_queue_of_many_tenants_leaves_none_out_beside_another_queue(conn: Connection) -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, queue, org)"
        " select 'k', 'many', 'o' || n from generate_series(1, 600) n, generate_series(1, 20)"
    )
    await conn.execute(
        "insert into queue_pg.jobs (kind, queue, org) select 'k', 'one', 'z' from generate_series(1, 1000)"
    )
    for _ in range(8):
        await conn.execute("select queue_pg.claim('w', '{many,one}', max_jobs => 1500)")
    served = "select count(distinct org) from queue_pg.jobs where queue = %s and state = 'running'"
    assert [await one(conn, served, queue) for queue in ("many", "one")] == [600, 1]


async def test_a_paused_queue_gives_nothing_until_resumed_or_its_time(conn: Connection, clock: Clock) -> None:
    await submit(conn)
    await conn.execute("select queue_pg.pause_queue('default')")
    assert await claim(conn) == []
    await conn.execute("select queue_pg.resume_queue('default')")
    await conn.execute("select queue_pg.pause_queue('default', queue_pg.now() + '1 min')")
    assert await claim(conn) == []
    clock.advance(61)
    assert len(await claim(conn)) == 1


async def test_many_claimers_take_every_job_once(conn: Connection, dsn: str) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 1000)")

    async def work(name: str) -> list[UUID]:
        taken: list[UUID] = []
        async with await Connection.connect(dsn, autocommit=True) as own:
            while found := await claim(own, name, max_jobs=7):
                taken += [job for job, _ in found]
        return taken

    shares = await asyncio.gather(*(work(f"w{n}") for n in range(6)))
    everything = [job for share in shares for job in share]
    assert len(everything) == len(set(everything)) == 1000


async def test_retries_back_off_to_the_cap_of_their_kind(conn: Connection, clock: Clock) -> None:
    await conn.execute(
        "select queue_pg.register_kinds(%s)",
        ('[{"kind": "k", "max_attempts": 6, "retry_base_seconds": 10, "retry_cap_seconds": 60}]',),
    )
    job = await submit(conn)
    waits: list[float] = []
    for attempt in range(1, 7):
        await claim(conn)
        await conn.execute('select queue_pg.fail(%s, %s, \'{"code": "x"}\')', (job, attempt))
        waits.append(
            await one(conn, "select extract(epoch from run_at - queue_pg.now())::float8 from queue_pg.job(%s)", job)
        )
        clock.advance(61)
        await conn.execute("select queue_pg.promote()")
    assert await one(conn, "select state::text, attempt from queue_pg.job(%s)", job) == ("failed", 6)
    for wait, whole in zip(waits, (10, 20, 40, 60, 60), strict=False):
        assert whole / 2 - 1 <= wait <= whole


async def test_snooze_waits_as_told_and_burns_nothing(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn, max_attempts=1)
    for token in (1, 2, 3):
        assert await claim(conn) == [(job, token)]
        assert await one(conn, "select queue_pg.snooze(%s, %s, '20 s')", job, token) == "scheduled"
        stopped.advance(19)
        assert await one(conn, "select queue_pg.promote()") == 0
        stopped.advance(2)
        assert await one(conn, "select queue_pg.promote()") == 1
    assert await one(conn, "select attempt from queue_pg.job(%s)", job) == 0


async def test_a_batch_mixes_outcomes_and_answers_in_its_own_order(conn: Connection) -> None:
    jobs = [await submit(conn) for _ in range(4)]
    await claim(conn, max_jobs=10)
    unknown = UUID(int=7)
    answer = await rows(
        conn,
        "select id, accepted, state from queue_pg.finish(%s, %s, %s, %s::jsonb[], %s::jsonb[], %s::interval[])",
        [jobs[3], jobs[0], unknown, jobs[1], jobs[2], jobs[0]],
        [1, 1, 1, 9, 1, 1],
        ["complete", "fail", "complete", "complete", "release", "complete"],
        ['{"text": "ok"}', None, None, None, None, None],
        [None, '{"code": "boom"}', None, None, None, None],
        [None, "1 hour", None, None, None, None],
    )
    assert answer == [
        (jobs[3], True, "completed"),
        (jobs[0], True, "scheduled"),
        (unknown, False, None),
        (jobs[1], False, "running"),
        (jobs[2], True, "queued"),
        (jobs[0], False, "scheduled"),  # named twice: the first entry counts
    ]
    assert await one(conn, "select result->>'text' from queue_pg.job(%s)", jobs[3]) == "ok"


async def test_a_failure_that_could_only_be_retried_after_the_deadline_is_final(conn: Connection) -> None:
    await conn.execute("select queue_pg.submit('k', expires_at => queue_pg.now() + '1 min')")
    ((job, token),) = await claim(conn)
    await conn.execute("select queue_pg.fail(%s, %s, '{\"code\": \"busy\"}', delay => '2 min')", (job, token))
    assert await one(conn, "select state::text, error->>'code' from queue_pg.job(%s)", job) == ("failed", "busy")


async def test_events_tell_what_went_wrong_in_order_and_without_gaps(conn: Connection, clock: Clock) -> None:
    job = await submit(conn)
    await claim(conn)
    await conn.execute("select queue_pg.fail(%s, 1, '{\"code\": \"a\"}', delay => '0')", (job,))
    await claim(conn)
    clock.advance(31)
    await conn.execute("select queue_pg.reap()")
    await claim(conn)
    await conn.execute("select queue_pg.cancel(%s, 'enough')", (job,))
    await conn.execute("select queue_pg.retry(%s)", (job,))
    events = await rows(
        conn, "select seq, type, data->'error'->>'code' from queue_pg.job_events where job_id = %s order by seq", job
    )
    assert events == [
        (2, "started", None),
        (3, "failed", "a"),
        (4, "started", None),
        (5, "lease_lost", "lease_lost"),
        (6, "started", None),
        (7, "cancelled", "cancelled"),
        (8, "retried", "cancelled"),
    ]


async def test_cancelling_a_running_job_tells_its_worker(conn: Connection, dsn: str) -> None:
    job = await submit(conn)
    await claim(conn, "worker-7")
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_cancel")
        await conn.execute("select queue_pg.cancel(%s)", (job,))
        assert [n.payload async for n in listener.notifies(timeout=20, stop_after=1)] == ["worker-7"]


async def test_retry_takes_new_limits_and_drops_a_dead_deadline(conn: Connection, clock: Clock) -> None:
    job = await submit(conn)
    await conn.execute("update queue_pg.jobs set expires_at = queue_pg.now() + '1 s'")
    clock.advance(2)
    await conn.execute("select queue_pg.expire()")
    row = await one(conn, "select state::text, max_attempts, attempt, expires_at from queue_pg.retry(%s, 9)", job)
    assert row == ("queued", 9, 0, None)
    assert len(await claim(conn)) == 1
