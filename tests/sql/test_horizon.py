"""Who keeps dead rows from being removed: found for every kind of holder that this server lets a test make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

Connection = psycopg.AsyncConnection
SOON = 20.0


async def horizon(conn: Connection, min_age: str = "0") -> dict[str, Any] | None:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("select * from queue_pg.horizon(%s::interval)", (min_age,))
        return await cursor.fetchone()


async def held_by(conn: Connection, *, pid: int | None) -> dict[str, Any]:
    """Return the holder with this pid. Tests in other databases of the server may write meanwhile: those go first."""
    async with asyncio.timeout(SOON):
        while True:
            found = await horizon(conn)
            if found is not None and found["pid"] == pid:
                return found
            await asyncio.sleep(0.01)


async def use_transactions(conn: Connection, count: int) -> None:
    for _ in range(count):
        await conn.execute("select pg_current_xact_id()")


@pytest.fixture
async def other(dsn: str) -> AsyncIterator[Connection]:
    async with await Connection.connect(dsn, application_name="report") as connection:
        yield connection
        await connection.rollback()


async def test_an_open_snapshot_and_what_it_costs(conn: Connection, other: Connection) -> None:
    await other.execute("set transaction isolation level repeatable read")
    await other.execute("select count(*)\nfrom queue_pg.jobs")
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 50)")
    for _ in range(3):
        await conn.execute("update queue_pg.jobs set priority = priority + 1")
    await conn.execute("select pg_stat_force_next_flush()")
    found = await held_by(conn, pid=other.info.backend_pid)
    assert (found["kind"], found["name"]) == ("session", "report")
    assert found["state"] == "idle in transaction"
    assert found["query"] == "select count(*) from queue_pg.jobs"
    assert found["visible"]
    assert 0 <= found["age_seconds"] < 60
    assert found["age_transactions"] >= 4
    assert found["dead_rows"] >= 150
    assert found["jobs_bytes"] > 8192
    assert await horizon(conn, "1 hour") is None
    await other.rollback()
    found = await horizon(conn)
    assert found is None or found["pid"] != other.info.backend_pid


async def test_the_oldest_of_several_and_the_cause_before_its_victims(
    conn: Connection, other: Connection, dsn: str
) -> None:
    await other.execute("select pg_current_xact_id()")
    async with await Connection.connect(dsn) as victim, asyncio.timeout(SOON):
        found = None
        while found is None or found["pid"] != other.info.backend_pid:
            # Again should its snapshot have had an older transaction of another database in it.
            await victim.rollback()
            await victim.execute("set transaction isolation level repeatable read")
            await victim.execute("select 1")
            await use_transactions(conn, 3)
            found = await horizon(conn)
        await other.rollback()
        await held_by(conn, pid=victim.info.backend_pid)
        await victim.rollback()


async def test_another_database_s_reader_holds_nothing_here_but_its_writer_does(
    conn: Connection, admin: psycopg.Connection, dsn: str
) -> None:
    async with await Connection.connect(admin.info.dsn, password=admin.info.password) as foreign:
        await foreign.execute("set transaction isolation level repeatable read")
        await foreign.execute("select 1")
        await use_transactions(conn, 2)
        found = await horizon(conn)
        assert found is None or found["pid"] != foreign.info.backend_pid
        await foreign.execute("select pg_current_xact_id()")
        await use_transactions(conn, 2)
        found = await held_by(conn, pid=foreign.info.backend_pid)
        assert found["database"] == foreign.info.dbname
        await foreign.rollback()


async def test_a_role_without_the_right_learns_who_but_not_what(
    conn: Connection, other: Connection, admin: psycopg.Connection, dsn: str
) -> None:
    role = sql.Identifier(f"{conn.info.dbname}_app")
    admin.execute(sql.SQL("create role {}").format(role))
    try:
        await conn.execute(sql.SQL("grant usage on schema queue_pg to {}").format(role))
        await conn.execute(sql.SQL("grant select on all tables in schema queue_pg to {}").format(role))
        await other.execute("select pg_current_xact_id()")
        async with await Connection.connect(dsn, autocommit=True) as app:
            await app.execute(sql.SQL("set role {}").format(role))
            found = await horizon(app)
            assert found is None or found["pid"] != other.info.backend_pid  # young, for all that it may know
            await use_transactions(conn, 1_000)
            found = await held_by(app, pid=other.info.backend_pid)
        assert found["kind"] == "session"
        assert not found["visible"]
        assert (found["query"], found["state"], found["age_seconds"]) == (None, None, None)
        assert found["age_transactions"] >= 1_000
    finally:
        await conn.execute(sql.SQL("drop owned by {}").format(role))
        admin.execute(sql.SQL("drop role {}").format(role))


async def test_a_prepared_transaction(conn: Connection, admin: psycopg.Connection) -> None:
    if admin.execute("show max_prepared_transactions").fetchone() == ("0",):
        pytest.skip("the server allows no prepared transactions")
    gid = f"{conn.info.dbname}-order-17"
    await conn.execute("begin; select pg_current_xact_id()")
    await conn.execute(sql.SQL("prepare transaction {}").format(gid))
    try:
        found = await held_by(conn, pid=None)
        assert (found["kind"], found["name"]) == ("prepared", gid)
    finally:
        await conn.execute(sql.SQL("rollback prepared {}").format(gid))
