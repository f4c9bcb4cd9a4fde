"""Limits of work in flight: how many at once, how fast, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection[Any]

INSERT = "insert into queue_pg.jobs (kind, queue, limit_key, org) select 'k', %s, %s, %s from generate_series(1, %s)"


async def rows(conn: Connection, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement, args)).fetchall()


async def add(conn: Connection, count: int = 1, *, queue: str = "default", key: str | None = None) -> None:
    await conn.execute(INSERT, (queue, key, "default", count))


async def claim(conn: Connection, wanted: int = 10, queue: str = "default") -> list[tuple[UUID, int]]:
    return await rows(conn, "select id, lease_token from queue_pg.claim('w', array[%s], max_jobs => %s)", queue, wanted)


async def finish(conn: Connection, job: tuple[UUID, int], outcome: str = "complete") -> None:
    await conn.execute("select queue_pg.finish_one(%s, %s, %s, null, null, null)", (*job, outcome))


async def running(conn: Connection, scope: str, name: str) -> int:
    [(count,)] = await rows(conn, "select running from queue_pg.limits where scope = %s and name = %s", scope, name)
    return int(count)


async def limit(conn: Connection, scope: str, name: str, **terms: Any) -> None:
    values = {"max_running": None, "rate": None, "per": "second", "burst": None, **terms}
    await conn.execute(
        "select queue_pg.set_limit(%(scope)s, %(name)s, %(max_running)s, %(rate)s, %(per)s, %(burst)s)",
        {"scope": scope, "name": name, **values},
    )


@pytest.mark.parametrize(("scope", "key"), [("queue", None), ("queue", "a"), ("key", "a")])
async def test_no_more_than_the_limit_are_handed_out(conn: Connection, scope: str, key: str | None) -> None:
    name = "a" if scope == "key" else "default"
    await limit(conn, scope, name, max_running=3)
    await add(conn, 10, key=key)
    first = await claim(conn)
    assert len(first) == 3
    assert await claim(conn) == []
    await finish(conn, first[0])
    assert len(await claim(conn)) == 1
    assert await running(conn, scope, name) == 3


async def test_a_key_is_one_limit_over_all_queues(conn: Connection) -> None:
    await limit(conn, "key", "a", max_running=2)
    for queue in ("one", "two", "three"):
        await add(conn, 5, queue=queue, key="a")
    assert sum([len(await claim(conn, queue=queue)) for queue in ("one", "two", "three")]) == 2


async def test_limits_of_queue_and_key_hold_both(conn: Connection) -> None:
    await limit(conn, "queue", "default", max_running=3)
    await limit(conn, "key", "a", max_running=2)
    await add(conn, 5, key="a")
    await add(conn, 5, key="b")
    taken = await claim(conn)
    assert len(taken) == 3
    assert await running(conn, "queue", "default") == 3
    assert await running(conn, "key", "a") <= 2


async def test_a_limit_is_of_one_tenant(conn: Connection) -> None:
    await limit(conn, "key", "a", max_running=1)
    await conn.execute(INSERT, ("default", "a", "other", 5))
    await add(conn, 5, key="a")
    assert len(await claim(conn)) == 5 + 1


@pytest.mark.parametrize("outcome", ["complete", "fail", "discard", "snooze", "release", "cancel"])
async def test_every_end_of_an_attempt_gives_its_slot_back(conn: Connection, outcome: str) -> None:
    await limit(conn, "queue", "default", max_running=2)
    await limit(conn, "key", "a", max_running=1)
    await add(conn, 2, key="a")
    [job] = await claim(conn)
    assert (await running(conn, "key", "a"), await running(conn, "queue", "default")) == (1, 1)
    await finish(conn, job, outcome)
    assert (await running(conn, "key", "a"), await running(conn, "queue", "default")) == (0, 0)
    assert len(await claim(conn)) == 1


async def test_a_mixed_batch_of_ends_gives_all_slots_back(conn: Connection) -> None:
    await limit(conn, "key", "a", max_running=6)
    await add(conn, 6, key="a")
    taken = await claim(conn)
    outcomes = ["complete", "fail", "discard", "snooze", "release", "cancel"]
    ids, tokens = [job for job, _ in taken], [token for _, token in taken]
    await conn.execute("select * from queue_pg.finish(%s, %s, %s)", (ids, tokens, outcomes))
    assert await running(conn, "key", "a") == 0


async def test_cancel_gives_the_slot_back(conn: Connection) -> None:
    await limit(conn, "key", "a", max_running=1)
    await add(conn, 2, key="a")
    [(job, _)] = await claim(conn)
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    assert len(await claim(conn)) == 1
    assert await running(conn, "key", "a") == 1


async def test_the_reaper_gives_the_slot_of_a_dead_worker_back(conn: Connection, clock: Clock) -> None:
    await limit(conn, "key", "a", max_running=1)
    await add(conn, 2, key="a")
    assert len(await claim(conn)) == 1
    for _ in range(3):  # the third loss ends the job
        clock.advance(31)
        await conn.execute("select * from queue_pg.reap()")
        assert await running(conn, "key", "a") == 0
        assert len(await claim(conn)) == 1
        assert await running(conn, "key", "a") == 1


async def test_a_stale_finish_gives_nothing_back(conn: Connection, clock: Clock) -> None:
    await limit(conn, "key", "a", max_running=1)
    await add(conn, 1, key="a")
    [(job, token)] = await claim(conn)
    clock.advance(31)
    await conn.execute("select * from queue_pg.reap()")
    [_] = await claim(conn)
    for outcome in ("complete", "fail"):
        await conn.execute(
            "select * from queue_pg.finish(array[%s], array[%s::bigint], array[%s])", (job, token, outcome)
        )
    assert await running(conn, "key", "a") == 1


async def test_a_limit_set_removed_and_set_again_while_jobs_run_counts_them(conn: Connection) -> None:
    await add(conn, 8, key="a")
    before = await claim(conn, 4)
    assert len(before) == 4
    await limit(conn, "key", "a", max_running=5)
    assert await running(conn, "key", "a") == 4
    taken = await claim(conn)
    assert len(taken) == 1
    assert await rows(conn, "select queue_pg.remove_limit('key', 'a')") == [(True,)]
    assert await rows(conn, "select queue_pg.remove_limit('key', 'a')") == [(False,)]
    await finish(conn, before[0])
    await limit(conn, "key", "a", max_running=2)
    assert await running(conn, "key", "a") == 4
    for job in (*before[1:], *taken):
        await finish(conn, job)
    assert await running(conn, "key", "a") == 0
    assert len(await claim(conn)) == 2


async def test_a_limit_that_is_lowered_holds_as_soon_as_enough_have_ended(conn: Connection) -> None:
    await limit(conn, "queue", "default", max_running=4)
    await add(conn, 10)
    taken = await claim(conn)
    await limit(conn, "queue", "default", max_running=2)
    for job in taken[:2]:
        await finish(conn, job)
        assert await claim(conn) == []
    await finish(conn, taken[2])
    assert len(await claim(conn)) == 1


async def test_a_paused_key_waits_until_its_moment_or_until_it_is_resumed(conn: Connection, clock: Clock) -> None:
    await add(conn, 2, key="a")
    await add(conn, 1, key="b")
    await conn.execute("select queue_pg.pause_limit('key', 'a', queue_pg.now() + interval '60 s')")
    assert len(await claim(conn)) == 1
    clock.advance(61)
    assert len(await claim(conn, 1)) == 1
    await conn.execute("select queue_pg.pause_limit('key', 'a')")
    assert await claim(conn) == []
    assert await rows(conn, "select queue_pg.resume_limit('key', 'a')") == [(True,)]
    assert len(await claim(conn)) == 1


async def test_a_paused_queue_hands_out_no_keyed_jobs(conn: Connection) -> None:
    await add(conn, 2, key="a")
    await conn.execute("select queue_pg.pause_queue('default')")
    assert await claim(conn) == []
    await conn.execute("select queue_pg.resume_queue('default')")
    assert len(await claim(conn)) == 2


async def test_the_order_inside_a_key_is_kept(conn: Connection) -> None:
    await limit(conn, "key", "a", max_running=1)
    await conn.execute(
        "insert into queue_pg.jobs (kind, limit_key, priority, tags)"
        " values ('k', 'a', 0, '{2}'), ('k', 'a', 10, '{1}'), ('k', 'a', 0, '{3}')"
    )
    seen: list[str] = []
    for _ in range(3):
        [(job, token, tags)] = await rows(conn, "select id, lease_token, tags from queue_pg.claim('w', '{default}')")
        seen += tags
        await finish(conn, (job, token))
    assert seen == ["1", "2", "3"]


# --- rate -------------------------------------------------------------------------------------------------------------


async def test_a_rate_lets_a_burst_start_and_then_so_many_per_second(conn: Connection, stopped: Clock) -> None:
    await limit(conn, "key", "a", rate=2, per="second", burst=3)
    await add(conn, 30, key="a")
    assert len(await claim(conn)) == 3
    assert await claim(conn) == []
    stopped.advance(0.49)
    assert await claim(conn) == []
    stopped.advance(0.01)
    assert len(await claim(conn)) == 1
    stopped.advance(1)
    assert len(await claim(conn)) == 2
    stopped.advance(3600)
    assert len(await claim(conn)) == 3


@pytest.mark.parametrize(("per", "seconds"), [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400)])
async def test_the_bucket_gets_its_rate_back_in_its_time(
    conn: Connection, stopped: Clock, per: str, seconds: int
) -> None:
    await limit(conn, "queue", "default", rate=7, per=per)
    await add(conn, 30)
    assert len(await claim(conn, 30)) == 7
    stopped.advance(seconds * 0.999)
    assert len(await claim(conn, 30)) == 6
    stopped.advance(seconds * 0.0011)
    assert len(await claim(conn, 30)) == 1


async def test_jobs_take_their_cost_and_one_above_the_burst_waits_for_a_full_bucket(
    conn: Connection, stopped: Clock
) -> None:
    await limit(conn, "key", "a", rate=10, per="second")
    await conn.execute(
        "insert into queue_pg.jobs (kind, limit_key, cost)"
        " values ('k', 'a', 4), ('k', 'a', 5), ('k', 'a', 25), ('k', 'a', 0)"
    )
    assert len(await claim(conn)) == 2
    stopped.advance(0.8)
    assert await claim(conn) == []
    stopped.advance(0.1)
    assert len(await claim(conn)) == 1  # the one of 25: the bucket is full
    stopped.advance(1.49)
    assert await claim(conn) == []
    stopped.advance(0.01)
    assert len(await claim(conn)) == 1


async def test_what_a_rate_has_let_start_stays_taken_when_it_changes(conn: Connection, stopped: Clock) -> None:
    await limit(conn, "key", "a", rate=10, per="minute")
    await add(conn, 30, key="a")
    assert len(await claim(conn, 30)) == 10
    await limit(conn, "key", "a", rate=10, per="second")
    assert await claim(conn) == []
    stopped.advance(0.5)
    assert len(await claim(conn, 30)) == 5


async def test_maintenance_wakes_workers_when_a_rate_opens(conn: Connection, dsn: str, stopped: Clock) -> None:
    await limit(conn, "key", "a", rate=1, per="second")
    await add(conn, 2, key="a")
    assert len(await claim(conn)) == 1
    assert await claim(conn) == []
    [(at, due)] = await rows(conn, "select queue_pg.now(), next_due_seconds from queue_pg.maintain()")
    assert due == pytest.approx(1)
    async with await Connection.connect(dsn, autocommit=True) as worker:
        await worker.execute("listen queue_pg_wake")
        stopped.advance(1)
        await conn.execute("select * from queue_pg.maintain(since => %s)", (at,))
        assert len([n async for n in worker.notifies(timeout=20, stop_after=1)]) == 1
    assert len(await claim(conn)) == 1


# --- templates and fairness -------------------------------------------------------------------------------------------


async def test_a_template_makes_a_limit_of_each_key_at_its_first_use(conn: Connection) -> None:
    await limit(conn, "key", "*", max_running=1)
    await limit(conn, "key", "user:*", max_running=2)
    for key in ("user:1", "user:2", "other"):
        await add(conn, 5, key=key)
    await claim(conn, 100)
    made = await rows(conn, "select name, running, template from queue_pg.limits where template is not null order by 1")
    assert made == [("other", 1, "*"), ("user:1", 2, "user:*"), ("user:2", 2, "user:*")]
    await limit(conn, "key", "user:*", max_running=3)
    assert len(await claim(conn, 100)) == 2
    await conn.execute("select queue_pg.remove_limit('key', '*')")
    assert len(await claim(conn, 100)) == 4


async def test_idle_limits_of_templates_are_forgotten(conn: Connection) -> None:
    await limit(conn, "key", "*", max_running=1)
    await add(conn, 1, key="a")
    await add(conn, 1, key="b")
    [first, _] = await claim(conn)
    await finish(conn, first)
    assert await rows(conn, "select queue_pg.tidy_limits()") == [(1,)]
    assert await rows(conn, "select count(*) from queue_pg.limits") == [(2,)]


async def test_a_small_key_waits_for_a_handful_of_jobs_and_not_for_all(conn: Connection) -> None:
    await conn.execute(INSERT, ("default", "big", "default", 20_000))
    await add(conn, 10, key="small")
    seen: list[str] = []
    while seen.count("small") < 10:
        taken = await rows(conn, "select id from queue_pg.claim('w', '{default}', max_jobs => 4)")
        for (job,) in taken:
            [(key,)] = await rows(conn, "select limit_key from queue_pg.jobs where id = %s", job)
            seen.append(key)
    assert Counter(seen)["big"] <= 14


async def test_jobs_without_a_key_and_keys_share_a_queue(conn: Connection) -> None:
    await add(conn, 500)
    await add(conn, 20, key="a")
    await add(conn, 20, key="b")
    taken = await claim(conn, 9)
    keys = Counter(
        [
            key
            for (key,) in await rows(
                conn, "select limit_key from queue_pg.jobs where id = any (%s)", [j for j, _ in taken]
            )
        ]
    )
    assert keys == {None: 3, "a": 3, "b": 3}
    # What keys leave goes to the others, and the other way round.
    assert len(await claim(conn, 400)) == 400


async def test_many_closed_keys_do_not_hide_an_open_one(conn: Connection) -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, limit_key) select 'k', 'full-' || n from generate_series(1, 1500) n"
    )
    await conn.execute("select queue_pg.pause_limit('key', 'full-*')")
    await conn.execute("select count(*) from queue_pg.claim('w', '{default}', max_jobs => 10000)")
    await add(conn, 1, key="zzz")
    assert sum([len(await claim(conn, 1)) for _ in range(10)]) == 1


# --- exactness --------------------------------------------------------------------------------------------------------


async def test_five_are_never_six_under_eight_workers_with_kills(conn: Connection, dsn: str) -> None:
    """An outside ledger counts what runs: up after a claim came back, down before its end is recorded."""
    await limit(conn, "key", "a", max_running=5)
    await limit(conn, "key", "b", max_running=2)
    await limit(conn, "queue", "default", max_running=6)
    await add(conn, 200, key="a")
    await add(conn, 100, key="b")
    await add(conn, 50)
    ledger: Counter[str] = Counter()
    opened: list[Connection] = []
    done = 0
    outcomes = ("complete", "complete", "fail", "release", "snooze", "discard")

    async def work(number: int) -> None:
        nonlocal done
        own = await Connection.connect(dsn, autocommit=True)
        opened.append(own)
        empty = 0
        for turn in range(10_000):
            if empty > 30:
                break
            if (turn + number) % 17 == 5:
                # Killed in the middle of its claim: nothing of it counts.
                await own.execute("begin")
                await own.execute("select * from queue_pg.claim('w', '{default}', max_jobs => 3)")
                await conn.execute("select pg_terminate_backend(%s)", (own.info.backend_pid,))
                await own.close()
                own = await Connection.connect(dsn, autocommit=True)
                opened.append(own)
            taken = await rows(
                own,
                "select c.id, c.lease_token,"
                " coalesce((select j.limit_key::text from queue_pg.jobs j where j.id = c.id), '')"
                " from queue_pg.claim('w', '{default}', max_jobs => 3) c",
            )
            empty = 0 if taken else empty + 1
            ledger.update([key for *_, key in taken])
            assert ledger["a"] <= 5
            assert ledger["b"] <= 2
            assert ledger.total() <= 6
            for at, (job, token, key) in enumerate(taken):
                outcome = outcomes[(turn + at + number) % len(outcomes)]
                ledger[key] -= 1
                await own.execute(
                    "select * from queue_pg.finish("
                    "array[%s], array[%s::bigint], array[%s], null, null, array['0'::interval])",
                    (job, token, outcome),
                )
                done += outcome in ("complete", "discard")

    try:
        await asyncio.gather(*(work(number) for number in range(8)))
    finally:
        for each in opened:
            await each.close()
    assert done > 200
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []
    assert await rows(conn, "select sum(running) from queue_pg.limits") == [(0,)]
    assert await rows(conn, "select count(*) from queue_pg.jobs where state = 'queued'") == [(0,)]


async def test_recount_repairs_what_a_hand_has_spoilt(conn: Connection) -> None:
    await limit(conn, "key", "a", max_running=5)
    await add(conn, 3, key="a")
    await claim(conn)
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []
    await conn.execute("update queue_pg.limits set running = 5")
    assert await rows(conn, "select scope, name, was, running from queue_pg.recount_limits()") == [("key", "a", 5, 3)]
    assert await running(conn, "key", "a") == 3


async def test_a_freed_slot_wakes_the_worker_that_waits_in_another_queue(conn: Connection, dsn: str) -> None:
    await limit(conn, "key", "a", max_running=1)
    await add(conn, 1, queue="one", key="a")
    [job] = await claim(conn, queue="one")
    await add(conn, 1, queue="two", key="a")
    async with await Connection.connect(dsn, autocommit=True) as worker:
        await worker.execute("listen queue_pg_wake")
        assert await rows(worker, "select id from queue_pg.claim('w', '{two}', arm => true)") == []
        await finish(conn, job)
        assert [n.payload async for n in worker.notifies(timeout=20, stop_after=1)] == ["two"]
        assert len(await claim(worker, queue="two")) == 1


async def test_a_claim_waits_only_a_moment_for_a_limit_that_another_holds(conn: Connection, dsn: str) -> None:
    await limit(conn, "key", "a", max_running=5)
    await add(conn, 3, key="a")
    async with await Connection.connect(dsn) as other:
        await other.execute("select from queue_pg.limits where name = 'a' for update")
        assert await claim(conn) == []
        await add(conn, 1, key="b")
        assert len(await claim(conn)) == 1
        await other.rollback()
    assert len(await claim(conn)) == 3


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ("'worker', 'a', 1", "scope"),
        ("null, 'a', 1", "scope"),
        ("'key', '', 1", "name"),
        ("'key', repeat('a', 256), 1", "name"),
        ("'queue', repeat('a', 201), 1", "name"),
        ("'key', null, 1", "name"),
        ("'key', 'a', 0", "max_running"),
        ("'key', 'a', 1000001", "max_running"),
        ("'key', 'a'", "max_running"),
        ("'key', 'a', rate => 0", "rate"),
        ("'key', 'a', rate => 1, per => 'week'", "per"),
        ("'key', 'a', rate => 1, burst => 0", "burst"),
        ("'key', 'a', 1, burst => 1", "burst"),
        ("'key', 'a', 1, org => ''", "org"),
    ],
)
async def test_a_bad_limit_is_refused_by_the_name_of_its_field(conn: Connection, terms: str, field: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute(f"select queue_pg.set_limit({terms})")
    assert refused.value.sqlstate == "QP005"
    assert str(refused.value).startswith(f"{field}:")


# --- why a job waits --------------------------------------------------------------------------------------------------


async def why(conn: Connection) -> tuple[str, bool, str | None]:
    """Ask about the newest queued job: reason, whether a time is known, who holds it."""
    [(reason, until, held_by)] = await rows(
        conn,
        "select w.reason, w.until is not null, w.held_by from"
        " (select id from queue_pg.jobs where state = 'queued' order by id desc limit 1) j"
        " cross join lateral queue_pg.why_waiting(j.id) w",
    )
    return reason, until, held_by


async def test_why_waiting_names_the_limit_and_who_holds_it(conn: Connection, clock: Clock) -> None:
    await limit(conn, "key", "a", max_running=2)
    await add(conn, 3, key="a")
    taken = await claim(conn)
    reason, until, held_by = await why(conn)
    assert (reason, until) == ("limit_full", False)
    assert held_by is not None
    assert set(held_by.split(", ")) == {str(job) for job, _ in taken}
    await limit(conn, "key", "a", rate=1, per="hour")
    await finish(conn, taken[0])
    await claim(conn)
    await add(conn, 1, key="a")
    assert await why(conn) == ("limit_rate", True, "a")
    await conn.execute("select queue_pg.pause_limit('key', 'a', queue_pg.now() + interval '1 hour')")
    assert await why(conn) == ("limit_paused", True, "a")
    await conn.execute("select queue_pg.pause_limit('key', 'a')")
    assert await why(conn) == ("limit_paused", False, "a")
    await conn.execute("select queue_pg.remove_limit('key', 'a')")
    assert (await why(conn))[0] == "no_worker"
    await conn.execute("select queue_pg.pause_limit('queue', 'default')")
    assert await why(conn) == ("limit_paused", False, "default")
    await conn.execute("update queue_pg.jobs set expires_at = queue_pg.now() where state = 'queued'")
    await conn.execute("select queue_pg.resume_limit('queue', 'default')")
    assert (await why(conn))[0] == "expired"


async def test_a_key_that_was_never_used_waits_for_its_template(conn: Connection) -> None:
    await conn.execute("select queue_pg.pause_limit('key', 'user:*')")
    await add(conn, 1, key="user:7")
    assert await why(conn) == ("limit_paused", False, "user:*")
