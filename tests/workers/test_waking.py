"""Idle workers: woken by notifications, through poolers and without any, and what a lost notification costs."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import psycopg
import pytest
from in_process import PATIENCE_SECONDS, emitted, finished, running, soon
from queue_pg_workers import looking
from queue_pg_workers.worker import Worker
from stalls import stalled

from queue_pg import Queue
from queue_pg.models import NewJob
from queue_pg.tasks import Tasks
from tests.faults.pooler import PROGRAM, pooled

# Longer than any test waits: what is found in time was not found by polling.
NEVER: dict[str, Any] = {"poll_seconds": 1000.0, "maintenance": False}
needs_pooler = pytest.mark.skipif(PROGRAM is None, reason="no pgbouncer here")

ARMED = "select queue_pg.is_armed('default')"


async def armed(conn: psycopg.AsyncConnection) -> bool:
    cursor = await conn.execute(ARMED)
    [found] = await cursor.fetchone() or [None]
    return bool(found)


async def waiting(worker: Worker, conn: psycopg.AsyncConnection) -> None:
    """Wait until a worker has armed its queue, looked once more, and would not look again."""
    assert await asyncio.to_thread(worker.wakeups.wait_listening, PATIENCE_SECONDS)
    async with emitted(worker, "idle") as idle:
        # However far it has come, it looks and arms again, so that there is something to wait for.
        await conn.execute("select pg_notify('queue_pg_wake', 'default')")
        while await idle() < NEVER["poll_seconds"] / 2:
            pass
    assert await armed(conn)


async def test_an_idle_worker_arms_its_queue_and_is_woken(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    async with running(dsn, **NEVER) as worker:
        for _ in range(3):
            await waiting(worker, conn)
            await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)


async def test_a_resumed_queue_s_jobs_are_found(dsn: str, queue: Queue, conn: psycopg.AsyncConnection) -> None:
    await queue.pause("default")
    async with running(dsn, **NEVER) as worker:
        await waiting(worker, conn)
        job = await queue.submit("chat", {"prompt": "x"})
        await queue.resume("default")
        await finished(queue, job.id)


async def test_a_job_committed_after_the_arming_is_found_soon(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "CONFIRM_SECONDS", 8.0)  # room for a slow machine's COMMIT
    async with running(dsn, **NEVER) as worker:
        await waiting(worker, conn)
        async with (
            await psycopg.AsyncConnection.connect(dsn) as other,
            emitted(worker, "idle") as idle,
        ):
            await conn.execute("select queue_pg.disarm(array['default'])")
            # Sends no notification, since nobody waits for one at this moment.
            job = await queue.submit("chat", {"prompt": "x"}, connection=other)
            await conn.execute("select queue_pg.wake()")
            await idle()
            assert await armed(conn)
            await other.commit()
            await finished(queue, job.id)


async def test_what_is_notified_while_the_listener_is_away_is_found(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    async with running(dsn, **NEVER) as worker:
        for _ in range(3):
            await waiting(worker, conn)
            # In one transaction: when the notification is sent, nobody listens.
            async with conn.transaction():
                await conn.execute("select pg_terminate_backend(%s, 10000)", [worker.wakeups.backend_pid])
                job = await queue.submit("chat", {"prompt": "x"}, connection=conn)
            await finished(queue, job.id)


async def test_without_notifications_it_polls_and_never_arms(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    async with running(dsn, notify=False, poll_seconds=0.3) as worker, emitted(worker, "idle") as idle:
        for _ in range(6):
            await idle()
        with stalled() as stalls:
            asked_at = time.monotonic()
            await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)
            assert time.monotonic() - asked_at - stalls.seconds < 1.0
        assert not await armed(conn)


async def test_a_worker_without_free_slots_asks_for_no_notifications(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks = Tasks()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @tasks.task
    async def wait() -> None:
        begun.set()
        await go_on.wait()

    async with running(dsn, tasks, concurrency=1, **NEVER) as worker:
        await waiting(worker, conn)
        first = await queue.submit("wait")
        await soon(begun.wait())
        assert await armed(conn)
        second = await queue.submit("wait")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await armed(conn):
                pass
        go_on.set()
        for job in (first, second):
            await finished(queue, job.id)


async def test_who_disarmed_and_is_full_arms_again_for_the_others(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks()
    go_on = asyncio.Event()

    @tasks.task
    async def wait() -> None:
        await go_on.wait()

    async with running(dsn, tasks, concurrency=1, **NEVER) as worker:
        await waiting(worker, conn)
        # As after sustained traffic, with another worker in the fleet, of whom a heartbeat may not have heard yet.
        worker._claims.share(2)
        monkeypatch.setattr(worker._claims, "share", lambda _: None)
        worker._claims._looking.has_disarmed = True
        await conn.execute("select queue_pg.disarm(array['default'])")
        job = await queue.submit("wait")
        await conn.execute("select queue_pg.wake()")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await armed(conn):
                pass
        go_on.set()
        await finished(queue, job.id)


@needs_pooler
async def test_through_a_pooler_with_a_direct_line_to_listen(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    with pooled(dsn) as through:
        async with running(through, listen_dsn=dsn, **NEVER) as worker:
            for _ in range(3):
                await waiting(worker, conn)
                await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)


@needs_pooler
async def test_through_a_pooler_alone_it_says_so_and_polls(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    warned = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Watcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            loop.call_soon_threadsafe(warned.set)

    watcher = Watcher(logging.WARNING)
    logging.getLogger("queue_pg.wakeup").addHandler(watcher)
    try:
        with pooled(dsn) as through:
            async with running(through, poll_seconds=0.3) as worker:
                await soon(warned.wait())
                assert not worker.wakeups.listening
                await queue.submit_many([NewJob(kind="chat", payload={"prompt": "x"})] * 20)
                end = await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)
                assert end.state == "completed"
                assert not await armed(conn)
    finally:
        logging.getLogger("queue_pg.wakeup").removeHandler(watcher)
    [record] = [record for record in caplog.records if record.name == "queue_pg.wakeup"]
    assert "LISTEN_DATABASE_URL" in record.getMessage()
