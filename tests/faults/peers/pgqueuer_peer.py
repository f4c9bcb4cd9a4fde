"""PgQueuer: a connection for the worker, a pool for the application.

`pgqueuer.run` is what the command `pgq run` calls; that of 1.6.0 fails before it does with today's typer.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pgqueuer
import uvloop
from notes import CONCURRENCY, DEAD_SECONDS, POOLED, SECONDS, effect, produce
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

DSN = os.environ["DATABASE_URL"]
OPTIONS: dict[str, Any] = {"statement_cache_size": 0} if POOLED else {}


@asynccontextmanager
async def make() -> AsyncGenerator[PgQueuer]:
    connection = await asyncpg.connect(DSN, **OPTIONS)
    try:
        pgq = PgQueuer(AsyncpgDriver(connection))

        @pgq.entrypoint("work")
        async def run(job: Job) -> None:
            assert job.payload is not None
            with effect(int(job.payload), job.id):
                await asyncio.sleep(SECONDS)

        yield pgq
    finally:
        await connection.close()


async def work() -> None:
    await pgqueuer.run(
        make,
        dequeue_timeout=timedelta(seconds=1),
        batch_size=CONCURRENCY // 2,
        max_concurrent_tasks=CONCURRENCY,
        heartbeat_timeout=timedelta(seconds=DEAD_SECONDS),
        shutdown_on_listener_failure=True,
        restart_on_failure=True,
        restart_delay=timedelta(seconds=1),
    )


async def prepare() -> None:
    connection = await asyncpg.connect(DSN)
    await Queries(AsyncpgDriver(connection)).install()
    await connection.close()


async def submit_all() -> None:
    async with asyncpg.create_pool(DSN, min_size=1, max_size=4, **OPTIONS) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))

        async def submit(n: int) -> object:
            [job] = await queries.enqueue("work", str(n).encode())
            return job

        await produce(submit)


if __name__ == "__main__":
    uvloop.run({"prepare": prepare, "produce": submit_all, "work": work}[sys.argv[1]]())
