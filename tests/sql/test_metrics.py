"""What monitoring asks of Postgres: totals that only grow, and live jobs counted at a bounded cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection[Any]


async def metrics(conn: Connection, queue: str = "default", **arguments: Any) -> dict[str, Any]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("select * from queue_pg.queue_metrics()")
        found = {row["queue"]: row for row in await cursor.fetchall()}
    return found[queue]


async def instance(conn: Connection) -> dict[str, Any]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("select * from queue_pg.instance_metrics()")
        [row] = await cursor.fetchall()
    return row


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    row = await (await conn.execute(statement, args)).fetchone()
    return None if row is None else row[0]


async def end(conn: Connection, outcome: str, *, queue: str = "default", delay: str | None = None) -> str:
    """Claim a job and end its attempt; return its state."""
    state: str = await one(
        conn,
        "select f.state from queue_pg.claim('w', array[%s]) c,"
        " queue_pg.finish(array[c.id], array[c.lease_token], array[%s], delays => array[%s::interval]) f",
        queue,
        outcome,
        delay,
    )
    return state


async def test_totals_only_grow(conn: Connection, clock: Clock) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, max_attempts) select 'k', 2 from generate_series(1, 3)")
    assert await end(conn, "complete") == "completed"
    assert await end(conn, "fail", delay="0") == "queued"
    assert (await metrics(conn))["retried"] == 1
    assert await end(conn, "discard") == "failed"
    await conn.execute("select queue_pg.cancel(id) from queue_pg.jobs")
    found = await metrics(conn)
    assert [found[name] for name in ("completed", "failed", "cancelled", "retried")] == [1, 1, 1, 1]
    # People retry what failed: it did fail all the same, and may do so again.
    await conn.execute("select queue_pg.retry(id) from queue_pg.finished_jobs where state = 'failed'")
    assert (await metrics(conn))["failed"] == 1
    assert await end(conn, "discard") == "failed"
    found = await metrics(conn)
    assert (found["failed"], found["cancelled"]) == (2, 1)
    assert await one(conn, "select failed from queue_pg.queue_stats()") == 1
    # Jobs are deleted and history is forgotten; the totals are not.
    await conn.execute("select queue_pg.delete(id) from queue_pg.finished_jobs where state = 'cancelled'")
    assert await one(conn, "select cancelled from queue_pg.queue_stats()") == 0
    assert (await metrics(conn))["cancelled"] == 1
    await conn.execute(
        "insert into queue_pg.queue_counters (org, queue) select 'default', 'q' from generate_series(1, 600)"
    )
    clock.advance(timedelta(days=40))
    for _ in range(10):
        await conn.execute("select queue_pg.maintain_history()")
    assert await one(conn, "select count(*) from queue_pg.finished_jobs") == 0
    assert await one(conn, "select count(*) from queue_pg.queue_counters") < 20  # folded
    assert (
        await one(conn, "select completed + failed + cancelled from queue_pg.queue_stats() where queue = 'default'")
        == 0
    )
    found = await metrics(conn)
    assert [found[name] for name in ("completed", "failed", "cancelled", "retried")] == [1, 2, 1, 1]


async def test_lease_losses_and_timeouts_are_counted(conn: Connection, clock: Clock) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    await conn.execute("insert into queue_pg.jobs (kind, timeout) values ('k', '2 seconds')")
    await conn.execute("select queue_pg.claim('w', '{default}', max_jobs => 2, lease => '1 second')")
    clock.advance(10)
    await conn.execute("select queue_pg.reap()")
    found = await metrics(conn)
    # The one that outlived its timeout has had its attempt, and gets another one.
    assert (found["lease_losses"], found["retried"], found["failed"]) == (2, 1, 0)


async def test_an_outcome_that_changes_nothing_counts_nothing(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    for outcome in ("snooze", "release"):
        assert await end(conn, outcome) == "queued"
    await conn.execute(
        "select queue_pg.finish(array_agg(id), array_agg(lease_token - 1), array_agg('fail'::text)) from queue_pg.jobs"
    )
    assert await one(conn, "select count(*) from queue_pg.queue_counters") == 0


async def test_failed_webhooks(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) values ('webhook'), ('webhook'), ('k')")
    for outcome in ("discard", "complete", "discard"):
        await end(conn, outcome)
    found = await metrics(conn)
    assert (found["failed_webhooks"], found["failed"]) == (1, 2)


async def test_live_jobs_paused_queues_and_workers(conn: Connection, stopped: Clock) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 3)")
    await conn.execute("insert into queue_pg.jobs (kind, run_at) values ('k', queue_pg.now() + interval '1 hour')")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    await conn.execute("select queue_pg.register_worker('w', 'h', 1, 'v', '{default,other}', '{k}', 8)")
    await conn.execute("select queue_pg.worker_heartbeat('w', 3, 0, 0)")
    await conn.execute("select queue_pg.pause_queue('default')")
    stopped.advance(30)
    found = await metrics(conn)
    live = ("scheduled", "waiting", "queued", "running", "estimated", "paused", "workers")
    assert [found[name] for name in live] == [1, 0, 2, 1, False, True, 1]
    assert found["oldest_queued_seconds"] == 30
    of_all = await instance(conn)
    assert [of_all[name] for name in ("workers", "slots", "busy_slots", "stopping_workers")] == [1, 8, 3, 0]
    stopped.advance(31)
    assert (await metrics(conn))["workers"] == (await instance(conn))["workers"] == 0


async def test_what_is_late(conn: Connection, stopped: Clock) -> None:
    found = await instance(conn)
    late = ("schedule_lag_seconds", "due_lag_seconds", "schedules", "failing_schedules", "maintenance_leads")
    assert [found[name] for name in late] == [0, 0, 0, 0, False]
    await conn.execute("insert into queue_pg.jobs (kind, run_at) values ('k', queue_pg.now() + interval '10 seconds')")
    await conn.execute("insert into queue_pg.schedules (name, every, kind) values ('s', '1 minute', 'k')")
    await conn.execute("insert into queue_pg.schedules (name, every, kind, paused) values ('p', '1 minute', 'k', true)")
    stopped.advance(70)
    found = await instance(conn)
    assert found["due_lag_seconds"] == 60
    assert 0 < found["schedule_lag_seconds"] < 61
    assert (found["schedules"], found["paused_schedules"]) == (2, 1)
    await conn.execute("select queue_pg.maintain()")
    found = await instance(conn)
    assert (found["due_lag_seconds"], found["schedule_lag_seconds"]) == (0, 0)


async def test_limits_and_those_of_templates(conn: Connection) -> None:
    await conn.execute("select queue_pg.set_limit('queue', 'default', 10)")
    await conn.execute("select queue_pg.set_limit('key', 'user:*', 2)")
    await conn.execute(
        "insert into queue_pg.jobs (kind, limit_key) select 'k', 'user:' || n % 2 from generate_series(1, 3) n"
    )
    await conn.execute("select queue_pg.claim('w', '{default}', max_jobs => 3)")
    rows = await (
        await conn.execute("select scope, name, running, max_running, full_limits from queue_pg.limit_metrics()")
    ).fetchall()
    assert rows == [("key", "user:*", 3, 4, 1), ("queue", "default", 3, 10, 0)]


async def test_the_busiest_queues_are_listed(conn: Connection) -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, queue)"
        " select 'k', 'q' || n from generate_series(1, 5) n, generate_series(1, n)"
    )
    rows = await (
        await conn.execute("select queue, queued, unlisted from queue_pg.queue_metrics(max_queues => 2)")
    ).fetchall()
    assert rows == [("q4", 4, 3), ("q5", 5, 3)]
    assert await one(conn, "select count(*) from queue_pg.queue_metrics('nobody')") == 0


LIVE = (
    "insert into queue_pg.jobs (kind, queue, org, priority, run_at, limit_key)"
    " select 'k', %s, %s, n %% 3, queue_pg.now() + %s::interval - n * interval '1 second', %s"
    " from generate_series(1, %s) n"
)


async def counts(conn: Connection, exact: int, org: str | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """Count as if the table were big."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("select * from queue_pg.live_counts(%s, %s, 0)", (org, exact))
        return {(row["org"], row["queue"]): row for row in await cursor.fetchall()}


@pytest.fixture
async def many(conn: Connection) -> Connection:
    """Two tenants, two queues, keyed and unkeyed jobs, in all states."""
    await conn.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
    for queue, org, key, count in (
        ("a", "x", None, 30),
        ("a", "y", None, 700),
        ("b", "x", "key", 40),
        ("b", "x", None, 5),
    ):
        await conn.execute(LIVE, (queue, org, "0", key, count))
    await conn.execute(LIVE, ("a", "x", "1 day", None, 60))
    await conn.execute("select queue_pg.claim('w', '{a}', max_jobs => 10, only_org => 'y')")
    return conn


async def test_a_big_table_is_counted_exactly_where_there_is_little(many: Connection) -> None:
    found, exact = await counts(many, 1000), {}
    async with many.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("select * from queue_pg.live_counts()")
        exact = {(row["org"], row["queue"]): row for row in await cursor.fetchall()}
    assert found == exact
    assert found["y", "a"]["running"] == 10
    assert set(await counts(many, 1000, "x")) == {("x", "a"), ("x", "b")}


async def test_what_is_more_is_estimated(many: Connection) -> None:
    # All pages are sampled here, so that the estimates are right, and say that they are estimates.
    found = await counts(many, 50)
    assert (found["y", "a"]["queued"], found["y", "a"]["estimated"]) == (690, True)
    assert (found["x", "b"]["queued"], found["x", "b"]["estimated"]) == (45, False)
    assert (found["x", "a"]["scheduled"], found["x", "a"]["queued"], found["x", "a"]["estimated"]) == (60, 30, True)
    oldest = await one(many, "select min(run_at)::timestamptz from queue_pg.jobs where state = 'queued' and org = 'y'")
    assert found["y", "a"]["oldest_queued_at"] == oldest


async def test_jobs_that_wait_are_estimated_in_a_big_table(conn: Connection) -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, state, parents_left) select 'k', 'waiting', 1 from generate_series(1, 7)"
    )
    found = await counts(conn, 1000)
    assert (found["default", "default"]["waiting"], found["default", "default"]["estimated"]) == (7, True)
