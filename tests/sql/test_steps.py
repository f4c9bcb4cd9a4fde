"""Steps, sleeps, events and reruns by the SQL API: fences, bounds, clocks, and two sessions at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection
LEASED = "select id, lease_token from queue_pg.claim('w', '{default}')"


async def rows(conn: Connection, query: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(query.encode(), args)).fetchall()


async def one(conn: Connection, query: str, *args: Any) -> Any:
    [row] = await rows(conn, query, *args)
    return row[0] if len(row) == 1 else row


async def refused(conn: Connection, query: str, *args: Any) -> tuple[str | None, dict[str, Any]]:
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute(query.encode(), args)
    return caught.value.sqlstate, json.loads(caught.value.diag.message_detail or "{}")


async def claimed(conn: Connection, *, submit: bool = True) -> tuple[UUID, int]:
    if submit:
        await conn.execute("select queue_pg.submit('k')")
    [(job, token)] = await rows(conn, LEASED)
    return job, token


async def state(conn: Connection, job: UUID) -> tuple[str, int]:
    found: tuple[str, int] = await one(conn, "select state::text, attempt from queue_pg.job(%s)", job)
    return found


async def waiting(conn: Connection, name: str = "go", timeout: str | None = None) -> UUID:
    """A job that waits for an event."""
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.wait_for_event(%s, %s, %s, %s::interval)", (job, token, name, timeout))
    assert await one(conn, "select queue_pg.wait(%s, %s)", job, token) == "scheduled"
    return job


# --- steps ------------------------------------------------------------------------------------------------------------


async def test_a_step_is_kept_for_the_next_attempt(conn: Connection) -> None:
    job, token = await claimed(conn)
    await conn.execute("""select queue_pg.save_step(%s, %s, 'a', '{"n": 1}')""", (job, token))
    # An answer can get lost: the same again is fine, and does not replace what was kept.
    await conn.execute("""select queue_pg.save_step(%s, %s, 'a', '{"n": 2}')""", (job, token))
    await conn.execute("select queue_pg.release(%s, %s)", (job, token))
    job, token = await claimed(conn, submit=False)
    assert await rows(conn, "select name, type, result, attempt, lease_token from queue_pg.job_steps") == [
        ("a", "step", {"n": 1}, 1, 1)
    ]
    assert await refused(conn, "select queue_pg.save_step(%s, %s, 'a', '3')", job, token) == (
        "QP005",
        {"field": "name", "reason": "is that of another step of this job"},
    )


@pytest.mark.parametrize(
    "write",
    [
        "select queue_pg.save_step(%s, %s, 'late', '1')",
        "select queue_pg.sleep(%s, %s, 'late', delay => '1 s')",
        "select queue_pg.wait_for_event(%s, %s, 'late')",
        "select queue_pg.wait(%s, %s)",
    ],
)
async def test_a_stale_lease_changes_nothing(conn: Connection, clock: Clock, write: str) -> None:
    job, stale = await claimed(conn)
    clock.advance(31)
    await conn.execute("select queue_pg.reap()")
    assert await refused(conn, write, job, stale) == ("QP003", {"id": str(job), "state": "queued"})
    _, token = await claimed(conn, submit=False)
    assert (await refused(conn, write, job, stale))[0] == "QP003"
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    assert await refused(conn, write, job, token) == ("QP003", {"id": str(job), "state": "completed"})
    unknown = uuid4()
    assert await refused(conn, write, unknown, 1) == ("QP001", {"id": str(unknown)})
    assert await rows(conn, "select * from queue_pg.job_steps") == []


@pytest.mark.parametrize(
    ("call", "args", "field"),
    [
        ("save_step(%s, %s, %s, '1')", [""], "name"),
        ("save_step(%s, %s, %s, '1')", ["x" * 201], "name"),
        ("save_step(%s, %s, %s, '1')", [None], "name"),
        ("save_step(%s, %s, 'a', to_jsonb(%s::text))", ["x" * 1_048_576], "result"),
        ("save_step(%s, %s, 'a', %s::jsonb)", ["1e100000"], "result"),
        ("sleep(%s, %s, %s, delay => '1 s')", [""], "name"),
        ("sleep(%s, %s, 'a', delay => %s)", [None], "delay"),
        ("sleep(%s, %s, 'a', delay => '1 s', until => %s)", ["2040-01-01"], "delay"),
        ("sleep(%s, %s, 'a', delay => %s)", ["-1 s"], "delay"),
        ("sleep(%s, %s, 'a', delay => %s)", ["11 years"], "delay"),
        ("sleep(%s, %s, 'a', until => %s)", ["infinity"], "until"),
        ("sleep(%s, %s, 'a', until => %s)", ["9999-01-01"], "until"),
        ("wait_for_event(%s, %s, %s)", ["x" * 201], "name"),
        ("wait_for_event(%s, %s, 'a', %s::interval)", ["-1 s"], "timeout"),
        ("wait_for_event(%s, %s, 'a', %s::interval)", ["11 years"], "timeout"),
    ],
)
async def test_what_makes_no_sense_is_named(conn: Connection, call: str, args: Sequence[Any], field: str) -> None:
    job, token = await claimed(conn)
    sqlstate, detail = await refused(conn, f"select queue_pg.{call}", job, token, *args)
    assert (sqlstate, detail["field"]) == ("QP005", field)
    assert await rows(conn, "select * from queue_pg.job_steps") == []


async def test_a_name_stands_for_one_thing(conn: Connection) -> None:
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.save_step(%s, %s, 'a', '1')", (job, token))
    await conn.execute("select queue_pg.sleep(%s, %s, 'b', delay => '1 h')", (job, token))
    for call in (
        "sleep(%s, %s, 'a', delay => '1 s')",
        "wait_for_event(%s, %s, 'a')",
        "wait_for_event(%s, %s, 'b')",
        "save_step(%s, %s, 'b', '1')",
    ):
        sqlstate, detail = await refused(conn, f"select queue_pg.{call}", job, token)
        assert (sqlstate, detail["field"]) == ("QP005", "name"), call


async def test_steps_and_signals_are_bounded(conn: Connection) -> None:
    job, token = await claimed(conn)
    save = "select queue_pg.save_step(%s, %s, n::text, '1') from generate_series(1, 1000) n"
    await conn.execute(save, (job, token))
    for call in ("save_step(%s, %s, 'more', '1')", "sleep(%s, %s, 'more', delay => '1 s')"):
        sqlstate, detail = await refused(conn, f"select queue_pg.{call}", job, token)
        assert (sqlstate, detail["reason"]) == ("QP005", "this job has 1000 steps already")
    await conn.execute("select queue_pg.signal(%s, n::text) from generate_series(1, 1000) n", (job,))
    sqlstate, detail = await refused(conn, "select queue_pg.signal(%s, 'more')", job)
    assert (sqlstate, detail["reason"]) == ("QP005", "this job has 1000 signals already")
    # A repeat stores nothing.
    assert await one(conn, "select queue_pg.signal(%s, '7')", job) is False
    assert await one(conn, "select steps, signals from queue_pg.stepped_jobs") == (1000, 1000)


async def test_all_results_of_a_job_are_bounded(conn: Connection) -> None:
    job, token = await claimed(conn)
    save = "select queue_pg.save_step(%s, %s, n::text, to_jsonb(repeat('x', 1048574))) from generate_series(1, 32) n"
    await conn.execute(save, (job, token))
    sqlstate, detail = await refused(conn, "select queue_pg.save_step(%s, %s, 'more', '1')", job, token)
    assert (sqlstate, detail["field"]) == ("QP005", "result")
    sqlstate, detail = await refused(conn, "select queue_pg.signal(%s, 'more', '1')", job)
    assert (sqlstate, detail["field"]) == ("QP005", "payload")


# --- sleeps -----------------------------------------------------------------------------------------------------------


async def test_a_sleep_burns_no_attempt_and_keeps_its_end(conn: Connection, stopped: Clock) -> None:
    job, token = await claimed(conn)
    sleep = "select finished_at is not null from queue_pg.sleep(%s, %s, 'nap', delay => '100 s')"
    assert await one(conn, sleep, job, token) is False
    until = await one(conn, "select until from queue_pg.job_steps")
    assert await one(conn, "select queue_pg.wait(%s, %s)", job, token) == "scheduled"
    assert await state(conn, job) == ("scheduled", 0)
    assert await one(conn, "select run_at = %s from queue_pg.job(%s)", until, job) is True
    assert await one(conn, "select reason, until from queue_pg.why_waiting(%s)", job) == ("sleep", until)
    stopped.advance(99)
    assert await one(conn, "select queue_pg.promote()") == 0
    stopped.advance(2)
    assert await one(conn, "select queue_pg.promote()") == 1
    job, token = await claimed(conn, submit=False)
    assert (await state(conn, job), token) == (("running", 1), 2)
    assert await one(conn, sleep, job, token) is True
    # Reached again, it is over for good.
    assert await one(conn, sleep, job, token) is True
    assert await one(conn, "select until = %s from queue_pg.job_steps", until) is True


async def test_a_sleep_of_nothing_is_over_at_once(conn: Connection) -> None:
    job, token = await claimed(conn)
    for name, until in (("zero", "delay => '0'"), ("past", "until => '2020-01-01'"), ("ever", "until => '-infinity'")):
        call = f"select finished_at is not null from queue_pg.sleep(%s, %s, '{name}', {until})"
        assert await one(conn, call, job, token) is True


async def test_waiting_for_nothing_runs_again_now(conn: Connection) -> None:
    job, token = await claimed(conn)
    assert await one(conn, "select queue_pg.wait(%s, %s)", job, token) == "queued"
    assert await state(conn, job) == ("queued", 0)


async def test_only_what_the_last_claim_reached_is_waited_for(conn: Connection, clock: Clock) -> None:
    """A wait that a handler no longer comes to must not wake it again and again."""
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.sleep(%s, %s, 'short', delay => '10 s')", (job, token))
    await conn.execute("select queue_pg.wait(%s, %s)", (job, token))
    clock.advance(11)
    await conn.execute("select queue_pg.promote()")
    job, token = await claimed(conn, submit=False)
    await conn.execute("select queue_pg.sleep(%s, %s, 'long', delay => '1 h')", (job, token))
    assert await one(conn, "select queue_pg.wait(%s, %s)", job, token) == "scheduled"
    assert await rows(conn, "select name from queue_pg.waits_of(%s)", job) == [("long",)]


async def test_the_first_of_several_waits_that_is_over_counts(conn: Connection) -> None:
    job, token = await claimed(conn)
    for delay in (300, 100, 200):
        await conn.execute(
            "select queue_pg.sleep(%s, %s, %s, delay => make_interval(secs => %s))", (job, token, f"s{delay}", delay)
        )
    await conn.execute("select queue_pg.wait_for_event(%s, %s, 'go')", (job, token))
    assert await one(conn, "select queue_pg.wait(%s, %s)", job, token) == "scheduled"
    first = "select j.run_at = s.until from queue_pg.jobs j, queue_pg.job_steps s where s.name = 's100'"
    assert await one(conn, first) is True
    assert await one(conn, "select queue_pg.signal(%s, 'go')", job) is True
    assert await state(conn, job) == ("queued", 0)


async def test_a_batch_of_outcomes_may_hold_waits(conn: Connection) -> None:
    for _ in range(5):
        await conn.execute("select queue_pg.submit('k')")
    leased = await rows(conn, "select id, lease_token from queue_pg.claim('w', '{default}', max_jobs => 5)")
    ids = [row[0] for row in leased]
    await conn.execute("select queue_pg.wait_for_event(%s, 1, 'go')", (ids[1],))
    await conn.execute("select queue_pg.wait_for_event(%s, 1, 'go')", (ids[3],))
    await conn.execute("select queue_pg.signal(%s, 'go')", (ids[3],))
    answers = await rows(
        conn,
        "select id, accepted, state from queue_pg.finish(%s, array[1, 1, 1, 1, 7], %s)",
        ids,
        ["complete", "wait", "fail", "wait", "wait"],
    )
    assert answers == [
        (ids[0], True, "completed"),
        (ids[1], True, "scheduled"),
        (ids[2], True, "scheduled"),
        (ids[3], True, "queued"),
        (ids[4], False, "running"),
    ]


# --- events -----------------------------------------------------------------------------------------------------------


async def test_a_signal_runs_the_job_that_waits_and_its_payload_is_kept(conn: Connection, dsn: str) -> None:
    job = await waiting(conn)
    assert await one(conn, "select reason, held_by, until from queue_pg.why_waiting(%s)", job) == ("event", "go", None)
    async with await Connection.connect(dsn, autocommit=True) as worker:
        await worker.execute("listen queue_pg_wake")
        assert await rows(worker, "select id from queue_pg.claim('w', '{default}', arm => true)") == []
        assert await one(conn, """select queue_pg.signal(%s, 'go', '{"by": "ada"}')""", job) is True
        assert [n.payload async for n in worker.notifies(timeout=20, stop_after=1)] == ["default"]
    assert await state(conn, job) == ("queued", 0)
    assert await one(conn, """select queue_pg.signal(%s, 'go', '{"by": "bob"}')""", job) is False
    job, token = await claimed(conn, submit=False)
    call = "select finished_at is not null, timed_out, result from queue_pg.wait_for_event(%s, %s, 'go')"
    assert await one(conn, call, job, token) == (True, False, {"by": "ada"})
    types = await rows(conn, "select type from queue_pg.job_events order by seq offset 1")
    assert types == [("suspended",), ("signalled",)]


async def test_a_signal_may_come_before_the_wait(conn: Connection) -> None:
    job: UUID = await one(conn, "select queue_pg.submit('k')")
    assert await one(conn, "select queue_pg.signal(%s, 'go')", job) is True
    _, token = await claimed(conn, submit=False)
    call = "select finished_at is not null, result from queue_pg.wait_for_event(%s, %s, 'go')"
    assert await one(conn, call, job, token) == (True, None)


async def test_a_signal_of_another_name_wakes_nobody(conn: Connection) -> None:
    job = await waiting(conn)
    assert await one(conn, "select queue_pg.signal(%s, 'other')", job) is True
    assert await state(conn, job) == ("scheduled", 0)


async def test_a_signal_does_not_hurry_a_retry(conn: Connection) -> None:
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.fail(%s, %s, '{}', delay => '1 h')", (job, token))
    assert await one(conn, "select queue_pg.signal(%s, 'go')", job) is True
    assert await state(conn, job) == ("scheduled", 1)


async def test_an_event_that_comes_too_late(conn: Connection, clock: Clock) -> None:
    job = await waiting(conn, timeout="100 s")
    clock.advance(101)
    await conn.execute("select queue_pg.promote()")
    _, token = await claimed(conn, submit=False)
    call = "select finished_at is not null, timed_out, result from queue_pg.wait_for_event(%s, %s, 'go', '100 s')"
    assert await one(conn, call, job, token) == (True, True, None)
    sqlstate, detail = await refused(conn, "select queue_pg.signal(%s, 'go')", job)
    assert (sqlstate, detail["reason"]) == ("QP002", "its wait for 'go' has timed out")
    # What the handler was told stays so, in any later attempt.
    assert await one(conn, call, job, token) == (True, True, None)


async def test_a_signal_counts_until_the_handler_was_told_of_the_timeout(conn: Connection, clock: Clock) -> None:
    job = await waiting(conn, timeout="100 s")
    clock.advance(101)
    assert await one(conn, "select queue_pg.signal(%s, 'go', '1')", job) is True
    _, token = await claimed(conn, submit=False)
    call = "select timed_out, result from queue_pg.wait_for_event(%s, %s, 'go', '100 s')"
    assert await one(conn, call, job, token) == (False, 1)


@pytest.mark.parametrize(
    ("name", "payload", "field"),
    [
        ("", "1", "name"),
        ("x" * 201, "1", "name"),
        (None, "1", "name"),
        ("go", '"' + "x" * 1_048_576 + '"', "payload"),
        ("go", "1e100000", "payload"),
    ],
)
async def test_a_signal_that_makes_no_sense_is_named(conn: Connection, name: str, payload: str, field: str) -> None:
    job: UUID = await one(conn, "select queue_pg.submit('k')")
    sqlstate, detail = await refused(conn, "select queue_pg.signal(%s, %s, %s::jsonb)", job, name, payload)
    assert (sqlstate, detail["field"]) == ("QP005", field)


async def test_only_jobs_that_have_not_ended_take_signals(conn: Connection) -> None:
    unknown = uuid4()
    assert await refused(conn, "select queue_pg.signal(%s, 'go')", unknown) == ("QP001", {"id": str(unknown)})
    job = await waiting(conn)
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    assert await refused(conn, "select queue_pg.signal(%s, 'go')", job) == (
        "QP002",
        {"id": str(job), "action": "signal", "state": "cancelled"},
    )


async def test_a_deadline_ends_a_wait(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.submit('k', expires_at => queue_pg.now() + '1 h')")
    job, token = await claimed(conn, submit=False)
    await conn.execute("select queue_pg.wait_for_event(%s, %s, 'go')", (job, token))
    await conn.execute("select queue_pg.wait(%s, %s)", (job, token))
    clock.advance(3601)
    assert await one(conn, "select queue_pg.expire()") == 1
    assert await one(conn, "select error ->> 'code' from queue_pg.job(%s)", job) == "expired"


# --- two sessions at once ---------------------------------------------------------------------------------------------


async def until_done_or_blocked(conn: Connection, task: asyncio.Task[Any], pid: int) -> None:
    blocked = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    while not task.done() and (await rows(conn, blocked, pid)) != [(True,)]:
        await asyncio.wait({task}, timeout=0.01)


REACH = "select queue_pg.wait_for_event(%(id)s, 1, 'go', '1 h')"
WAIT = "select state from queue_pg.finish(array[%(id)s::uuid], array[1::bigint], array['wait'])"
SIGNAL = "select queue_pg.signal(%(id)s, 'go')"


@pytest.mark.parametrize(
    ("before", "first", "second"),
    [
        ([REACH], WAIT, SIGNAL),
        ([REACH], SIGNAL, WAIT),
        ([], REACH, SIGNAL),
        ([], SIGNAL, REACH),
    ],
    ids=[
        "signal while the wait is recorded",
        "wait while the signal is",
        "signal while reached",
        "reach while signalled",
    ],
)
async def test_no_wake_up_is_lost(conn: Connection, dsn: str, before: list[str], first: str, second: str) -> None:
    """The first holds its transaction open over the second; whatever the order, the job is claimable at the end."""
    job, _ = await claimed(conn)
    for statement in before:
        await conn.execute(statement, {"id": job})
    async with await Connection.connect(dsn) as a, await Connection.connect(dsn, autocommit=True) as b:
        await a.execute(first, {"id": job})
        pending = asyncio.create_task(b.execute(second, {"id": job}))
        await until_done_or_blocked(conn, pending, b.info.backend_pid)
        await a.commit()
        await pending
    if WAIT not in (first, second):
        await conn.execute(WAIT, {"id": job})
    assert await state(conn, job) == ("queued", 0)
    _, token = await claimed(conn, submit=False)
    assert await one(conn, "select finished_at is not null from queue_pg.wait_for_event(%s, %s, 'go')", job, token)


async def test_a_step_cannot_be_saved_past_the_end_of_its_lease(conn: Connection, dsn: str, clock: Clock) -> None:
    job, token = await claimed(conn)
    clock.advance(31)
    async with await Connection.connect(dsn) as reaper, await Connection.connect(dsn, autocommit=True) as worker:
        await reaper.execute("select queue_pg.reap()")
        saving = asyncio.create_task(worker.execute("select queue_pg.save_step(%s, %s, 'a', '1')", (job, token)))
        await until_done_or_blocked(conn, saving, worker.info.backend_pid)
        assert not saving.done()
        await reaper.commit()
        with pytest.raises(psycopg.Error) as caught:
            await saving
    assert caught.value.sqlstate == "QP003"
    assert await rows(conn, "select * from queue_pg.job_steps") == []


async def test_saving_a_step_does_not_hold_up_heartbeats(conn: Connection, dsn: str) -> None:
    job, token = await claimed(conn)
    async with await Connection.connect(dsn) as worker:
        await worker.execute("select queue_pg.save_step(%s, %s, 'a', '1')", (job, token))
        await conn.execute("set statement_timeout = '20 s'")
        assert len(await rows(conn, "select * from queue_pg.heartbeat(array[%s::uuid], array[%s])", job, token)) == 1


# --- what becomes of them ---------------------------------------------------------------------------------------------


async def test_steps_are_forgotten_with_their_job(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '30 minutes')")
    kept = await waiting(conn)
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.save_step(%s, %s, 'a', '1')", (job, token))
    await conn.execute("select queue_pg.signal(%s, 'go')", (job,))
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))

    async def left() -> set[UUID]:
        tables = "select job_id from queue_pg.job_steps union all select job_id from queue_pg.job_signals"
        found = await rows(conn, f"{tables} union all select job_id from queue_pg.stepped_jobs")
        return {row[0] for row in found}

    clock.advance(29 * 60)
    assert await one(conn, "select queue_pg.sweep_steps()") is False
    clock.advance(32 * 60)
    assert await one(conn, "select queue_pg.sweep_steps()") is True
    assert await left() == {kept}
    # The one that lives is looked at again later.
    assert await one(conn, "select queue_pg.sweep_steps()") is False
    await conn.execute("select queue_pg.cancel(%s)", (kept,))
    clock.advance(3601)
    await conn.execute("select queue_pg.maintain_history()")
    assert await left() == set()


async def test_an_ended_job_keeps_its_steps_for_its_retention(conn: Connection, clock: Clock) -> None:
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.save_step(%s, %s, 'a', '1')", (job, token))
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    clock.advance(2 * 3600)
    await conn.execute("select queue_pg.sweep_steps()")
    assert await one(conn, "select count(*) from queue_pg.job_steps") == 1
    assert await one(
        conn, "select look_at = (select retain_until from queue_pg.finished_jobs) from queue_pg.stepped_jobs"
    )


async def test_a_sweep_is_bounded_by_jobs_and_by_steps(conn: Connection, clock: Clock) -> None:
    for _ in range(6):
        job, token = await claimed(conn)
        save = "select queue_pg.save_step(%s, %s, n::text, '1') from generate_series(1, 10) n"
        await conn.execute(save, (job, token))
        await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    await conn.execute("update queue_pg.finished_jobs set retain_until = queue_pg.now()")
    clock.advance(3601)
    left = []
    for jobs, steps in ((2, 1000), (1000, 5), (1000, 11), (1000, 1000)):
        await conn.execute("select queue_pg.sweep_steps(%s, %s)", (jobs, steps))
        left.append(await one(conn, "select count(*) from queue_pg.job_steps"))
    assert left == [40, 30, 10, 0]


async def test_a_job_without_steps_leaves_no_trace_in_their_tables(conn: Connection) -> None:
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.snooze(%s, %s, '0')", (job, token))
    job, token = await claimed(conn, submit=False)
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    for table in ("job_steps", "job_signals", "stepped_jobs"):
        assert await one(conn, f"select count(*) from queue_pg.{table}") == 0


async def test_retry_goes_on_after_the_last_step_unless_it_is_to_be_fresh(conn: Connection) -> None:
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.save_step(%s, %s, 'a', '1')", (job, token))
    await conn.execute("select queue_pg.signal(%s, 'go')", (job,))
    await conn.execute("select queue_pg.fail(%s, %s, '{}', false)", (job, token))
    assert await one(conn, "select state::text, max_attempts from queue_pg.retry(%s, 2)", job) == ("queued", 2)
    assert await one(conn, "select count(*) from queue_pg.job_steps") == 1
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    assert await one(conn, "select state::text from queue_pg.retry(%s, fresh => true)", job) == "queued"
    for table in ("job_steps", "job_signals", "stepped_jobs"):
        assert await one(conn, f"select count(*) from queue_pg.{table}") == 0


async def test_retry_of_a_job_that_nobody_signalled_waits_anew(conn: Connection, clock: Clock) -> None:
    job = await waiting(conn, timeout="100 s")
    clock.advance(101)
    await conn.execute("select queue_pg.promote()")
    _, token = await claimed(conn, submit=False)
    await conn.execute("select queue_pg.save_step(%s, %s, 'a', '1')", (job, token))
    await conn.execute("select queue_pg.wait_for_event(%s, %s, 'go', '100 s')", (job, token))
    error = '{"code": "event_timeout", "event": "go"}'
    await conn.execute("select queue_pg.fail(%s, %s, %s::jsonb, false)", (job, token, error))
    await conn.execute("select queue_pg.retry(%s)", (job,))
    assert await rows(conn, "select name from queue_pg.job_steps") == [("a",)]
    assert await one(conn, "select queue_pg.signal(%s, 'go')", job) is True


# --- reruns -----------------------------------------------------------------------------------------------------------


async def test_a_rerun_is_a_new_job_like_its_origin(conn: Connection) -> None:
    origin = await one(
        conn,
        "select queue_pg.submit('chat', '{\"prompt\": \"x\"}', queue => 'q', priority => 7, max_attempts => 9,"
        " timeout => '77 s', unique_key => 'u', tags => '{a,b}', metadata => '{\"m\": 1}', org => 'acme',"
        " expires_at => queue_pg.now() + '1 h', traceparent => 't')",
    )
    rerun = await one(conn, "select id from queue_pg.rerun(%s)", origin)
    columns = "org, queue, kind, priority, payload, max_attempts, timeout, tags, metadata, traceparent, cost"
    of = f"select {columns} from queue_pg.job(%s)"
    assert await one(conn, of, rerun) == await one(conn, of, origin)
    own = "select rerun_of, state::text, attempt, unique_key, expires_at, parent_id, batch_id from queue_pg.job(%s)"
    assert await one(conn, own, rerun) == (origin, "queued", 0, None, None, None, None)
    assert await one(conn, "select rerun_of from queue_pg.job(%s)", origin) is None
    # The link outlives the end of the job, and a retry.
    await conn.execute("select queue_pg.cancel(%s)", (rerun,))
    assert await one(conn, "select rerun_of from queue_pg.job(%s)", rerun) == origin
    assert await one(conn, "select rerun_of from queue_pg.retry(%s)", rerun) == origin


@pytest.mark.parametrize("ended", [False, True])
async def test_a_rerun_of_a_job_that_waits_for_others_waits_for_them_too(conn: Connection, ended: bool) -> None:
    parent, token = await claimed(conn)
    depends_on = json.dumps([{"job": str(parent), "name": "p"}])
    submit = "select queue_pg.submit('c', '{\"text\": \"{{ parents.p.output }}\"}', depends_on => %s)"
    origin = await one(conn, submit, depends_on)
    if ended:
        await conn.execute("select queue_pg.cancel(%s)", (origin,))
    rerun = await one(conn, "select id from queue_pg.rerun(%s, payload_patch => '{\"n\": 1}', priority => 3)", origin)
    of = "select state::text, rerun_of, priority from queue_pg.job(%s)"
    assert await one(conn, of, rerun) == ("waiting", origin, 3)
    await conn.execute("select queue_pg.complete(%s, %s, '\"made\"')", (parent, token))
    assert await one(conn, of, rerun) == ("queued", origin, 3)
    assert await one(conn, "select payload from queue_pg.job(%s)", rerun) == {"text": "made", "n": 1}
    # What the others made is in its payload now: run again, it waits for nobody.
    again = await one(conn, "select id from queue_pg.rerun(%s)", rerun)
    assert await one(conn, "select state::text, payload from queue_pg.job(%s)", again) == (
        "queued",
        {"text": "made", "n": 1},
    )


async def test_a_rerun_that_ends_with_its_parents_is_linked_all_the_same(conn: Connection) -> None:
    parent, token = await claimed(conn)
    origin = await one(conn, "select queue_pg.submit('c', depends_on => %s)", json.dumps([str(parent)]))
    await conn.execute("select queue_pg.fail(%s, %s, '{}', false)", (parent, token))
    assert (await state(conn, origin))[0] == "cancelled"
    rerun = await one(conn, "select state::text, rerun_of, error ->> 'code' from queue_pg.rerun(%s)", origin)
    assert rerun == ("cancelled", origin, "parent_failed")


async def test_what_a_rerun_changes(conn: Connection) -> None:
    payload = '{"prompt": "x", "model": "small", "deep": {"a": 1, "b": 2}}'
    origin = await one(conn, "select queue_pg.submit('chat', %s)", payload)
    _, token = await claimed(conn, submit=False)
    await conn.execute("select queue_pg.complete(%s, %s, '1')", (origin, token))
    patch = '{"deep": {"a": null, "c": [1]}, "prompt": "y", "new": {"x": null, "y": 1}}'
    changed = await one(
        conn,
        "select payload, queue, priority, state::text, max_attempts, timeout, tags, metadata from queue_pg.rerun("
        "%s, payload_patch => %s, model => 'large', queue => 'q', priority => -3, delay => '1 h', max_attempts => 2,"
        " timeout => '5 s', tags => '{t}', metadata => '{\"m\": 2}')",
        origin,
        patch,
    )
    assert changed[0] == {"prompt": "y", "model": "large", "deep": {"b": 2, "c": [1]}, "new": {"y": 1}}
    assert changed[1:5] == ("q", -3, "scheduled", 2)
    assert (changed[5].total_seconds(), *changed[6:]) == (5, ["t"], {"m": 2})
    replaced = await one(conn, "select payload from queue_pg.rerun(%s, '{\"p\": 1}', model => 'm')", origin)
    assert replaced == {"p": 1, "model": "m"}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ("payload => '{}', payload_patch => '{}'", "payload_patch"),
        ("payload_patch => '[]'", "payload_patch"),
        ("payload => '[]', model => 'm'", "model"),
        ("model => ''", "model"),
    ],
)
async def test_a_rerun_that_makes_no_sense_is_named(conn: Connection, arguments: str, field: str) -> None:
    origin = await one(conn, "select queue_pg.submit('chat')")
    sqlstate, detail = await refused(conn, f"select queue_pg.rerun(%s, {arguments})", origin)
    assert (sqlstate, detail["field"]) == ("QP005", field)


async def test_a_model_is_for_chat_and_a_patch_for_objects(conn: Connection) -> None:
    origin = await one(conn, "select queue_pg.submit('other', '[1]')")
    for arguments, field in (("model => 'm'", "model"), ("payload_patch => '{}'", "payload_patch")):
        sqlstate, detail = await refused(conn, f"select queue_pg.rerun(%s, {arguments})", origin)
        assert (sqlstate, detail["field"]) == ("QP005", field)
    assert await one(conn, "select payload from queue_pg.rerun(%s, '7')", origin) == 7


async def test_a_forgotten_job_cannot_be_rerun(conn: Connection, clock: Clock) -> None:
    job, token = await claimed(conn)
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    clock.advance(31 * 86_400)
    assert (await refused(conn, "select queue_pg.rerun(%s)", job))[0] == "QP001"


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        # The examples of RFC 7396.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
async def test_merge_patch(conn: Connection, target: Any, patch: Any, merged: Any) -> None:
    call = "select queue_pg.merge_patch(%s::jsonb, %s::jsonb)"
    assert await one(conn, call, json.dumps(target), json.dumps(patch)) == merged
