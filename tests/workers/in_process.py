"""A worker in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from queue_pg_workers.commands.runner import CommandRunner
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.kinds import handlers_of
from queue_pg_workers.providers.base import Provider
from queue_pg_workers.providers.mock import MockProvider
from queue_pg_workers.signals import Point, Signals
from queue_pg_workers.webhooks.sender import WebhookSender
from queue_pg_workers.worker import Worker

from queue_pg import Queue
from queue_pg.models import Job
from queue_pg.surroundings import REAL, Surroundings
from queue_pg.tasks import Tasks

PATIENCE_SECONDS = 20.0


@asynccontextmanager
async def running(
    dsn: str,
    tasks: Tasks | None = None,
    *,
    provider: Provider | None = None,
    commands: CommandRunner | None = None,
    surroundings: Surroundings = REAL,
    **config: Any,
) -> AsyncGenerator[Worker]:
    """Run a worker while the block lasts, stopped at its end unless it was."""
    config = {"grace_seconds": 5.0, **config}
    signals = Signals()
    made = WorkerConfig(dsn=dsn, **config)
    sender = WebhookSender(made.webhooks)
    handlers = handlers_of(tasks or Tasks(), provider or MockProvider(), sender, commands)
    worker = Worker(made, handlers, signals=signals, surroundings=surroundings)
    with signals.listen("started") as started:
        running = asyncio.create_task(worker.run())
        first = asyncio.create_task(started.get())
        await asyncio.wait({running, first}, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
    try:
        yield worker
        worker.stop()
        await soon(running)
    finally:
        worker.stop(now=True)
        await asyncio.wait({running}, timeout=PATIENCE_SECONDS)
        running.cancel()
        await sender.aclose()


async def soon(awaitable: Any) -> Any:
    """Wait, but not for ever."""
    return await asyncio.wait_for(awaitable, PATIENCE_SECONDS)


@asynccontextmanager
async def emitted(worker: Worker, point: Point) -> AsyncGenerator[Callable[[], Any]]:
    """Give a function that waits for the next value emitted at `point` since the start of the block."""
    with worker.signals.listen(point) as values:
        yield lambda: soon(values.get())


async def finished(queue: Queue, job_id: UUID) -> Job:
    """Wait for a job's end."""
    return await queue.wait(job_id, timeout=PATIENCE_SECONDS)


async def row(conn: AsyncConnection, job_id: UUID) -> dict[str, Any]:
    """Return state, attempt and so on of a job as the database has it."""
    cursor = await conn.execute(
        "select state::text, attempt, lease_token, worker_id, error from queue_pg.all_jobs where id = %s", [job_id]
    )
    found = await cursor.fetchone()
    assert found is not None
    return dict(zip(("state", "attempt", "lease_token", "worker_id", "error"), found, strict=True))
