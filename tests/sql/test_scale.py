"""How many workers a queue needs: by jobs, by a wait, under limits, paused and draining, and what it reads for that."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def scale(conn: Connection, queue: str = "default", **options: Any) -> dict[str, Any]:
    named = "".join(f", {name} => %s" for name in options)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"select * from queue_pg.scale(%s{named})", (queue, *options.values()))
        row = await cursor.fetchone()
    assert row is not None
    return row


async def workers(conn: Connection, queue: str = "default", **options: Any) -> int:
    return (await scale(conn, queue, **options))["desired_workers"]


async def jobs(conn: Connection, count: int, **fields: Any) -> None:
    names = "".join(f", {name}" for name in fields)
    values = "".join(", %s" for _ in fields)
    await conn.execute(
        f"insert into queue_pg.jobs (kind{names}) select 'k'{values} from generate_series(1, %s)",
        (*fields.values(), count),
    )


async def claim(conn: Connection, count: int, queue: str = "default") -> None:
    await conn.execute("select queue_pg.claim('w', array[%s], max_jobs => %s)", (queue, count))


async def test_a_queue_without_jobs_needs_none(conn: Connection) -> None:
    assert await scale(conn, "nobody knows it") == {
        "desired_workers": 0, "state": "active", "queued": 0, "running": 0, "startable": 0, "slots_per_worker": 10,
        "seconds_per_job": None,
    }  # fmt: skip
    assert await workers(conn, min_workers=2) == 2
    assert await workers(conn, max_workers=0) == 0


async def test_by_jobs(conn: Connection) -> None:
    await jobs(conn, 41)
    await claim(conn, 3)
    found = await scale(conn, slots=10)
    assert (found["desired_workers"], found["queued"], found["running"], found["startable"]) == (5, 38, 3, 38)
    assert await workers(conn, slots=1) == 41
    assert await workers(conn, slots=10, jobs_per_worker=20) == 3
    assert await workers(conn, slots=10, jobs_per_worker=2) == 21
    assert await workers(conn, slots=10, max_workers=2) == 2
    assert await workers(conn, slots=10, min_workers=7) == 7
    row = await (
        await conn.execute("select queue_pg.desired_workers('default', slots => 10, max_workers => 4)")
    ).fetchone()
    assert row == (4,)


async def test_slots_are_those_of_live_workers(conn: Connection, clock: Clock) -> None:
    await jobs(conn, 40)
    await conn.execute("select queue_pg.register_worker('a', 'h', 1, '1', '{default}', '{k}', 4)")
    await conn.execute("select queue_pg.register_worker('b', 'h', 1, '1', '{other}', '{k}', 100)")
    assert (await scale(conn))["slots_per_worker"] == 4
    assert await workers(conn) == 10
    clock.advance(61)
    assert (await scale(conn))["slots_per_worker"] == 10


async def test_by_a_wait(conn: Connection, stopped: Clock) -> None:
    await jobs(conn, 120)
    # 120 jobs of 10 s in a minute: 20 slots.
    assert await workers(conn, slots=5, target_wait="60 s", job_seconds=10.0) == 4
    assert await workers(conn, slots=5, target_wait="600 s", job_seconds=10.0) == 1
    # No more slots than jobs.
    assert await workers(conn, slots=5, target_wait="1 s", job_seconds=1000.0) == 24
    # As long as the newest have taken.
    await claim(conn, 20)
    assert await workers(conn, slots=5, target_wait="600 s", job_seconds=10.0) == 4
    stopped.advance(10)
    await conn.execute("select queue_pg.complete(id, lease_token) from queue_pg.jobs where state = 'running'")
    found = await scale(conn, slots=5, target_wait="110 s")
    assert (round(found["seconds_per_job"]), found["desired_workers"]) == (10, 2)


async def test_a_limit_of_the_queue_needs_no_more_slots(conn: Connection) -> None:
    await conn.execute("select queue_pg.set_limit('queue', 'default', max_running => 5)")
    await jobs(conn, 1000)
    await claim(conn, 2)
    found = await scale(conn, slots=1)
    assert (found["desired_workers"], found["running"], found["startable"]) == (5, 2, 3)
    assert await workers(conn, slots=10) == 1
    assert await workers(conn, slots=1, target_wait="10 s", job_seconds=10.0) == 5
    await conn.execute("select queue_pg.pause_limit('queue', 'default')")
    assert await workers(conn, slots=1) == 2


async def test_limits_of_keys(conn: Connection) -> None:
    await conn.execute("select queue_pg.set_limit('key', 'a', max_running => 2)")
    await conn.execute("select queue_pg.set_limit('key', 'user:*', max_running => 1)")
    await jobs(conn, 50, limit_key="a")
    await jobs(conn, 3, limit_key="free")
    await jobs(conn, 10, limit_key="user:1")
    await jobs(conn, 10, limit_key="user:2")
    await jobs(conn, 4)
    found = await scale(conn, slots=1, max_workers=1000)
    assert (found["queued"], found["startable"], found["desired_workers"]) == (77, 2 + 3 + 1 + 1 + 4, 11)
    await claim(conn, 2)
    assert await workers(conn, slots=1, max_workers=1000) == 11


async def test_a_rate_needs_as_many_as_run_at_once(conn: Connection) -> None:
    await conn.execute("select queue_pg.set_limit('queue', 'default', rate => 60, per => 'minute')")
    await jobs(conn, 500)
    assert await workers(conn, slots=1, job_seconds=4.0) == 4
    assert await workers(conn, slots=1, job_seconds=0.01) == 1


async def test_paused_and_draining(conn: Connection) -> None:
    await jobs(conn, 30)
    await claim(conn, 4)
    await conn.execute("select queue_pg.pause_queue('default')")
    found = await scale(conn, slots=2, min_workers=5)
    # For what runs; nothing else is started.
    assert (found["state"], found["desired_workers"], found["startable"]) == ("paused", 2, 0)
    await conn.execute("select queue_pg.complete(id, lease_token) from queue_pg.jobs where state = 'running'")
    assert await workers(conn, slots=2, min_workers=5) == 0
    await conn.execute("select queue_pg.drain_queue('default')")
    assert await workers(conn, slots=2, min_workers=20) == 13
    await conn.execute("select queue_pg.cancel(id) from queue_pg.jobs")
    assert await workers(conn, slots=2, min_workers=20) == 0
    await conn.execute("select queue_pg.resume_queue('default')")
    assert await workers(conn, slots=2, min_workers=20) == 20


async def test_of_all_tenants_or_of_one(conn: Connection) -> None:
    for org, count in (("a", 10), ("b", 20), ("c", 30)):
        await jobs(conn, count, org=org)
    await conn.execute("select queue_pg.pause_queue('default', org => 'b')")
    await claim(conn, 2)
    found = await scale(conn, slots=1)
    assert (found["queued"] + found["running"], found["state"], found["desired_workers"]) == (60, "active", 40)
    assert (await scale(conn, slots=1, org="b"))["state"] == "paused"
    assert (await scale(conn, slots=1, org="c"))["queued"] + (await scale(conn, slots=1, org="a"))["queued"] == 38


async def test_what_is_due_wakes_the_first_worker(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.submit('k', delay => '1 minute')")
    assert await workers(conn) == 0
    clock.advance(61)
    # Nobody has promoted it, with no worker there.
    assert await workers(conn) == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"slots": 0}, "slots"),
        ({"jobs_per_worker": 0.0}, "jobs_per_worker"),
        ({"jobs_per_worker": float("nan")}, "jobs_per_worker"),
        ({"target_wait": "0 s"}, "target_wait"),
        ({"target_wait": "1 s", "jobs_per_worker": 1.0}, "target_wait"),
        ({"job_seconds": -1.0}, "job_seconds"),
        ({"min_workers": -1}, "min_workers"),
        ({"max_workers": -1}, "max_workers"),
        ({"min_workers": 3, "max_workers": 2}, "min_workers"),
        ({"max_workers": None}, "max_workers"),
    ],
)
async def test_wrong_input(conn: Connection, options: dict[str, Any], field: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        await scale(conn, **options)
    assert refused.value.sqlstate == "QP005"
    assert json.loads(refused.value.diag.message_detail or "")["field"] == field
    with pytest.raises(psycopg.Error):
        await scale(conn, "")


COUNTERS = (
    "select coalesce(sum(pg_stat_get_xact_tuples_returned(c.oid)), 0) from pg_class c"
    " where c.relnamespace = 'queue_pg'::regnamespace and c.relkind in ('r', 'i')"
    " and c.relname ~ '^(jobs|finished_jobs)'"
)


@pytest.mark.parametrize("analysed", [False, True])
async def test_a_long_queue_is_not_counted(conn: Connection, analysed: bool) -> None:
    await jobs(conn, 20_000)
    await jobs(conn, 5_000, limit_key="a")
    if analysed:
        await conn.execute("vacuum analyze queue_pg.jobs")
    async with conn.transaction():
        before = await (await conn.execute(COUNTERS)).fetchone()
        found = await scale(conn, slots=10, max_workers=50)
        after = await (await conn.execute(COUNTERS)).fetchone()
    assert found["desired_workers"] == 50
    assert before is not None
    assert after is not None
    assert after[0] - before[0] < 1000
