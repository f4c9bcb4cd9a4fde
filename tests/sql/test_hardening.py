"""One odd row, setting or session must not stop anybody else."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg import errors

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def rows(conn: Connection, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement, args)).fetchall()


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    (row,) = await rows(conn, statement, *args)
    return row[0] if len(row) == 1 else row


@pytest.mark.parametrize(
    "columns",
    [
        {"state": "running", "lease_expires_at": "2020-01-01"},
        {"attempt": 2147483647},
        {"attempt": -1},
        {"lease_token": 9223372036854775807},
        {"lease_losses": 2147483647},
        {"last_event_seq": 2147483647},
    ],
)
async def test_what_only_the_functions_set_cannot_be_inserted(conn: Connection, columns: dict[str, Any]) -> None:
    names = ", ".join(columns)
    values = ", ".join(f"%({name})s" for name in columns)
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute(f"insert into queue_pg.jobs (kind, {names}) values ('k', {values})", columns)
    # By the function that looks at such rows, or by the domain of the column.
    assert refused.value.sqlstate in ("QP005", "23514")


async def test_a_row_at_the_end_of_its_ranges_stops_nobody(conn: Connection, clock: Clock) -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, attempt, lease_losses, last_event_seq, lease_token)"
        " values ('odd', 1000000000, 1000000000, 1000000000, 1000000000000000000), ('plain', 0, 0, 0, 0)"
    )
    claimed = await rows(conn, "select kind, lease_token from queue_pg.claim('w', '{default}', max_jobs => 2)")
    assert sorted(claimed) == [("odd", 10**18), ("plain", 1)]
    clock.advance(31)
    assert sorted(await rows(conn, "select state from queue_pg.reap()")) == [("failed",), ("queued",)]


@pytest.mark.parametrize(
    "timeout", ["71582788 months -2147483640 days 1 second", "1 month", "-1 day 48 hours", "0", "366 days"]
)
async def test_a_timeout_is_a_plain_length_of_time(conn: Connection, timeout: str) -> None:
    with pytest.raises(errors.CheckViolation, match="jobs_timeout_range"):
        await conn.execute("insert into queue_pg.jobs (kind, timeout) values ('k', %s::interval)", (timeout,))


async def test_backoff_of_many_attempts_stays_below_its_cap(conn: Connection, clock: Clock) -> None:
    kind = {"kind": "k", "max_attempts": 1000, "retry_base_seconds": 86_400, "retry_cap_seconds": 86_400}
    await conn.execute("select queue_pg.register_kinds(%s)", (json.dumps([kind]),))
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute("update queue_pg.jobs set attempt = 900")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    assert await one(conn, "select queue_pg.fail(%s, 1, '{}')", job) == "scheduled"
    assert 43_000 < await one(conn, "select extract(epoch from run_at - queue_pg.now()) from queue_pg.jobs") <= 86_400


async def test_what_stops_the_reaper_does_not_stop_promotion_and_expiry(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.submit('k')")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    await conn.execute("select queue_pg.submit('k', delay => '1 s')")
    await conn.execute("select queue_pg.submit('k', expires_at => queue_pg.now() + '1 s')")
    await conn.execute(
        "create or replace function queue_pg.backoff(attempt integer, retry_base interval, retry_cap interval)"
        " returns interval language plpgsql as $$ begin raise 'stopped'; end $$"
    )
    clock.advance(31)
    warnings: list[str] = []
    conn.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    assert await one(conn, "select reaped, promoted, expired from queue_pg.maintain()") == (0, 1, 1)
    assert any("queue_pg.reap" in warning for warning in warnings)


async def test_a_payload_is_checked_when_it_comes_and_not_at_every_write(conn: Connection, dsn: str) -> None:
    job = await one(conn, "select queue_pg.submit('k', '[1, 2]')")
    await conn.execute(
        "create or replace function queue_pg.json_is_printable(value jsonb) returns boolean"
        " language plpgsql immutable as $$ begin raise 'walked again'; end $$"
    )
    async with await Connection.connect(dsn, autocommit=True) as fresh:  # sessions keep what they have compiled
        await fresh.execute("select queue_pg.claim('w', '{default}')")
        await fresh.execute("select queue_pg.heartbeat(array[%s::uuid], array[1::bigint])", (job,))
        await fresh.execute("select queue_pg.snooze(%s, 1, '0')", (job,))
        with pytest.raises(psycopg.Error, match="walked again"):
            await fresh.execute("select queue_pg.submit('k', '[1, 2]')")


async def test_a_thousand_tenants_without_a_worker_do_not_hide_one_with(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, org) select 'a', 'org-' || n from generate_series(1, 1200) n")
    await conn.execute("insert into queue_pg.jobs (kind, org) values ('b', 'zz')")
    found = 0
    for _ in range(3):
        found += len(await rows(conn, "select id from queue_pg.claim('w', '{default}', '{b}', 5)"))
    assert found == 1


async def test_a_partition_that_somebody_dropped_or_uses_stops_nothing(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 minute')")
    for _ in range(3):
        await conn.execute("select queue_pg.maintain_history()")
        clock.advance(700)
    names = await rows(
        conn,
        "select name from queue_pg.partitions where parent = 'finished_jobs' and to_at < queue_pg.now() order by to_at",
    )
    (dropped,), (used,), *_ = names
    await conn.execute(f"drop table queue_pg.{dropped}")
    await conn.execute(f"create view public.mine as select * from queue_pg.{used}")
    while await one(conn, "select again_seconds from queue_pg.maintain_history()") == 0:
        pass
    left = "select name from queue_pg.partitions where parent = 'finished_jobs' and to_at < queue_pg.now()"
    assert await rows(conn, left) == [(used,)]


async def test_bounds_do_not_depend_on_how_a_session_writes_dates(conn: Connection) -> None:
    before = await one(conn, "select count(*) from queue_pg.partitions")
    await conn.execute("set datestyle = 'SQL, DMY'")
    await conn.execute("set timezone = 'Asia/Kolkata'")
    await conn.execute("set intervalstyle = 'sql_standard'")
    await conn.execute("select queue_pg.configure(retention => '50 days')")
    assert await one(conn, "select created from queue_pg.maintain_history()") >= 2
    await conn.execute("reset datestyle")
    bounds = await rows(
        conn,
        "select p.from_at,"
        " (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz"
        " from queue_pg.partitions p join pg_class c on c.relname = p.name",
    )
    assert len(bounds) > before
    assert all(registered == real for registered, real in bounds)


async def test_a_publication_of_all_tables_forbids_nothing(conn: Connection, clock: Clock) -> None:
    clock.advance(0)
    await conn.execute("alter table queue_pg.testing_clock replica identity full")
    await conn.execute("create publication everything for all tables")
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    assert await one(conn, "select state::text from queue_pg.retry(%s)", job) == "queued"
    clock.advance(100 * 86_400)  # no partition covers this: the default one takes it and is swept
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    clock.advance(31 * 86_400)
    await conn.execute("select queue_pg.maintain_history()")
    assert await one(conn, "select count(*) from queue_pg.finished_jobs") == 0


async def test_explicit_nulls_in_submit_mean_the_defaults(conn: Connection) -> None:
    submit = "select queue_pg.submit('k', null, queue => null, org => null, tags => null, unique_key => 'x')"
    assert await one(conn, submit) == await one(conn, submit)


async def test_arrays_may_start_anywhere(conn: Connection) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    finish = (
        "select accepted, state from queue_pg.finish(('[5:5]={' || %s || '}')::uuid[], '[7:7]={1}', '[3:3]={complete}')"
    )
    assert await one(conn, finish, str(job)) == (True, "completed")


async def test_a_row_that_on_conflict_leaves_out_takes_no_key(conn: Connection) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute(
        "insert into queue_pg.jobs (id, kind, unique_key) values (%s, 'k', 'x') on conflict do nothing", (job,)
    )
    assert await one(conn, "select queue_pg.submit('k', unique_key => 'x')") != job


async def test_functions_of_the_caller_s_schema_are_not_ours(conn: Connection) -> None:
    await conn.execute(
        "create function public.power(integer, integer) returns integer language sql as 'select 1/0';"
        "set search_path = public, pg_catalog"
    )
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    assert await one(conn, "select queue_pg.fail(%s, 1, '{}')", job) == "scheduled"
    await conn.execute("set search_path = ''")
    assert await one(conn, "select count(*) from queue_pg.queue_stats()") == 1
    await conn.execute("insert into queue_pg.jobs (kind, run_at, unique_key) values ('k', queue_pg.now() + '1 h', 'y')")
