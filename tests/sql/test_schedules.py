"""Schedules: each fire makes one job, whoever looks and whatever the clock does; what is missed; what is refused."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    [row] = await (await conn.execute(statement, args)).fetchall()
    return row[0] if len(row) == 1 else row


async def column(conn: Connection, statement: str, *args: Any) -> list[Any]:
    return [row[0] for row in await (await conn.execute(statement, args)).fetchall()]


async def schedule(conn: Connection, name: str = "s", **options: Any) -> None:
    """Make a schedule of kind `k`; times as texts."""
    casts = {"every": "interval", "jitter": "interval", "payload": "jsonb", "metadata": "jsonb"}
    given = "".join(f", {key} => %s::{casts.get(key, 'text')}" for key in options)
    for key in ("at", "starts_at", "ends_at"):
        given = given.replace(f" {key} => %s::text", f" {key} => %s::timestamptz")
    given = given.replace("create_only => %s::text", "create_only => %s::boolean")
    await conn.execute(f"select queue_pg.schedule(%s, 'k'{given})", (name, *options.values()))


async def set_clock(conn: Connection, clock: Clock, to: str) -> datetime:
    """Move the clock to a moment."""
    wanted = datetime.fromisoformat(to).replace(tzinfo=UTC)
    clock.advance(wanted - clock.now())
    return wanted


FIRES = "select j.metadata #>> '{schedule,fire_at}' from queue_pg.jobs j order by 1"


async def fire(conn: Connection) -> int:
    return await one(conn, "select promoted from queue_pg.maintain()")


# --- firing -----------------------------------------------------------------------------------------------------------


async def test_a_fire_makes_a_job_with_all_that_the_schedule_says(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T08:59:30")
    await conn.execute(
        """select queue_pg.schedule('a "daily" \\ one', 'report',
          '{"day": "{{ schedule.fire_at }}", "deep": [{"of": "by {{schedule.name}}!"}], "n": 1}', cron => '0 9 * * *',
          queue => 'texts', priority => 5, max_attempts => 7, timeout => '90 seconds', tags => array['x'],
          metadata => '{"mine": 1}')"""
    )
    assert await fire(conn) == 0
    clock.advance(31)
    assert await fire(conn) == 1
    job = await one(
        conn,
        "select to_jsonb(a) from queue_pg.all_jobs a",
    )
    assert job["payload"] == {
        "day": "2026-05-04T09:00:00Z",
        "deep": [{"of": 'by a "daily" \\ one!'}],
        "n": 1,
    }
    assert job["metadata"] == {"mine": 1, "schedule": {"name": 'a "daily" \\ one', "fire_at": "2026-05-04T09:00:00Z"}}
    assert (job["kind"], job["queue"], job["state"], job["priority"]) == ("report", "texts", "queued", 5)
    assert (job["max_attempts"], job["timeout"], job["tags"]) == (7, "00:01:30", ["x"])
    assert await fire(conn) == 0
    row = await one(conn, "select to_jsonb(s) from queue_pg.schedules s")
    assert row["last_fire_at"].startswith("2026-05-04T09:00:00")
    assert row["next_fire_at"].startswith("2026-05-05T09:00:00")
    assert row["last_job_id"] == job["id"]
    assert await one(conn, "select job_id::text from queue_pg.schedule_fires") == job["id"]


async def test_an_interval_counts_from_its_start(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:00")
    await schedule(conn, every="90 seconds", starts_at="2026-05-04T10:01:00Z", ends_at="2026-05-04T10:04:00Z")
    for _ in range(10):
        clock.advance(30)
        await fire(conn)
    assert await column(conn, FIRES) == ["2026-05-04T10:01:00Z", "2026-05-04T10:02:30Z", "2026-05-04T10:04:00Z"]
    assert await one(conn, "select next_fire_at from queue_pg.schedules") is None


async def test_one_moment_fires_once(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:00")
    await schedule(conn, at="2026-05-04T12:00:00.25+02:00")
    await schedule(conn, "later", at="2026-05-04T11:00:00Z")
    clock.advance(1)
    assert await fire(conn) == 1
    assert await fire(conn) == 0
    assert await column(conn, FIRES) == ["2026-05-04T10:00:00.250000Z"]
    # Resumed after its moment: what would have been during a pause is not made up for.
    await conn.execute("select queue_pg.pause_schedule('later')")
    clock.advance(7200)
    await conn.execute("select queue_pg.resume_schedule('later')")
    assert await fire(conn) == 0


async def test_a_plain_insert_is_a_schedule(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:00")
    await conn.execute("insert into queue_pg.schedules (name, kind, cron) values ('plain', 'k', '30 10 * * *')")
    assert (
        str(await one(conn, "select next_fire_at at time zone 'UTC' from queue_pg.schedules")) == "2026-05-04 10:30:00"
    )
    clock.advance(1801)
    assert await fire(conn) == 1
    await conn.execute("update queue_pg.schedules set cron = '45 10 * * *'")
    clock.advance(900)
    assert await fire(conn) == 1
    assert await column(conn, FIRES) == ["2026-05-04T10:30:00Z", "2026-05-04T10:45:00Z"]


async def test_jitter_puts_the_start_off_and_not_the_fire(conn: Connection, clock: Clock) -> None:
    now = await set_clock(conn, clock, "2026-05-04T10:00:00")
    for n in range(20):
        await schedule(conn, f"s{n}", every="1 minute", jitter="30 seconds", starts_at="2026-05-04T10:01:00Z")
    clock.advance(60)
    assert await fire(conn) == 20
    starts = await column(conn, "select run_at from queue_pg.jobs")
    assert set(await column(conn, FIRES)) == {"2026-05-04T10:01:00Z"}
    assert len(set(starts)) == 20
    assert all(timedelta(seconds=60) <= start - now <= timedelta(seconds=92) for start in starts)


async def test_a_schedule_and_its_job_are_of_its_org(conn: Connection, clock: Clock) -> None:
    for org in ("a", "b"):
        await conn.execute("select queue_pg.schedule('same', 'k', every => '1 minute', org => %s)", (org,))
    clock.advance(61)
    assert await fire(conn) == 2
    assert sorted(await column(conn, "select org from queue_pg.jobs")) == ["a", "b"]
    await conn.execute("select queue_pg.unschedule('same', 'a')")
    assert await column(conn, "select org from queue_pg.schedules") == ["b"]


# --- what nobody was there for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timing", [{"cron": "*/10 * * * *"}, {"every": "10 minutes", "starts_at": "2026-05-04T10:00:00Z"}]
)
@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("skip", []),
        ("once", ["2026-05-04T12:50:00Z"]),
        ("all", [f"2026-05-04T{h}:{m}0:00Z" for h in (10, 11, 12) for m in range(6) if (h, m) > (10, 1)]),
    ],
)
async def test_missed_fires(
    conn: Connection, clock: Clock, timing: dict[str, str], missed: str, expected: list[str]
) -> None:
    await set_clock(conn, clock, "2026-05-04T10:10:30")
    await schedule(conn, missed=missed, **timing)
    await set_clock(conn, clock, "2026-05-04T12:55:00")
    await fire(conn)
    assert await column(conn, FIRES) == expected
    # Back in time it fires as ever.
    await set_clock(conn, clock, "2026-05-04T13:00:05")
    assert await fire(conn) == 1
    assert await column(conn, FIRES) == [*expected, "2026-05-04T13:00:00Z"]


async def test_of_many_that_are_due_the_newest_is_on_time(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:30")
    await schedule(conn, cron="*/10 * * * *", missed="skip")
    await set_clock(conn, clock, "2026-05-04T10:30:20")
    assert await fire(conn) == 1
    assert await column(conn, FIRES) == ["2026-05-04T10:30:00Z"]


@pytest.mark.parametrize("timing", [{"cron": "* * * * *"}, {"every": "1 second"}])
async def test_all_that_was_missed_is_bounded_by_the_latest_thousand(
    conn: Connection, stopped: Clock, timing: dict[str, str]
) -> None:
    await schedule(conn, missed="all", **timing)
    stopped.advance(timedelta(days=365))
    assert await fire(conn) == 1000
    fires = await column(conn, FIRES)
    step = timedelta(minutes=1) if "cron" in timing else timedelta(seconds=1)
    moments = [datetime.fromisoformat(text) for text in fires]
    assert {later - earlier for earlier, later in pairwise(moments)} == {step}
    assert stopped.now() - moments[-1] <= step + timedelta(seconds=60)
    assert await fire(conn) == 0
    stopped.advance(step)
    assert await fire(conn) == 1


async def test_a_pause_is_no_outage(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:30")
    await schedule(conn, cron="0 * * * *", missed="all")
    await conn.execute("select queue_pg.pause_schedule('s')")
    await set_clock(conn, clock, "2026-05-04T15:30:00")
    assert await fire(conn) == 0
    await conn.execute("select queue_pg.resume_schedule('s')")
    assert await fire(conn) == 0
    await set_clock(conn, clock, "2026-05-04T16:00:01")
    assert await fire(conn) == 1
    assert await column(conn, FIRES) == ["2026-05-04T16:00:00Z"]


async def test_paused_while_it_was_due(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:30")
    await schedule(conn, cron="0 * * * *", missed="all")
    await set_clock(conn, clock, "2026-05-04T13:00:30")
    await conn.execute("select queue_pg.pause_schedule('s')")
    assert await fire(conn) == 0
    await conn.execute("select queue_pg.resume_schedule('s')")
    assert await fire(conn) == 0


async def test_run_now_is_extra(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:30")
    await schedule(conn, cron="0 11 * * *")
    await conn.execute("select queue_pg.pause_schedule('s')")
    first = await one(conn, "select queue_pg.run_schedule_now('s')")
    second = await one(conn, "select queue_pg.run_schedule_now('s')")
    assert first != second
    await conn.execute("select queue_pg.resume_schedule('s')")
    await set_clock(conn, clock, "2026-05-04T11:00:01")
    assert await fire(conn) == 1
    assert await one(conn, "select count(*) from queue_pg.jobs") == 3
    assert await one(conn, "select count(*) from queue_pg.schedule_fires") == 1


# --- many schedulers, any clock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_five_schedulers_and_a_clock_that_jumps(dsn: str, conn: Connection, clock: Clock, seed: int) -> None:
    chance = random.Random(seed)
    await set_clock(conn, clock, "2026-05-04T10:00:00")
    await schedule(conn, "cron", cron="*/15 * * * *", missed="all", time_zone="Europe/Berlin")
    await schedule(conn, "interval", every="7 minutes", missed="all")
    await schedule(conn, "once", every="10 minutes", missed="once")
    await schedule(conn, "skip", cron="*/5 * * * *", missed="skip")
    soon = clock.now() + timedelta(hours=2)
    await schedule(conn, "moment", at=soon.isoformat())
    sessions = [await Connection.connect(dsn, autocommit=True) for _ in range(5)]
    try:
        for _ in range(25):
            # Hours forwards and backwards, more forwards than back.
            clock.advance(chance.uniform(-3, 4) * 3600)
            if chance.random() < 0.4:
                # What starts next_fire_at anew at a clock that may have gone back.
                name = chance.choice(["cron", "interval", "once", "skip"])
                await conn.execute("select queue_pg.pause_schedule(%s)", (name,))
                await conn.execute("select queue_pg.resume_schedule(%s)", (name,))
            await asyncio.gather(
                *(session.execute("select queue_pg.fire_schedules()") for session in sessions for _ in range(2))
            )
    finally:
        for session in sessions:
            await session.close()
    made = await column(conn, "select metadata -> 'schedule' from queue_pg.jobs")
    times = Counter((each["name"], each["fire_at"]) for each in made)
    assert set(times.values()) == {1}
    # Whether one that skips was ever on time is the dice's.
    assert {name for name, _ in times} - {"skip"} == {"cron", "interval", "once", "moment"}
    assert len(made) > 60
    assert await one(conn, "select count(*) from queue_pg.schedule_fires where job_id is not null") == len(made)


async def test_ahead_of_a_clock_that_went_back_nothing_fires(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:30")
    await schedule(conn, cron="0 * * * *")
    await set_clock(conn, clock, "2026-05-04T20:00:01")
    assert await fire(conn) == 1
    await set_clock(conn, clock, "2026-05-04T10:30:00")
    for _ in range(9):
        assert await fire(conn) == 0
        clock.advance(3600)
    # A change looks from the present, and finds hours that have not fired and one that has.
    await set_clock(conn, clock, "2026-05-04T18:30:00")
    await conn.execute("update queue_pg.schedules set time_zone = 'Etc/GMT-1'")
    for _ in range(3):
        clock.advance(3600)
        await fire(conn)
    assert await column(conn, FIRES) == [
        "2026-05-04T19:00:00Z",
        "2026-05-04T20:00:00Z",
        "2026-05-04T21:00:00Z",
    ]


async def test_a_fire_and_its_job_are_one_transaction(dsn: str, conn: Connection, clock: Clock) -> None:
    await schedule(conn, every="1 minute")
    clock.advance(61)
    async with await Connection.connect(dsn) as other:
        assert await one(other, "select queue_pg.fire_schedules()") == 1
        # Locked: who looks now goes by.
        assert await one(conn, "select queue_pg.fire_schedules()") == 0
        await other.rollback()
    assert await one(conn, "select count(*) from queue_pg.schedule_fires") == 0
    assert await one(conn, "select queue_pg.fire_schedules()") == 1


async def test_many_at_one_moment_are_taken_in_short_steps(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:30")
    await conn.execute(
        "insert into queue_pg.schedules (name, kind, cron)"
        " select 's' || n, 'k', '@hourly' from generate_series(1, 250) n"
    )
    await set_clock(conn, clock, "2026-05-04T11:00:01")
    # As many as it was allowed: there is more, and the next look is at once.
    assert await fire(conn) == 1000
    assert await one(conn, "select count(*) from queue_pg.jobs") == 200
    assert await fire(conn) == 50
    assert await one(conn, "select count(distinct metadata #>> '{schedule,name}') from queue_pg.jobs") == 250
    assert await fire(conn) == 0


async def test_fires_are_remembered_for_a_week(conn: Connection, clock: Clock) -> None:
    await schedule(conn, every="1 day", missed="all")
    for _ in range(20):
        clock.advance(86_401)
        assert await fire(conn) == 1
    assert await one(conn, "select count(*) from queue_pg.schedule_fires") in (7, 8, 9)


# --- what cannot be ---------------------------------------------------------------------------------------------------


async def test_a_job_that_is_refused_stops_no_other(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:00:30")
    # There is no room left for what the schedule adds.
    full = json.dumps({"text": "".join(random.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(65_480))})
    await schedule(conn, "bad", cron="0 * * * *", metadata=full)
    await schedule(conn, "good", cron="0 * * * *")
    for hour in (11, 12):
        await set_clock(conn, clock, f"2026-05-04T{hour}:00:01")
        assert await fire(conn) == 1
    assert await column(conn, "select distinct metadata #>> '{schedule,name}' from queue_pg.jobs") == ["good"]
    error, next_fire = await one(conn, "select error, next_fire_at from queue_pg.schedules where name = 'bad'")
    assert error["code"] == "23514"
    assert "metadata" in error["message"]
    assert error["fire_at"].startswith("2026-05-04T12:00:00")
    assert next_fire.hour == 13
    await conn.execute("update queue_pg.schedules set metadata = '{}' where name = 'bad'")
    await set_clock(conn, clock, "2026-05-04T13:00:01")
    assert await fire(conn) == 2
    assert await one(conn, "select error from queue_pg.schedules where name = 'bad'") is None


async def test_what_passes_by_itself_loses_no_fire(dsn: str, conn: Connection, clock: Clock) -> None:
    await schedule(conn, every="1 minute")
    clock.advance(61)
    await conn.execute("set lock_timeout = '50ms'")
    async with await Connection.connect(dsn) as other:
        await other.execute("lock table queue_pg.jobs in access exclusive mode")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await conn.execute("select queue_pg.fire_schedules()")
        await other.rollback()
    assert await one(conn, "select error from queue_pg.schedules") is None
    assert await one(conn, "select queue_pg.fire_schedules()") == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing says when": ({}, "cron"),
    "two say when": ({"cron": "@daily", "every": "1 hour"}, "cron"),
    "too often": ({"every": "0.9 seconds"}, "every"),
    "months are no length": ({"every": "1 month"}, "every"),
    "negative": ({"every": "-1 hour"}, "every"),
    "too seldom": ({"every": "3651 days"}, "every"),
    "no expression": ({"cron": "every day"}, "cron"),
    "no zone": ({"cron": "@daily", "time_zone": "Mars/Olympus"}, "time_zone"),
    "no policy": ({"cron": "@daily", "missed": "twice"}, "missed"),
    "too much jitter": ({"cron": "@daily", "jitter": "2 days"}, "jitter"),
    "ends before it starts": (
        {"cron": "@daily", "starts_at": "2026-05-05T00:00Z", "ends_at": "2026-05-04T00:00Z"}, "ends_at",
    ),
    "infinite": ({"at": "infinity"}, "at"),
    "unknown word": ({"cron": "@daily", "payload": '{"x": "{{ schedule.when }}"}'}, "payload"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
async def test_what_cannot_be_a_schedule_is_refused_by_its_field(
    conn: Connection, case: tuple[dict[str, Any], str]
) -> None:
    options, field = case
    with pytest.raises(psycopg.Error) as caught:
        await schedule(conn, **options)
    assert caught.value.sqlstate == "QP005"
    assert json.loads(caught.value.diag.message_detail or "")["field"] == field
    assert await one(conn, "select count(*) from queue_pg.schedules") == 0


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 201])
async def test_what_cannot_be_a_name(conn: Connection, name: str) -> None:
    with pytest.raises(psycopg.Error, match="name"):
        await schedule(conn, name, cron="@daily")


async def test_an_insert_and_an_update_are_checked_too(conn: Connection) -> None:
    with pytest.raises(psycopg.Error, match="cron"):
        await conn.execute("insert into queue_pg.schedules (name, kind, cron) values ('x', 'k', '99 * * * *')")
    await schedule(conn, cron="@daily")
    with pytest.raises(psycopg.Error, match="time_zone"):
        await conn.execute("update queue_pg.schedules set time_zone = 'Nowhere/Else'")
    with pytest.raises(psycopg.Error, match="jobs_queue_length"):
        await conn.execute("update queue_pg.schedules set queue = ''")


async def test_ten_thousand_schedules_and_no_more(conn: Connection) -> None:
    await conn.execute("alter table queue_pg.schedules disable trigger schedules_plan")
    await conn.execute(
        "insert into queue_pg.schedules (name, kind, every)"
        " select 's' || n, 'k', '1 day' from generate_series(1, 10000) n"
    )
    await conn.execute("alter table queue_pg.schedules enable trigger schedules_plan")
    with pytest.raises(psycopg.Error, match="10,000"):
        await schedule(conn, cron="@daily")
    await schedule(conn, "s1", cron="@hourly")
    await conn.execute("select queue_pg.schedule('s', 'k', cron => '@daily', org => 'other')")


# --- making and changing ----------------------------------------------------------------------------------------------


async def test_the_same_again_changes_nothing(conn: Connection, clock: Clock) -> None:
    await schedule(conn, every="1 hour", payload='{"a": 1}')
    before = await one(conn, "select to_jsonb(s) || jsonb_build_object('xmin', s.xmin::text) from queue_pg.schedules s")
    clock.advance(60)
    await schedule(conn, every="3600 seconds", payload='{"a": 1}')
    assert before == await one(
        conn, "select to_jsonb(s) || jsonb_build_object('xmin', s.xmin::text) from queue_pg.schedules s"
    )
    await schedule(conn, every="1 hour", payload='{"a": 2}')
    row = await one(conn, "select to_jsonb(s) from queue_pg.schedules s")
    assert row["payload"] == {"a": 2}
    assert row["next_fire_at"] == before["next_fire_at"]


async def test_made_by_many_at_once_it_is_one(dsn: str, conn: Connection) -> None:
    sessions = [await Connection.connect(dsn, autocommit=True) for _ in range(5)]
    made = await asyncio.gather(
        *(one(session, "select (queue_pg.schedule('s', 'k', cron => '@daily')).created") for session in sessions)
    )
    for session in sessions:
        await session.close()
    assert sorted(made) == [False, False, False, False, True]
    assert await one(conn, "select count(*) from queue_pg.schedules") == 1


async def test_create_only_takes_no_name_twice(conn: Connection) -> None:
    await schedule(conn, cron="@daily")
    with pytest.raises(psycopg.Error) as caught:
        await schedule(conn, cron="@hourly", create_only=True)
    assert caught.value.sqlstate == "QP021"
    assert await one(conn, "select cron from queue_pg.schedules") == "@daily"


@pytest.mark.parametrize("function", ["unschedule", "pause_schedule", "resume_schedule", "run_schedule_now"])
async def test_no_such_schedule(conn: Connection, function: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute(f"select queue_pg.{function}('nothing')")
    assert caught.value.sqlstate == "QP020"


async def test_the_code_keeps_its_schedules_until_people_take_them(conn: Connection) -> None:
    register = "select queue_pg.register_schedule('k', %s, null, 'UTC', 'once', 'default', 0)"
    assert await one(conn, register, "0 9 * * *")
    await conn.execute("select queue_pg.pause_schedule('k')")
    assert await one(conn, register, "0 10 * * *")
    assert await one(conn, "select cron, paused, origin from queue_pg.schedules") == ("0 10 * * *", True, "code")
    await conn.execute("select queue_pg.schedule('k', 'k', cron => '0 11 * * *')")
    assert not await one(conn, register, "0 10 * * *")
    assert await one(conn, "select cron, origin from queue_pg.schedules") == ("0 11 * * *", "user")


# --- maintenance ------------------------------------------------------------------------------------------------------


async def test_maintenance_knows_when_the_next_fire_is(conn: Connection, clock: Clock) -> None:
    await set_clock(conn, clock, "2026-05-04T10:59:50")
    await schedule(conn, cron="0 * * * *")
    due = await one(conn, "select next_due_seconds from queue_pg.maintain()")
    assert 5 < due <= 10
    assert await one(conn, "select next_due_seconds from queue_pg.maintain(within => '1 second')") is None
    await conn.execute("select queue_pg.pause_schedule('s')")
    assert await one(conn, "select next_due_seconds from queue_pg.maintain()") is None


async def test_a_schedule_that_is_made_wakes_maintenance(dsn: str, conn: Connection) -> None:
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_due")
        await conn.execute("select queue_pg.arm_due()")
        await schedule(conn, "far", every="1 hour")
        await schedule(conn, "near", every="1 second")
        heard = [notification.channel async for notification in listener.notifies(timeout=20, stop_after=1)]
    assert heard == ["queue_pg_due"]
