"""The attempts of a job as its events and its row tell them: every way to end one, and what is forgotten."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection
Row = dict[str, Any]

ERROR = '{"code": "upstream", "message": "503"}'


async def value(conn: Connection, statement: str, *args: Any) -> Any:
    row = await (await conn.execute(statement, args)).fetchone()
    return row and row[0]


async def attempts(conn: Connection, job: UUID, after: int = 0, most: int = 1000) -> list[Row]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("select * from queue_pg.attempts(%s, %s, %s)", (job, after, most))
        return await cursor.fetchall()


async def outcomes(conn: Connection, job: UUID) -> list[tuple[int | None, str | None]]:
    return [(each["attempt"], each["outcome"]) for each in await attempts(conn, job)]


async def submit(conn: Connection, arguments: str = "") -> UUID:
    found: UUID = await value(conn, f"select queue_pg.submit('k', queue => 'q'{arguments})")
    return found


async def claim(conn: Connection, worker: str = "w") -> int:
    """Claim the one job there is; return its token."""
    token: int | None = await value(conn, "select lease_token from queue_pg.claim(%s, '{q}')", worker)
    assert token is not None, "there was nothing to claim"
    return token


async def fail(conn: Connection, job: UUID, token: int, **more: str) -> None:
    named = "".join(f", {name} => {text}" for name, text in more.items())
    await conn.execute(f"select queue_pg.fail(%s, %s, %s{named})", (job, token, ERROR))  # type: ignore[arg-type]


async def due(conn: Connection, clock: Clock, seconds: float) -> None:
    clock.advance(seconds)
    await conn.execute("select queue_pg.promote()")


async def forget(conn: Connection, job: UUID, up_to: int) -> None:
    """Drop events as retention does."""
    await conn.execute("delete from queue_pg.job_events where job_id = %s and seq <= %s", (job, up_to))


async def test_nobody_and_never_claimed(conn: Connection) -> None:
    assert await attempts(conn, uuid4()) == []
    job = await submit(conn)
    assert await attempts(conn, job) == []
    await conn.execute("select queue_pg.reprioritize(%s, 5)", (job,))
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    assert await attempts(conn, job) == []
    await forget(conn, job, 10)
    assert await attempts(conn, job) == []


async def test_the_straight_way_needs_no_row(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn)
    stopped.advance(4)
    token = await claim(conn)
    stopped.advance(2)
    [running] = await attempts(conn, job)
    assert (running["seq"], running["attempt"], running["worker_id"], running["outcome"]) == (2, 1, "w", "running")
    assert running["waited_seconds"] == 4
    assert running["ran_seconds"] == 2
    assert running["ended_at"] is running["ended_seq"] is running["error"] is running["run_at"] is None
    stopped.advance(3)
    result = {"text": "x", "model": "small", "usage": {"total_tokens": 7}}
    await conn.execute("select queue_pg.complete(%s, %s, %s)", (job, token, json.dumps(result)))
    stopped.advance(100)
    [ended] = await attempts(conn, job)
    assert (ended["seq"], ended["ended_seq"], ended["outcome"]) == (2, 3, "completed")
    assert (ended["model"], ended["usage"]) == ("small", {"total_tokens": 7})
    assert ended["ran_seconds"] == 5
    times = await value(conn, "select array[started_at, finished_at] from queue_pg.job(%s)", job)
    assert [ended["started_at"], ended["ended_at"]] == times
    assert await value(conn, "select count(*) from queue_pg.job_events") == 0


@pytest.mark.parametrize(
    "result", [None, "null", "[]", '"x"', '{"model": 5, "usage": "much"}', '{"model": null, "usage": []}']
)
async def test_other_results_have_no_model_and_no_usage(conn: Connection, result: str | None) -> None:
    job = await submit(conn)
    await conn.execute("select queue_pg.complete(%s, %s, %s)", (job, await claim(conn), result))
    [ended] = await attempts(conn, job)
    assert (ended["outcome"], ended["model"], ended["usage"]) == ("completed", None, None)


async def test_a_very_large_result_is_not_fetched_for_its_model(conn: Connection) -> None:
    job = await submit(conn)
    noise = "".join(uuid4().hex for _ in range(5_000))
    result = json.dumps({"model": "small", "noise": noise})
    await conn.execute("select queue_pg.complete(%s, %s, %s)", (job, await claim(conn), result))
    [ended] = await attempts(conn, job)
    assert (ended["outcome"], ended["model"]) == ("completed", None)


ENDS = {
    "fail": ("failed", "select queue_pg.fail(%(id)s, %(token)s, %(error)s, delay => '10 seconds')"),
    "discard": ("failed", "select queue_pg.fail(%(id)s, %(token)s, %(error)s, retry => false)"),
    "timeout": ("timeout", "select queue_pg.fail(%(id)s, %(token)s, '{\"code\": \"timeout\"}', delay => '9 seconds')"),
    "snooze": ("snoozed", "select queue_pg.snooze(%(id)s, %(token)s, '10 seconds')"),
    "wait": ("suspended", "select queue_pg.wait(%(id)s, %(token)s)"),
    "release": ("released", "select queue_pg.release(%(id)s, %(token)s)"),
    "cancel by its handler": ("cancelled", "select queue_pg.cancel_claimed(%(id)s, %(token)s, 'why')"),
    "cancel by somebody": ("cancelled", "select queue_pg.cancel(%(id)s, 'why')"),
    "plan": (
        "planned",
        """select queue_pg.finish_one(%(id)s, %(token)s, 'plan', '{"subtasks": ["a", "b"]}', null, null)""",
    ),
    "complete": ("completed", "select queue_pg.complete(%(id)s, %(token)s)"),
}
ERRORS = {"fail": "upstream", "discard": "upstream", "timeout": "timeout"} | dict.fromkeys(
    ("cancel by its handler", "cancel by somebody"), "cancelled"
)


@pytest.mark.parametrize("said", [False, True], ids=["mute", "saying something"])
@pytest.mark.parametrize("name", ENDS)
async def test_every_way_to_end_an_attempt(conn: Connection, stopped: Clock, name: str, said: bool) -> None:
    job = await submit(conn)
    token = await claim(conn)
    if said:
        await conn.execute("select queue_pg.append_event(%s, %s, 'log', '{\"line\": \"x\"}')", (job, token))
    stopped.advance(7)
    outcome, statement = ENDS[name]
    await conn.execute(statement, {"id": job, "token": token, "error": ERROR})  # type: ignore[arg-type]
    stopped.advance(1)
    [ended] = await attempts(conn, job)
    assert (ended["attempt"], ended["worker_id"], ended["outcome"], ended["seq"]) == (1, "w", outcome, 2)
    assert ended["ended_seq"] == 3 + said
    assert ended["ran_seconds"] == 7
    assert (ended["error"] or {}).get("code") == ERRORS.get(name)
    later = {"fail": 10, "timeout": 9, "snooze": 10}.get(name)
    if later is None:
        # At once, if again.
        assert ended["run_at"] is None or ended["run_at"] <= ended["ended_at"]
    else:
        assert (ended["run_at"] - ended["ended_at"]).total_seconds() == later


async def test_a_lost_lease_and_a_timeout_that_the_reaper_sees(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn, ", timeout => '40 seconds'")
    await claim(conn, "gone")
    stopped.advance(31)
    await conn.execute("select queue_pg.reap()")
    stopped.advance(5)
    await claim(conn, "hung")
    stopped.advance(80)
    await conn.execute("select queue_pg.reap()")
    lost, hung = await attempts(conn, job)
    assert (lost["attempt"], lost["worker_id"], lost["outcome"]) == (1, "gone", "lease_lost")
    assert lost["error"]["code"] == "lease_lost"
    assert (hung["attempt"], hung["worker_id"], hung["outcome"], hung["error"]["code"]) == (
        1,
        "hung",
        "timeout",
        "timeout",
    )
    # It was back at once.
    assert hung["waited_seconds"] == 5


async def test_retried_by_hand_and_run_again(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn, ", max_attempts => 2")
    await fail(conn, job, await claim(conn, "a"), delay="'1 minute'")
    await due(conn, stopped, 61)
    stopped.advance(3)
    await fail(conn, job, await claim(conn, "b"))
    stopped.advance(500)
    await conn.execute("select queue_pg.retry(%s)", (job,))
    stopped.advance(2)
    await conn.execute("select queue_pg.complete(%s, %s)", (job, await claim(conn, "c")))
    found = await attempts(conn, job)
    assert [(each["attempt"], each["worker_id"], each["outcome"]) for each in found] == [
        (1, "a", "failed"),
        (2, "b", "failed"),
        (1, "c", "completed"),
    ]
    # Not the minute that it was to wait, and not the time that it was failed.
    assert [each["waited_seconds"] for each in found] == [0, 3, 2]
    assert [each["run_at"] is not None for each in found] == [True, False, False]
    again = await value(conn, "select j.id from queue_pg.rerun(%s) j", job)
    assert await attempts(conn, again) == []


async def test_cancelled_or_expired_while_it_waits_ends_no_attempt(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn, ", expires_at => queue_pg.now() + '1 hour'")
    await conn.execute("select queue_pg.snooze(%s, %s, '1 day')", (job, await claim(conn)))
    stopped.advance(3_601)
    assert await value(conn, "select queue_pg.expire()") == 1
    await conn.execute("select queue_pg.retry(%s)", (job,))
    await conn.execute("select queue_pg.release(%s, %s)", (job, await claim(conn, "v")))
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    found = await attempts(conn, job)
    assert [(each["worker_id"], each["outcome"]) for each in found] == [("w", "snoozed"), ("v", "released")]


async def test_a_planned_task_that_fails_later(conn: Connection) -> None:
    job = await submit(conn)
    plan = '{"subtasks": ["a"], "queue": "subtasks"}'
    await conn.execute("select queue_pg.finish_one(%s, %s, 'plan', %s, null, null)", (job, await claim(conn), plan))
    await conn.execute(
        'select queue_pg.fail(id, lease_token, \'{"code": "x"}\', retry => false)'
        " from queue_pg.claim('v', '{subtasks}')"
    )
    assert await value(conn, "select state::text from queue_pg.job(%s)", job) == "failed"
    [planned] = await attempts(conn, job)
    assert (planned["outcome"], planned["error"]) == ("planned", None)


async def test_a_signal_ends_the_time_that_is_not_waiting(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn)
    token = await claim(conn)
    await conn.execute("select queue_pg.wait_for_event(%s, %s, 'go', '1 day')", (job, token))
    await conn.execute("select queue_pg.wait(%s, %s)", (job, token))
    stopped.advance(600)
    await conn.execute("select queue_pg.signal(%s, 'go')", (job,))
    stopped.advance(4)
    await claim(conn)
    first, second = await attempts(conn, job)
    assert (first["outcome"], second["outcome"]) == ("suspended", "running")
    assert second["waited_seconds"] == 4


async def test_a_hundred_attempts_page_by_page(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn, ", max_attempts => 100")
    for number in range(100):
        stopped.advance(1)
        token = await claim(conn, f"w{number}")
        if number % 10 == 0:
            await conn.execute("select queue_pg.append_event(%s, %s, 'log', '{\"line\": \"x\"}')", (job, token))
        await fail(conn, job, token, delay="'0'")
    whole = await attempts(conn, job)
    assert [each["attempt"] for each in whole] == list(range(1, 101))
    assert [each["worker_id"] for each in whole] == [f"w{number}" for number in range(100)]
    assert {each["outcome"] for each in whole} == {"failed"}
    assert {each["waited_seconds"] for each in whole} == {1}
    told: list[Row] = []
    while page := await attempts(conn, job, told[-1]["ended_seq"] if told else 0, 7):
        assert len(page) == min(7, 100 - len(told))
        told += page
    assert told == whole
    # In the midst of an attempt: it has started before.
    assert await attempts(conn, job, whole[50]["seq"]) == whole[51:]
    assert await attempts(conn, job, whole[-1]["ended_seq"]) == []
    assert await attempts(conn, job, 0, 0) == []
    assert await attempts(conn, job, -5) == whole


# ---- what is forgotten ----------------------------------------------------------------------------------------------


async def test_forgotten_attempts_are_missing_and_that_is_said(conn: Connection) -> None:
    job = await submit(conn)
    for worker in ("a", "b", "c"):
        await fail(conn, job, await claim(conn, worker), delay="'0'")
    whole = await attempts(conn, job)
    assert [each["seq"] for each in whole] == [2, 4, 6]
    await forget(conn, job, 3)
    told, *rest = await attempts(conn, job)
    assert (told["seq"], told["outcome"]) == (3, "forgotten")
    assert {name for name, found in told.items() if found is not None} == {"seq", "outcome"}
    assert rest == [{**whole[1], "waited_seconds": None}, whole[2]]
    # Whoever has read on is told nothing of it.
    assert await attempts(conn, job, whole[1]["ended_seq"]) == [whole[2]]
    # The end alone is left of the second.
    await forget(conn, job, 4)
    told, second, third = await attempts(conn, job)
    assert (told["seq"], told["outcome"]) == (4, "forgotten")
    assert (second["seq"], second["attempt"], second["worker_id"], second["outcome"]) == (None, 2, "b", "failed")
    assert second["started_at"] is second["ran_seconds"] is second["waited_seconds"] is None
    assert (second["ended_at"], second["error"]) == (whole[1]["ended_at"], whole[1]["error"])
    assert third == whole[2]


async def test_a_long_run_outlives_its_start(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn)
    token = await claim(conn)
    at = await value(conn, "select started_at from queue_pg.job(%s)", job)
    for _ in range(2):
        await conn.execute("select queue_pg.append_event(%s, %s, 'log', '{\"line\": \"x\"}')", (job, token))
    await forget(conn, job, 4)
    stopped.advance(20)
    told, running = await attempts(conn, job)
    assert (told["outcome"], told["seq"]) == ("forgotten", 4)
    assert (running["outcome"], running["attempt"], running["worker_id"], running["started_at"]) == (
        "running",
        1,
        "w",
        at,
    )
    assert running["ran_seconds"] == 20
    assert running["seq"] is running["waited_seconds"] is None
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    _, ended = await attempts(conn, job)
    assert (ended["outcome"], ended["started_at"], ended["ended_seq"]) == ("completed", at, 5)


@pytest.mark.parametrize("after_a_word", [False, True], ids=["nothing known", "it spoke last"])
async def test_a_cancel_after_what_is_forgotten(conn: Connection, after_a_word: bool) -> None:
    """It ended the attempt if that has spoken since; else the job may have waited again."""
    job = await submit(conn)
    token = await claim(conn)
    for _ in range(2):
        await conn.execute("select queue_pg.append_event(%s, %s, 'log', '{\"line\": \"x\"}')", (job, token))
    if not after_a_word:
        await conn.execute("select queue_pg.release(%s, %s)", (job, token))
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    await forget(conn, job, 3 if after_a_word else 5)
    _, last = await attempts(conn, job)
    assert (last["outcome"], last["attempt"]) == (("cancelled", 1) if after_a_word else (None, None))
    assert (last["ended_at"] is not None) == after_a_word
    assert last["started_at"] is not None


async def test_a_snooze_longer_than_the_memory(conn: Connection, stopped: Clock) -> None:
    job = await submit(conn)
    await conn.execute("select queue_pg.snooze(%s, %s, '30 days')", (job, await claim(conn)))
    await forget(conn, job, 3)
    _, last = await attempts(conn, job)
    assert (last["outcome"], last["attempt"], last["worker_id"], last["ended_at"]) == (None, None, "w", None)
    await due(conn, stopped, 31 * 86_400)
    _, last = await attempts(conn, job)
    assert (last["outcome"], last["ended_at"]) == (None, None)
    await claim(conn, "v")
    stopped.advance(1)
    forgotten, now = await attempts(conn, job)
    assert (forgotten["outcome"], now["outcome"], now["worker_id"]) == ("forgotten", "running", "v")


async def test_a_plan_older_than_the_memory(conn: Connection) -> None:
    job = await submit(conn)
    plan = '{"subtasks": ["a"], "queue": "subtasks"}'
    await conn.execute("select queue_pg.finish_one(%s, %s, 'plan', %s, null, null)", (job, await claim(conn), plan))
    await forget(conn, job, 3)
    for finished in (False, True):
        if finished:
            await conn.execute("select queue_pg.complete(id, lease_token) from queue_pg.claim('v', '{subtasks}')")
        assert await value(conn, "select state = 'completed' from queue_pg.job(%s)", job) is finished
        _, last = await attempts(conn, job)
        assert (last["outcome"], last["attempt"], last["ended_at"]) == ("planned", 1, None)


async def test_retention_itself_forgets(conn: Connection, stopped: Clock) -> None:
    await conn.execute("select queue_pg.configure(events_retention => '1 day')")
    job = await submit(conn)
    await fail(conn, job, await claim(conn), delay="'0'")
    stopped.advance(4 * 86_400)
    for _ in range(20):
        await conn.execute("select queue_pg.maintain_history()")
    assert await value(conn, "select count(*) from queue_pg.job_events") == 0
    await claim(conn, "v")
    forgotten, running = await attempts(conn, job)
    assert (forgotten["outcome"], forgotten["seq"]) == ("forgotten", 3)
    assert (running["outcome"], running["worker_id"], running["waited_seconds"]) == ("running", "v", None)


async def test_it_reads_its_own_job_alone(conn: Connection) -> None:
    """The rows and events of other jobs stay unread."""
    job = await submit(conn)
    await fail(conn, job, await claim(conn), delay="'0'")
    await conn.execute("insert into queue_pg.jobs (kind, queue) select 'k', 'other' from generate_series(1, 600)")
    await conn.execute("select queue_pg.cancel(id) from queue_pg.jobs where queue = 'other' limit 300")
    read = (
        "select sum(pg_stat_get_xact_tuples_returned(c.oid)) from pg_class c"
        " where c.relnamespace = 'queue_pg'::regnamespace and c.relkind in ('r', 'i')"
        " and c.relname ~ '^(jobs|job_events|finished_jobs)'"
    )
    async with conn.transaction():
        before = await value(conn, read)
        assert await outcomes(conn, job) == [(1, "failed")]
        # Two events, each looked at a few times, and a row.
        assert 0 < await value(conn, read) - before < 30
