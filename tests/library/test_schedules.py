"""Schedules through the library, both clients, and the guide."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import queue_pg
from queue_pg import (
    InvalidJob,
    NewJob,
    NewSchedule,
    PayloadTooLarge,
    Queue,
    ScheduleExists,
    ScheduleNotFound,
    SyncQueue,
    Tasks,
    Timing,
    current_job,
)
from queue_pg.testing import Clock, drain

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "schedules.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


async def test_the_guide_s_sql_runs(conn: psycopg.AsyncConnection) -> None:
    for block in blocks("sql"):
        await conn.execute(block)
    names = await (await conn.execute("select name from queue_pg.schedules order by name")).fetchall()
    assert [name for (name,) in names] == ["nightly", "reminder", "report"]


@pytest.mark.parametrize("block", blocks("python"))
def test_the_guide_s_python_compiles(block: str) -> None:
    compile(block, "schedules.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for names in re.findall(r"from queue_pg import ([\w, ]+)", block):
        assert set(names.split(", ")) <= set(queue_pg.__all__)


async def test_a_schedule_comes_back_as_it_was_given(dsn: str) -> None:
    starts = datetime(2031, 1, 1, tzinfo=UTC)
    async with Queue(dsn, notify=False) as queue:
        made = await queue.schedule(
            "s",
            "k",
            {"a": [1, None]},
            cron="30 9 * * *",
            time_zone="Europe/Berlin",
            starts_at=starts,
            ends_at=starts + timedelta(days=2),
            jitter=5,
            missed="all",
            queue="texts",
            priority=-3,
            max_attempts=2,
            timeout=timedelta(minutes=2),
            tags=["t"],
            metadata={"m": 1},
        )
        assert made == await queue.get_schedule("s")
        assert await queue.schedules() == [made]
    assert (made.name, made.org, made.kind, made.payload) == ("s", "default", "k", {"a": [1, None]})
    assert (made.cron, made.every, made.at, made.time_zone) == ("30 9 * * *", None, None, "Europe/Berlin")
    assert (made.jitter, made.missed, made.paused, made.origin) == (timedelta(seconds=5), "all", False, "user")
    assert (made.queue, made.priority, made.max_attempts, made.timeout) == ("texts", -3, 2, timedelta(minutes=2))
    assert (made.tags, made.metadata, made.error, made.last_job_id) == (["t"], {"m": 1}, None, None)
    assert made.next_fires == [starts.replace(hour=8, minute=30), starts.replace(day=2, hour=8, minute=30)]


async def test_its_life(dsn: str, clock: Clock) -> None:
    async with Queue(dsn, notify=False) as queue:
        await queue.schedule("s", "k", every=60)
        paused = await queue.pause_schedule("s")
        assert (paused.paused, paused.next_fires) == (True, [])
        # The same again, which says nothing of a pause, leaves it.
        assert (await queue.schedule("s", "k", every=timedelta(minutes=1))).paused
        assert len((await queue.resume_schedule("s")).next_fires) == 5
        extra = await queue.get(await queue.run_schedule_now("s"))
        assert (extra.kind, extra.metadata["schedule"]["name"]) == ("k", "s")
        await queue.unschedule("s")
        assert await queue.schedules() == []
        for refused in (queue.get_schedule, queue.unschedule, queue.pause_schedule, queue.run_schedule_now):
            with pytest.raises(ScheduleNotFound, match="'s'"):
                await refused("s")


async def test_create_only(dsn: str) -> None:
    new = NewSchedule(name="s", timing=Timing(every=60), job=NewJob(kind="k"))
    async with Queue(dsn, notify=False) as queue:
        assert (await queue.put_schedule(new, create_only=True))[1]
        assert not (await queue.put_schedule(new))[1]
        with pytest.raises(ScheduleExists) as caught:
            await queue.put_schedule(new, create_only=True)
    assert caught.value.name == "s"


async def test_pages_and_tenants(dsn: str) -> None:
    async with Queue(dsn, notify=False, org="a") as ours, Queue(dsn, notify=False, org="b") as theirs:
        for name in ("one", "two", "three"):
            await ours.schedule(name, "k", every=60)
        await theirs.schedule("one", "k", every=60)
        first = await ours.schedules(limit=2)
        assert [each.name for each in first] == ["one", "three"]
        assert [each.name for each in await ours.schedules(limit=2, after=first[-1].name)] == ["two"]
        with pytest.raises(ScheduleNotFound):
            await theirs.get_schedule("two")
        await theirs.unschedule("one")
        assert (await ours.get_schedule("one")).org == "a"
    async with Queue(dsn, notify=False, org=None) as every:
        assert len(await every.schedules()) == 3


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"cron": "nonsense"}, "cron"),
    ({}, "cron"),
    ({"cron": "@daily", "every": 60}, "cron"),
    ({"every": 0.5}, "every"),
    ({"every": "60"}, "every"),
    ({"every": float("nan")}, "every"),
    ({"every": timedelta(days=40_000)}, "every"),
    ({"cron": "@daily", "time_zone": "Nowhere"}, "time_zone"),
    ({"cron": "\x00"}, "cron"),
    ({"at": datetime(2030, 1, 1)}, "at"),
    ({"every": 60, "jitter": -1}, "jitter"),
    ({"every": 60, "missed": "sometimes"}, "missed"),
    ({"every": 60, "starts_at": datetime(2030, 1, 1)}, "starts_at"),
    ({"every": 60, "priority": 99_999}, "priority"),
    ({"every": 60, "queue": ""}, "queue"),
    ({"every": 60, "tags": "t"}, "tags"),
    ({"every": 60, "payload": {"n": float("inf")}}, "payload.n"),
    ({"every": 60, "payload": "{{ schedule.what }}"}, "payload"),
]


@pytest.mark.parametrize(("options", "field"), WRONG, ids=lambda value: str(value)[:50])
async def test_refusals_name_the_field(dsn: str, options: dict[str, Any], field: str) -> None:
    async with Queue(dsn, notify=False) as queue:
        with pytest.raises(InvalidJob) as caught:
            await queue.schedule("s", "k", options.pop("payload", None), **options)
        assert caught.value.field == field
        assert await queue.schedules() == []


async def test_names_limits_and_sizes(dsn: str) -> None:
    async with Queue(dsn, notify=False, max_payload_bytes=100) as queue:
        for name in ("", "a/b", "x" * 300):
            with pytest.raises(InvalidJob, match="name"):
                await queue.schedule(name, "k", every=60)
        with pytest.raises(PayloadTooLarge):
            await queue.schedule("s", "k", "x" * 200, every=60)
        for limit in (0, 201, True):
            with pytest.raises(InvalidJob, match="limit"):
                await queue.schedules(limit=limit)
        with pytest.raises(InvalidJob, match="most"):
            await queue.preview_schedule(Timing(every=60), most=1001)


async def test_a_preview_stores_nothing(dsn: str) -> None:
    after = datetime(2026, 3, 28, 12, tzinfo=UTC)
    async with Queue(dsn, notify=False) as queue:
        timing = Timing(cron="30 2 * * *", time_zone="Europe/Berlin")
        assert await queue.preview_schedule(timing, after=after, most=2) == [
            datetime(2026, 3, 29, 1, tzinfo=UTC),
            datetime(2026, 3, 30, 0, 30, tzinfo=UTC),
        ]
        assert await queue.schedules() == []


def test_the_blocking_client(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        made = queue.schedule("s", "k", cron="@hourly")
        assert [each.name for each in queue.schedules()] == ["s"]
        assert made.next_fires[0].minute == 0
        assert queue.get(queue.run_schedule_now("s")).kind == "k"
        assert queue.pause_schedule("s").paused
        queue.unschedule("s")
        with pytest.raises(ScheduleNotFound):
            queue.resume_schedule("s")


async def test_what_python_cannot_hold_spoils_only_itself(dsn: str, conn: psycopg.AsyncConnection) -> None:
    await conn.execute(
        "insert into queue_pg.schedules (name, kind, every, payload) values ('a', 'k', '1 h', '[1e5000]')"
    )
    async with Queue(dsn, notify=False) as queue:
        await queue.schedule("b", "k", every=60)
        first, second = await queue.schedules()
    assert (first.payload.reason, second.payload) == (first.payload.reason, {})


async def test_drain_fires_what_the_clock_has_made_due(dsn: str, clock: Clock) -> None:
    tasks = Tasks()
    ran: list[str] = []

    @tasks.task
    def report(day: str) -> None:
        ran.append(f"{day} {current_job().metadata['schedule']['name']}")

    async with Queue(dsn, notify=False) as queue:
        await queue.schedule("daily", "report", {"day": "{{ schedule.fire_at }}"}, every=3600, missed="all")
        assert await drain(queue, tasks) == []
        clock.advance(3 * 3600 + 60)
        assert len(await drain(queue, tasks)) == 3
        known = await queue.get_schedule("daily")
    assert [entry.split()[1] for entry in ran] == ["daily"] * 3
    assert len(set(ran)) == 3
    assert known.last_fire_at is not None


# --- of tasks ---------------------------------------------------------------------------------------------------------


def test_a_task_with_a_schedule_is_called_without_arguments() -> None:
    tasks = Tasks()
    with pytest.raises(TypeError, match="give 'to' a default"):

        @tasks.task(cron="@daily")
        def report(to: str) -> None: ...


def test_a_task_has_one_schedule() -> None:
    tasks = Tasks()
    with pytest.raises(TypeError, match="either cron or every"):

        @tasks.task(cron="@daily", every=60)
        def report() -> None: ...
