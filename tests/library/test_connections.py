"""Connections: found dead before they are used, safe behind a pooler, durable where it matters."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import pq

from queue_pg import Queue, SyncQueue, connections, store
from queue_pg.connections import (
    LibraryAsyncConnection,
    connect,
    connect_arguments,
    connect_async,
    prepare_if_direct,
)
from queue_pg.models import Outcome


async def show(conn: psycopg.AsyncConnection[Any], name: str) -> str:
    row = await (await conn.execute("select current_setting(%s)", (name,))).fetchone()
    assert row is not None
    return str(row[0])


async def test_sessions_are_set_up(dsn: str) -> None:
    async with await connect_async(dsn, application="queue-pg test") as conn:
        assert conn.autocommit
        assert conn.prepare_threshold is None
        assert await show(conn, "application_name") == "queue-pg test"
        assert await show(conn, "TimeZone") == "UTC"
        assert await show(conn, "statement_timeout") == "1min"
        assert await show(conn, "idle_in_transaction_session_timeout") == "1min"
        parameters = conn.info.get_parameters()
        assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == ("6", "15000")


async def test_what_others_have_made_in_public_is_not_run(dsn: str, conn: psycopg.AsyncConnection) -> None:
    """For columns of our own types an operator of theirs fits better than that of Postgres for all types."""
    await conn.execute(
        "create table public.robbed (by text);"
        "create function public.rob(queue_pg.job_state, queue_pg.job_state) returns boolean language plpgsql as"
        " $$ begin insert into public.robbed values (current_user); return false; end $$;"
        "create operator public.= (function = public.rob, leftarg = queue_pg.job_state, rightarg = queue_pg.job_state)"
    )
    async with Queue(dsn, notify=False) as queue:
        job = await queue.submit("k", {})
        [stats] = await queue.stats()
        assert stats.queued == 1
        assert (await queue.cancel(job.id)).state == "cancelled"
    robbed = await conn.execute("select count(*) from public.robbed")
    assert await robbed.fetchone() == (0,)


async def test_statements_are_prepared_where_nothing_is_in_between(dsn: str) -> None:
    async with await connect_async(dsn) as conn:
        await prepare_if_direct(conn)
        for _ in range(5):
            await conn.execute("select 1 as again")
        names = await conn.execute("select count(*) from pg_prepared_statements where statement like '%again'")
        assert await names.fetchone() == (1,)


def test_what_the_address_says_wins() -> None:
    arguments = connect_arguments(
        "postgresql+asyncpg://u@h/d?application_name=mine&keepalives_idle=99&options=-c%20statement_timeout%3D5s"
    )
    assert (arguments["application_name"], arguments["keepalives_idle"], arguments["dbname"]) == ("mine", "99", "d")
    assert arguments["options"].endswith("-c statement_timeout=5s")


async def test_connections_that_the_server_closed_are_not_used(dsn: str, conn: psycopg.AsyncConnection) -> None:
    async with Queue(dsn, notify=False) as queue:
        for _ in range(3):
            await asyncio.gather(*(queue.submit("k") for _ in range(5)))
            # All of the pool's connections end, as when Postgres restarts.
            await conn.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
            await queue.submit("k")


def test_connections_that_the_server_closed_are_not_used_blocking(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue, psycopg.connect(dsn, autocommit=True) as conn:
        queue.submit("k")
        conn.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
        queue.submit("k")


@pytest.mark.parametrize(
    "statement",
    ["submit", "submit_many", "claim", "claim_for_worker", "finish", "complete", "fail", "release", "cancel", "retry"],
)
async def test_what_is_acknowledged_is_on_disk(dsn: str, conn: psycopg.AsyncConnection, statement: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    await conn.execute(
        psycopg.sql.SQL("alter database {} set synchronous_commit = off").format(psycopg.sql.Identifier(str(name)))
    )
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        assert await show(session, "synchronous_commit") == "off"
        job, _ = await store.submit(session, '[{"kind": "k"}]', own_transaction=True)
        [claimed] = await store.claim(session, "w", ["default"])
        async with session.transaction():
            assert await show(session, "synchronous_commit") == "off"
            match statement:
                case "submit":
                    await store.submit(session, '[{"kind": "k"}]', own_transaction=True)
                case "submit_many":
                    await store.submit_many(session, '[{"kind": "k"}]', own_transaction=True)
                case "claim":
                    await store.claim(session, "w", ["default"])
                case "claim_for_worker":
                    await store.claim_for_worker(session, "w", ["default"], kinds=["k"], max_jobs=1)
                case "finish":
                    await store.finish(session, [Outcome(id=job.id, lease_token=1, outcome="complete", result="1")])
                case "complete":
                    await store.complete(session, job.id, claimed.lease_token, "1")
                case "fail":
                    await store.fail(session, job.id, claimed.lease_token, "{}")
                case "release":
                    await store.release(session, job.id, claimed.lease_token)
                case "cancel":
                    await store.cancel(session, job.id)
                case _:
                    await store.cancel(session, job.id)
                    await session.execute("set local synchronous_commit = off")
                    await store.retry(session, job.id)
            assert await show(session, "synchronous_commit") == "on"
        assert await show(session, "synchronous_commit") == "off"


async def test_a_pool_of_your_own_is_used_and_left_open(dsn: str) -> None:
    kwargs = {"application_name": "mine", "row_factory": psycopg.rows.dict_row}
    async with psycopg_pool.AsyncConnectionPool(dsn, kwargs=kwargs, min_size=1, max_size=2, open=False) as pool:
        async with Queue(pool=pool) as queue:
            job = await queue.submit("k")
            waiter = asyncio.create_task(queue.wait(job.id, 10))
            await queue.cancel(job.id)
            assert (await waiter).finished
        async with pool.connection() as conn:
            assert (await queue_of(conn)) == "mine"
        assert queue.dsn != ""
    async with Queue(dsn, notify=False) as other:
        assert (await other.get(job.id)).state == "cancelled"


async def queue_of(conn: psycopg.AsyncConnection[Any]) -> str:
    row: Any = await (await conn.execute("select current_setting('application_name') as name")).fetchone()
    return str(row["name"])


async def test_a_pooler_that_refuses_options_is_asked_without(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    really = psycopg.AsyncConnection.connect.__func__  # type: ignore[attr-defined]

    async def refusing(cls: Any, conninfo: str = "", **kwargs: Any) -> Any:
        asked.append(kwargs["options"])
        if kwargs["options"]:
            raise psycopg.OperationalError("FATAL:  unsupported startup parameter in options: statement_timeout")
        return await really(cls, conninfo, **kwargs)

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", classmethod(refusing))
    monkeypatch.setattr(connections, "_refusing", set())
    for _ in range(2):
        async with await connect_async(dsn) as conn:
            assert isinstance(conn, LibraryAsyncConnection)
            assert conn.pgconn.status == pq.ConnStatus.OK
    assert asked == [connect_arguments(dsn)["options"], "", ""]  # the second time it is known


def test_other_failures_are_not_repeated() -> None:
    with pytest.raises(psycopg.OperationalError):
        connect("postgresql://nobody@127.0.0.1:1/nothing")
