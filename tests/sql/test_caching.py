"""Jobs that share the work of identical ones: what answers them, whom they wait for, and who goes on after that one."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def all_of(conn: Connection, query: str, *args: Any) -> list[Any]:
    return await (await conn.execute(query, args)).fetchall()


async def one(conn: Connection, query: str, *args: Any) -> Any:
    [row] = await all_of(conn, query, *args)
    return row[0] if len(row) == 1 else row


async def submit(conn: Connection, payload: str = '{"a": 1}', **options: Any) -> UUID:
    """Submit a job of the cache, unless `options` say otherwise."""
    given = {"cache": True, **options}
    names = ", ".join(f"{name} => %({name})s" for name in given)
    query = f"select queue_pg.submit('k', %(payload)s::jsonb, {names})"
    row = await (await conn.execute(query.encode(), {"payload": payload, **given})).fetchone()
    assert row is not None
    job: UUID = row[0]
    return job


async def states(conn: Connection, *jobs: UUID) -> str:
    """The initials of the states: w, q, r, s, c(ompleted), f, x (cancelled)."""
    words = [await one(conn, "select queue_pg.state_of(%s)", job) for job in jobs]
    return "".join("x" if word == "cancelled" else word[0] for word in words)


async def finish(conn: Connection, outcome: str, job: UUID, result: str | None = '{"made": 1}') -> None:
    """Claim what is queued, and end this one."""
    await conn.execute("select queue_pg.claim('w', '{default,other}', max_jobs => 100)")
    token = await one(conn, "select lease_token from queue_pg.jobs where id = %s and state = 'running'", job)
    await conn.execute("select queue_pg.finish_one(%s, %s, %s, %s, null, null)", (job, token, outcome, result))


async def done(conn: Connection, payload: str = '{"a": 1}', **options: Any) -> UUID:
    """A job that has completed and is an answer."""
    job = await submit(conn, payload, **options)
    await finish(conn, "complete", job)
    return job


async def answer(conn: Connection, job: UUID) -> Any:
    """(state, result, whose it is, attempts) of a job."""
    return await one(conn, "select state::text, result, cached_from, attempt from queue_pg.job(%s)", job)


# --- finished work ----------------------------------------------------------------------------------------------------


async def test_finished_work_answers_at_once(conn: Connection) -> None:
    first = await done(conn)
    second = await submit(conn, metadata='{"mine": true}', tags=["t"])
    assert second != first
    assert await answer(conn, second) == ("completed", {"made": 1}, first, 0)
    assert await one(conn, "select metadata, tags, started_at, worker_id from queue_pg.job(%s)", second) == (
        {"mine": True},
        ["t"],
        None,
        None,
    )
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0
    # It is a completed job like any other: counted, and with its list of events.
    assert await one(conn, "select completed from queue_pg.queue_stats()") == 2
    assert await all_of(conn, "select seq, type, data from queue_pg.events(%s)", second) == [
        (1, "submitted", {"kind": "k", "queue": "default"}),
        (2, "completed", {"attempt": 0, "cached_from": str(first)}),
    ]
    assert await all_of(conn, "select type, data from queue_pg.events(%s) where type = 'completed'", first) == [
        ("completed", {"attempt": 1, "worker_id": "w"})
    ]


async def test_answers_name_the_job_that_did_the_work(conn: Connection) -> None:
    first = await done(conn)
    await submit(conn)
    assert (await answer(conn, await submit(conn)))[2] == first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"payload": '{"a": 2}'}),
        ({}, {"org": "other"}),
        ({}, {"cache_version": "v2"}),
        ({"cache_version": "v1"}, {"cache_version": "v2"}),
        ({"payload": '{"a": [1, 2]}'}, {"payload": '{"a": [2, 1]}'}),
        # Numbers are as they were written.
        ({"payload": '{"a": 1}'}, {"payload": '{"a": 1.0}'}),
    ],
)
async def test_other_work_is_not_answered(conn: Connection, before: dict[str, Any], after: dict[str, Any]) -> None:
    await done(conn, **before)
    assert await states(conn, await submit(conn, **after)) == "q"


async def test_another_kind_is_other_work(conn: Connection) -> None:
    await done(conn)
    assert await states(conn, await one(conn, "select queue_pg.submit('l', '{\"a\": 1}', cache => true)")) == "q"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"a": 1, "b": {"c": 2, "d": 3}}', '{ "b": {"d": 3, "c": 2},\n "a": 1}'),
        ('{"a": 1, "a": 2}', '{"a": 2}'),
        ('{"a": 100}', '{"a": 1e2}'),
        ('{"a": "é"}', r'{"a": "\u00e9"}'),
    ],
)
async def test_how_json_is_written_does_not_matter(conn: Connection, before: str, after: str) -> None:
    first = await done(conn, before)
    assert (await answer(conn, await submit(conn, after)))[2] == first


async def test_only_those_who_ask_take_part(conn: Connection) -> None:
    await done(conn, cache=None)
    plain = await submit(conn, cache=False, cache_for="1 hour", cache_version="v")
    assert await states(conn, plain) == "q"
    assert await one(conn, "select count(*) from queue_pg.cache_entries") == 0
    # And what they have done is no answer.
    await finish(conn, "complete", plain)
    assert await states(conn, await submit(conn)) == "q"
    assert await one(conn, "select count(*) from queue_pg.jobs where cache_key is not null") == 1


@pytest.mark.parametrize("options", [{"cache_for": "1 hour"}, {"cache_version": "v"}])
async def test_an_age_or_a_version_ask_too(conn: Connection, options: dict[str, str]) -> None:
    first = await done(conn, cache=None, **options)
    assert (await answer(conn, await submit(conn, cache=None, **options)))[2] == first


async def test_an_answer_may_be_too_old(conn: Connection, stopped: Clock) -> None:
    first = await done(conn)
    stopped.advance(60)
    assert (await answer(conn, await submit(conn, cache_for="61 seconds")))[2] == first
    again = await submit(conn, cache_for="59 seconds")
    assert await states(conn, again) == "q"
    # Meanwhile the old one serves those who are content with it.
    assert (await answer(conn, await submit(conn)))[2] == first
    await finish(conn, "complete", again, '"new"')
    assert await answer(conn, await submit(conn, cache_for="59 seconds")) == ("completed", "new", again, 0)
    assert (await answer(conn, await submit(conn)))[2] == again
    # With no age at all, work in flight alone is shared.
    stopped.advance(1)
    running = await submit(conn, cache_for="0")
    assert await states(conn, running, await submit(conn, cache_for="0")) == "qw"


@pytest.mark.parametrize("outcome", ["discard", "cancel"])
async def test_what_did_not_complete_answers_nobody(conn: Connection, outcome: str) -> None:
    first = await submit(conn)
    await finish(conn, outcome, first)
    assert await states(conn, await submit(conn)) == "q"


async def test_a_failed_renewal_leaves_the_older_answer(conn: Connection, clock: Clock) -> None:
    first = await done(conn)
    clock.advance(60)
    renewal = await submit(conn, cache_for="1 second")
    waiting = await submit(conn, cache_for="1 second")
    await finish(conn, "discard", renewal)
    # Too old for the one that waited: it does the work.
    assert await states(conn, waiting) == "q"
    assert (await answer(conn, await submit(conn)))[2] == first


async def test_a_job_without_result_answers_only_those_who_wait_for_it(conn: Connection) -> None:
    first, second = await submit(conn), await submit(conn)
    await finish(conn, "complete", first, None)
    assert await answer(conn, second) == ("completed", None, first, 0)
    assert await states(conn, await submit(conn)) == "q"


async def test_an_answer_is_forgotten_with_its_job(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure_queue('default', retention => '1 hour')")
    await conn.execute("select queue_pg.configure_queue('other', retention => '9 hours')")
    await done(conn)
    copy = await submit(conn, queue="other")
    clock.advance(3601)
    # The copy of the result has a retention of its own.
    assert (await answer(conn, copy))[:2] == ("completed", {"made": 1})
    assert await states(conn, await submit(conn)) == "q"


async def test_forgotten_answers_are_swept(conn: Connection, clock: Clock) -> None:
    await done(conn)
    running = await done(conn, '{"b": 1}')
    clock.advance(31 * 86_400)
    running = await submit(conn, '{"b": 1}')
    await conn.execute("select queue_pg.maintain_history()")
    [left] = await all_of(conn, "select job_id from queue_pg.cache_entries")
    assert left == (running,)


async def test_forgetting_answers_by_hand(conn: Connection) -> None:
    await done(conn)
    await done(conn, org="o")
    assert await one(conn, "select queue_pg.forget_answers('l')") == 0
    assert await one(conn, "select queue_pg.forget_answers('k')") == 1
    running = await submit(conn)
    assert await states(conn, running, await submit(conn, org="o")) == "qc"
    await finish(conn, "complete", running)
    assert (await answer(conn, await submit(conn)))[2] == running


async def test_a_hit_takes_part_in_all_that_jobs_do(conn: Connection) -> None:
    first = await done(conn)
    batch = await one(conn, "select queue_pg.create_batch('b')")
    hit = await submit(conn, unique_key="u", batch_id=batch, delay="1 hour")
    assert (await answer(conn, hit))[2] == first
    assert await submit(conn, unique_key="u") == hit
    child = await one(
        conn,
        "select queue_pg.submit('child', '{\"of\": \"{{ parents.0.output.made }}\"}',"
        " depends_on => jsonb_build_array(%s))",
        hit,
    )
    assert await one(conn, "select state::text, payload from queue_pg.job(%s)", child) == ("queued", {"of": 1})
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    await conn.execute("select queue_pg.maintain()")
    assert await one(conn, "select state, completed from queue_pg.batch_progress") == ("completed", 1)
    with pytest.raises(psycopg.DatabaseError) as refused:
        await conn.execute("select queue_pg.cancel(%s)", (hit,))
    assert refused.value.sqlstate == "QP002"


async def test_nodes_of_a_graph_are_answered(conn: Connection) -> None:
    first = await done(conn)
    graph = [
        {"kind": "k", "key": "a", "payload": {"a": 1}, "cache": True},
        {"kind": "k", "key": "b", "payload": {"b": 1}, "cache": True},
        {"kind": "child", "depends_on": ["a"], "payload": "{{ parents.a.output.made }}"},
        {"kind": "child", "depends_on": ["a", "b"]},
    ]
    made = [row[0] for row in await all_of(conn, "select id from queue_pg.submit_many(%s)", json.dumps(graph))]
    assert await states(conn, *made) == "cqqw"
    assert (await answer(conn, made[0]))[2] == first
    assert await one(conn, "select payload from queue_pg.job(%s)", made[2]) == 1
    await finish(conn, "complete", made[1])
    assert await states(conn, made[3]) == "q"


async def test_many_at_once(conn: Connection) -> None:
    first = await done(conn)
    jobs = [
        {"kind": "k", "payload": {"a": 1}, "cache": True},
        {"kind": "k", "payload": {"a": 1}},
        {"kind": "k", "payload": {"b": 1}, "cache_version": "v"},
        {"kind": "k", "payload": {"b": 1}, "cache_for_seconds": 60, "cache_version": "v", "priority": 10},
        {"kind": "k", "payload": None, "cache": True},
        {"kind": "k", "cache": True},
    ]
    rows = await all_of(conn, "select id, created from queue_pg.submit_many(%s) order by position", json.dumps(jobs))
    assert await states(conn, *[row[0] for row in rows]) == "cqqwqw"
    assert all(row[1] for row in rows)
    assert (await answer(conn, rows[0][0]))[2] == first


async def test_very_many_and_large_answers(conn: Connection) -> None:
    first = await submit(conn)
    await finish(conn, "complete", first, json.dumps("x" * 1_000_000))
    jobs = [{"kind": "k", "payload": {"a": 1}, "cache": True}] * 60
    rows = await all_of(conn, "select id from queue_pg.submit_many(%s)", json.dumps(jobs))
    assert len(rows) == 60
    assert await one(conn, "select count(*), min(length(result ->> 0)) from queue_pg.finished_jobs") == (61, 1_000_000)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cache_for": "-1 second"}, "cache_for"),
        ({"cache_for": "101 years"}, "cache_for"),
        ({"cache_version": ""}, "cache_version"),
        ({"cache_version": "x" * 256}, "cache_version"),
    ],
)
async def test_wrong_input_names_the_field(conn: Connection, options: dict[str, str], field: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as refused:
        await submit(conn, **options)
    assert refused.value.sqlstate == "QP005"
    assert json.loads(refused.value.diag.message_detail or "")["field"] == field
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cache": "yes"}, "cache"),
        ({"cache": 1}, "cache"),
        ({"cache_for_seconds": "60"}, "cache_for"),
        ({"cache_for_seconds": -1}, "cache_for"),
        ({"cache_for_seconds": 1e300}, "cache_for"),
        ({"cache_version": 7}, "cache_version"),
    ],
)
async def test_wrong_json_names_the_field(conn: Connection, options: dict[str, Any], field: str) -> None:
    jobs = json.dumps([{"kind": "k"}, {"kind": "k", "cache": True, **options}])
    with pytest.raises(psycopg.DatabaseError) as refused:
        await conn.execute("select * from queue_pg.submit_many(%s)", (jobs,))
    assert json.loads(refused.value.diag.message_detail or "")["field"] == field


async def test_a_job_that_waits_for_others_is_refused(conn: Connection) -> None:
    parent = await submit(conn)
    with pytest.raises(psycopg.DatabaseError) as refused:
        await submit(conn, '{"b": 1}', depends_on=json.dumps([str(parent)]))
    assert json.loads(refused.value.diag.message_detail or "")["field"] == "cache"


# --- work in flight ---------------------------------------------------------------------------------------------------


async def test_work_in_flight_is_shared(conn: Connection) -> None:
    first, second = await submit(conn), await submit(conn)
    assert await states(conn, first, second) == "qw"
    assert await one(conn, "select reason, held_by from queue_pg.why_waiting(%s)", second) == ("shared", str(first))
    await conn.execute("select queue_pg.claim('w', '{default}')")
    third = await submit(conn, queue="other")
    assert await states(conn, first, second, third) == "rww"
    await finish(conn, "complete", first)
    for job in (second, third):
        assert await answer(conn, job) == ("completed", {"made": 1}, first, 0)
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0
    assert await one(conn, "select job_id, answer_id from queue_pg.cache_entries") == (None, first)


@pytest.mark.parametrize("outcome", ["discard", "cancel", "by hand", "expire", "reap"])
async def test_the_next_one_goes_on_when_the_work_is_not_completed(
    conn: Connection, clock: Clock, outcome: str
) -> None:
    await conn.execute("select queue_pg.configure(max_lease_losses => 1)")
    first = await submit(conn, expires_at=clock.now())
    others = [await submit(conn) for _ in range(3)]
    if outcome == "by hand":
        await conn.execute("select queue_pg.cancel(%s)", (first,))
    elif outcome == "expire":
        await conn.execute("select queue_pg.expire()")
    elif outcome == "reap":
        await conn.execute("update queue_pg.jobs set expires_at = null")
        await conn.execute("select queue_pg.claim('w', '{default}')")
        clock.advance(100)
        await conn.execute("select queue_pg.reap()")
    else:
        await conn.execute("update queue_pg.jobs set expires_at = null")
        await finish(conn, outcome, first)
    assert (await states(conn, first))[0] in "fx"
    assert await states(conn, *others) == "qww"
    assert await one(conn, "select max(type) from queue_pg.events(%s)", others[0]) == "submitted"
    assert [row[0] for row in await all_of(conn, "select type from queue_pg.events(%s)", others[0])] == [
        "submitted",
        "promoted",
    ]
    await finish(conn, "complete", others[0])
    assert [(await answer(conn, job))[2] for job in others] == [None, others[0], others[0]]


async def test_a_failed_attempt_that_is_retried_is_no_end(conn: Connection, clock: Clock) -> None:
    first, second = await submit(conn), await submit(conn)
    await finish(conn, "fail", first)
    assert await states(conn, first, second) == "sw"
    clock.advance(3600)
    await conn.execute("select queue_pg.maintain()")
    await finish(conn, "complete", first)
    assert (await answer(conn, second))[2] == first


async def test_cancelling_one_that_waits_ends_that_one_alone(conn: Connection) -> None:
    first, second, third = await submit(conn), await submit(conn), await submit(conn)
    await conn.execute("select queue_pg.cancel(%s)", (second,))
    assert await states(conn, first, second, third) == "qxw"
    await finish(conn, "complete", first)
    assert await states(conn, first, second, third) == "cxc"


async def test_one_that_waits_keeps_its_deadline(conn: Connection, clock: Clock) -> None:
    first = await submit(conn)
    second = await submit(conn, expires_at=clock.now())
    await conn.execute("select queue_pg.expire()")
    assert await states(conn, first, second) == "qf"


async def test_the_urgent_and_the_old_go_on_first(conn: Connection) -> None:
    await conn.execute("select queue_pg.submit('k', '{\"a\": 1}', cache => true)")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    low, high, older = [await submit(conn, priority=priority) for priority in (0, 5, 5)]
    later = await submit(conn, priority=20, delay="1 hour")
    order = []
    for _ in range(4):
        job = await one(conn, "select job_id from queue_pg.cache_entries")
        await conn.execute("select queue_pg.cancel(%s)", (job,))
        order.append(await one(conn, "select job_id from queue_pg.cache_entries"))
    assert order == [high, older, low, later]
    assert await states(conn, later) == "s"


@pytest.mark.parametrize("by", ["priority", "run_at", "pause"])
async def test_one_that_can_start_sooner_goes_first(conn: Connection, by: str) -> None:
    first = await submit(conn, **({"delay": "1 hour"} if by == "run_at" else {}))
    if by == "pause":
        await conn.execute("select queue_pg.pause_queue('default')")
    same = await submit(conn, **({"delay": "1 minute"} if by == "run_at" else {}))
    sooner = await submit(conn, **({"priority": 5} if by == "priority" else {"queue": "other"}))
    assert await states(conn, first, same, sooner) == "wwq"
    assert await all_of(conn, "select type, data ->> 'job_id' from queue_pg.events(%s) where seq > 1", first) == [
        ("overtaken", str(sooner))
    ]
    # It comes back by its own terms.
    await conn.execute("select queue_pg.cancel(%s)", (sooner,))
    assert await states(conn, first, same) == ("ws" if by == "run_at" else "qw")
    last = await submit(conn, priority=5, queue="other")
    await finish(conn, "complete", last)
    assert [(await answer(conn, job))[2] for job in (first, same)] == [last, last]


async def test_what_has_started_is_not_overtaken(conn: Connection) -> None:
    first = await submit(conn)
    await conn.execute("select queue_pg.claim('w', '{default}')")
    assert await states(conn, first, await submit(conn, priority=20)) == "rw"
    await finish(conn, "snooze", first)
    assert await states(conn, await submit(conn, priority=20)) == "w"


async def test_many_that_wait_are_answered_in_bites(conn: Connection, clock: Clock) -> None:
    first = await submit(conn)
    jobs = [{"kind": "k", "payload": {"a": 1}, "cache": True}] * 1_150
    await conn.execute("select queue_pg.submit_many(%s)", (json.dumps(jobs),))
    waiting = "select count(*) from queue_pg.jobs where state = 'waiting'"
    assert await one(conn, waiting) == 1_150
    await finish(conn, "complete", first)
    assert await one(conn, waiting) == 1_050
    clock.advance(1)
    # One for whom that is too old does the work meanwhile, and no one of those waits for it.
    newer = await submit(conn, cache_for="0")
    await conn.execute("select queue_pg.maintain()")
    assert await one(conn, waiting) == 50
    await conn.execute("select queue_pg.maintain()")
    assert await one(conn, waiting) == 0
    assert await states(conn, newer) == "q"
    assert await one(conn, "select count(*) from queue_pg.finished_jobs where cached_from = %s", first) == 1_150
    assert await one(conn, "select count(*) from queue_pg.unsettled_cache") == 0


async def test_a_rerun_is_never_answered(conn: Connection) -> None:
    first = await done(conn)
    again = await one(conn, "select id from queue_pg.rerun(%s)", first)
    assert await states(conn, again) == "q"
    await finish(conn, "complete", again, '"other"')
    assert (await answer(conn, await submit(conn)))[1:3] == ({"made": 1}, first)


async def test_a_rerun_of_an_answered_job_runs(conn: Connection) -> None:
    await done(conn)
    again = await one(conn, "select id from queue_pg.rerun(%s)", await submit(conn))
    assert await answer(conn, again) == ("queued", None, None, 0)


async def test_retry_runs_and_shares(conn: Connection) -> None:
    first = await submit(conn)
    await finish(conn, "discard", first)
    await conn.execute("select queue_pg.retry(%s)", (first,))
    second = await submit(conn)
    assert await states(conn, first, second) == "qw"
    await conn.execute("select queue_pg.cancel(%s)", (second,))
    await conn.execute("select queue_pg.retry(%s)", (second,))
    assert await states(conn, first, second) == "qw"
    await finish(conn, "complete", first)
    assert (await answer(conn, second))[2] == first


async def test_retry_is_not_answered_by_what_was_done_before(conn: Connection, clock: Clock) -> None:
    first = await submit(conn)
    await conn.execute("select queue_pg.cancel(%s)", (first,))
    clock.advance(1)
    await done(conn)
    clock.advance(1)
    await conn.execute("select queue_pg.retry(%s)", (first,))
    assert await states(conn, first) == "q"


async def test_an_entry_removed_by_hand_loses_nobody(conn: Connection) -> None:
    first, second = await submit(conn), await submit(conn)
    await conn.execute("delete from queue_pg.cache_entries")
    await finish(conn, "complete", first)
    third = await submit(conn)
    assert await states(conn, second, third) == "wq"
    await finish(conn, "complete", third)
    assert (await answer(conn, second))[2] == third


async def test_a_job_deleted_by_hand_loses_nobody(conn: Connection) -> None:
    first, second = await submit(conn), await submit(conn)
    await conn.execute("delete from queue_pg.jobs where id = %s", (first,))
    third = await submit(conn)
    await conn.execute("select queue_pg.maintain()")
    assert await states(conn, second, third) == "qw"


async def test_nothing_of_it_touches_ordinary_jobs(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, payload) select 'k', '{\"a\": 1}' from generate_series(1, 3)")
    await conn.execute('select queue_pg.submit_many(\'[{"kind": "k"}, {"kind": "k"}]\')')
    await conn.execute("select queue_pg.submit('k')")
    await conn.execute("select count(*) from queue_pg.claim('w', '{default}', max_jobs => 100)")
    await conn.execute(
        "select count(*) from queue_pg.finish(array(select id from queue_pg.jobs),"
        " array_fill(1::bigint, array[6]), array_fill('complete'::text, array[6]))"
    )
    assert await one(conn, "select count(*), count(cache_key) from queue_pg.finished_jobs") == (6, 0)
    touched = (
        "select coalesce(sum(seq_scan + idx_scan + n_tup_ins), 0) from pg_stat_user_tables"
        " where relname = 'cache_entries'"
    )
    assert await one(conn, touched) == 0
