"""The Queue's own connections: bounded, shared, gone and back with the database."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from queue_pg import DatabaseUnavailable, Queue, SyncQueue
from queue_pg import pool as pool_module
from queue_pg.pool import AsyncPool
from queue_pg.pool_sync import SyncPool


@contextmanager
def away(admin: psycopg.Connection, dsn: str) -> Iterator[None]:
    """Have the database refuse connections, and end those there are."""
    name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    allow = psycopg.sql.SQL("alter database {} allow_connections {}").format
    admin.execute(allow(psycopg.sql.Identifier(name), False))
    admin.execute("select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s", (name,))
    try:
        yield
    finally:
        admin.execute(allow(psycopg.sql.Identifier(name), True))


async def test_an_outage_is_told_at_once_and_over_at_once(
    dsn: str, admin: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "queue_pg.pool")
    async with Queue(dsn, notify=False) as queue:
        await asyncio.gather(*(queue.submit("k") for _ in range(5)))
        with away(admin, dsn):
            for _ in range(5):
                with pytest.raises(DatabaseUnavailable, match="not currently accepting connections") as caught:
                    await queue.submit("k")
                assert "unknown" not in caught.value.message  # nothing was sent
        await queue.submit("k")
        assert len((await queue.list()).jobs) == 6
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_an_outage_is_told_at_once_and_over_at_once_blocking(dsn: str, admin: psycopg.Connection) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        queue.submit("k")
        with away(admin, dsn), pytest.raises(DatabaseUnavailable):
            queue.submit("k")
        queue.submit("k")


async def test_connections_are_bounded_and_shared(dsn: str) -> None:
    async with Queue(dsn, notify=False, max_connections=2) as queue:
        pids: set[int] = set()

        async def use() -> None:
            async with queue.connection() as conn:
                pids.add(conn.info.backend_pid)
                await conn.execute("select 1")

        await asyncio.gather(*(use() for _ in range(20)))
        assert 1 <= len(pids) <= 2


async def test_who_finds_all_in_use_is_told(dsn: str) -> None:
    async with Queue(dsn, notify=False, max_connections=1, pool_timeout_seconds=0.05) as queue:
        async with queue.connection():
            with pytest.raises(DatabaseUnavailable, match="All 1 connections") as caught:
                await queue.submit("k")
            assert caught.value.hint is not None
        await queue.submit("k")


def test_who_finds_all_in_use_is_told_blocking(dsn: str) -> None:
    pool = SyncPool(dsn, max_size=1, timeout_seconds=0.05)
    with pool.connection(), pytest.raises(DatabaseUnavailable, match="All 1 connections"), pool.connection():
        pass
    with pool.connection() as conn:
        conn.execute("select 1")
    pool.close()


async def test_what_is_left_in_a_transaction_is_not_lent_again(dsn: str) -> None:
    pool = AsyncPool(dsn, max_size=1)
    async with pool.connection() as conn:
        first = conn.info.backend_pid
        await conn.execute("begin")
    async with pool.connection() as conn:
        assert conn.info.backend_pid != first
        second = conn.info.backend_pid
    async with pool.connection() as conn:
        assert conn.info.backend_pid == second
    await pool.close()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        async with pool.connection():
            pass


async def test_a_cancelled_statement_harms_nobody(dsn: str) -> None:
    pool = AsyncPool(dsn, max_size=1)
    started = asyncio.Event()

    async def slow() -> None:
        async with pool.connection() as conn:
            started.set()
            await conn.execute("select pg_sleep(60)")

    task = asyncio.create_task(slow())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with pool.connection() as conn:
        assert await (await conn.execute("select 7")).fetchone() == (7,)
    await pool.close()


async def test_old_connections_are_replaced(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = AsyncPool(dsn)
    async with pool.connection() as one, pool.connection() as two:
        pids = {one.info.backend_pid, two.info.backend_pid}
    monkeypatch.setattr(pool_module, "MAX_IDLE_SECONDS", -1.0)
    async with pool.connection() as conn:
        assert conn.info.backend_pid in pids
    assert pool._idle == []
    monkeypatch.setattr(pool_module, "MAX_AGE_SECONDS", 0.0)
    monkeypatch.setattr(pool_module, "MAX_IDLE_SECONDS", 60.0)
    async with pool.connection():
        pass
    assert pool._idle == []
    await pool.close()


def test_threads_share_a_blocking_queue(dsn: str) -> None:
    with SyncQueue(dsn, notify=False, max_connections=2) as queue:
        threads = [threading.Thread(target=queue.submit, args=("k",)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(queue.list().jobs) == 20
