"""The listening thread: woken by notifications and by every reconnect, never by the clock."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import psycopg
import pytest

from queue_pg.wakeup import CANCEL, RESULT, WAKE, Wakeups

SOON = 10.0  # seconds; only a failing test waits that long


@pytest.fixture
def wakeups(dsn: str) -> Iterator[Wakeups]:
    with Wakeups(dsn) as wakeups:
        assert wakeups.wait_listening(SOON)
        yield wakeups


async def notify(conn: psycopg.AsyncConnection, channel: str, payload: str = "") -> None:
    await conn.execute("select pg_notify(%s, %s)", (channel, payload))


async def test_wakes_those_whom_it_concerns(wakeups: Wakeups, conn: psycopg.AsyncConnection) -> None:
    everything, mine = wakeups.subscribe(RESULT), wakeups.subscribe(RESULT, "mine")
    others, wake = wakeups.subscribe(RESULT, "other"), wakeups.subscribe(WAKE)
    await notify(conn, RESULT, "mine")
    assert await mine.wait(SOON)
    assert await everything.wait(SOON)
    assert not await others.wait(0)
    assert not await wake.wait(0)


async def test_many_notifications_are_one_wake_up(wakeups: Wakeups, conn: psycopg.AsyncConnection) -> None:
    wake, last = wakeups.subscribe(WAKE), wakeups.subscribe(CANCEL)
    for number in range(50):
        await notify(conn, WAKE, str(number))
    await notify(conn, CANCEL, "w")
    assert await last.wait(SOON)
    assert await wake.wait(0)
    assert not await wake.wait(0)


async def test_a_wake_up_before_the_wait_is_not_lost(wakeups: Wakeups, conn: psycopg.AsyncConnection) -> None:
    first, second = wakeups.subscribe(WAKE), wakeups.subscribe(WAKE)
    await notify(conn, WAKE)
    assert await second.wait(SOON)
    assert await first.wait(0)


async def test_threads_can_wait_too(wakeups: Wakeups, conn: psycopg.AsyncConnection) -> None:
    subscription = wakeups.subscribe(WAKE)
    waiting = asyncio.create_task(asyncio.to_thread(subscription.wait_sync, SOON))
    await notify(conn, WAKE)
    assert await waiting
    assert not subscription.wait_sync(0)


async def test_two_event_loops_are_served(wakeups: Wakeups, conn: psycopg.AsyncConnection) -> None:
    here, there = wakeups.subscribe(WAKE), wakeups.subscribe(WAKE)
    elsewhere = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(there.wait(SOON))))
    await notify(conn, WAKE)
    assert await here.wait(SOON)
    assert await elsewhere


async def test_a_lost_connection_is_replaced_and_everybody_polls(
    wakeups: Wakeups, conn: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "queue_pg.wakeup")
    wake, result = wakeups.subscribe(WAKE), wakeups.subscribe(RESULT, "job")
    for _ in range(3):
        pid = wakeups.backend_pid
        await conn.execute("select pg_terminate_backend(%s)", (pid,))
        # Woken by nothing but the loss, to poll from now on, and the reconnect: what was notified in between is found.
        assert await wake.wait(SOON)
        assert await result.wait(SOON)
        while not wakeups.listening or wakeups.backend_pid == pid:
            assert await wake.wait(SOON)
    await notify(conn, RESULT, "job")
    assert await result.wait(SOON)
    levels = [record.levelname for record in caplog.records if record.name == "queue_pg.wakeup"]
    assert levels == ["WARNING", "INFO"] * 3


async def test_an_absent_database_is_waited_for(
    dsn: str, admin: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    closed = psycopg.sql.SQL("alter database {} allow_connections {}").format
    refused = threading.Event()

    class Watcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            refused.set()

    logger, handler = logging.getLogger("queue_pg.wakeup"), Watcher()
    admin.execute(closed(psycopg.sql.Identifier(str(name)), False))
    logger.addHandler(handler)
    try:
        with Wakeups(dsn) as wakeups:
            subscription = wakeups.subscribe(WAKE)
            assert await asyncio.to_thread(refused.wait, SOON)
            assert not wakeups.listening
            admin.execute(closed(psycopg.sql.Identifier(str(name)), True))
            assert await subscription.wait(SOON)
            assert wakeups.listening
    finally:
        logger.removeHandler(handler)
        admin.execute(closed(psycopg.sql.Identifier(str(name)), True))
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


async def test_a_failing_subscriber_harms_nobody(wakeups: Wakeups, conn: psycopg.AsyncConnection) -> None:
    def fail() -> None:
        raise ValueError("mine alone")

    bad, good = wakeups.subscribe(WAKE, callback=fail), wakeups.subscribe(WAKE)
    await notify(conn, WAKE)
    assert await good.wait(SOON)
    await notify(conn, WAKE)
    assert await good.wait(SOON)
    bad.close()


async def test_without_notifications_only_time_passes(dsn: str, conn: psycopg.AsyncConnection) -> None:
    with Wakeups(dsn, [WAKE], enabled=False) as wakeups:
        subscription = wakeups.subscribe(WAKE)
        await notify(conn, WAKE)
        assert not await subscription.wait(0.01)
        assert not wakeups.listening


async def test_closing_ends_thread_and_connection(dsn: str, conn: psycopg.AsyncConnection) -> None:
    wakeups = Wakeups(dsn, application="to be closed")
    for _ in range(2):
        wakeups.start()
        wakeups.start()
        assert wakeups.wait_listening(SOON)
        subscription = wakeups.subscribe(WAKE)
        subscription.close()
        subscription.close()
        wakeups.close()
        wakeups.close()
        assert not wakeups.listening
        assert "to be closed" not in {thread.name for thread in threading.enumerate()}


def test_unknown_channels_are_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match="unknown channels"):
        Wakeups(dsn, ["queue_pg_other"])
    with pytest.raises(ValueError, match="not listening"):
        Wakeups(dsn, [WAKE]).subscribe(RESULT)


async def test_a_cancelled_waiter_leaves_nothing_behind(wakeups: Wakeups, conn: psycopg.AsyncConnection) -> None:
    subscription = wakeups.subscribe(WAKE)
    waiting = asyncio.create_task(subscription.wait())
    await asyncio.wait([waiting], timeout=0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await notify(conn, WAKE)
    assert await subscription.wait(SOON)
