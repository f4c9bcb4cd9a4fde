"""Procrastinate: an asynchronous task, a worker that runs many at once, woken by notifications."""

from __future__ import annotations

import asyncio
import os
import sys

import procrastinate
import uvloop
from marks import begun

CONCURRENCY = 50

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"], min_size=4, max_size=20)
)


@app.task(queue="default", name="noop")
async def noop(n: int) -> None:
    begun(n)


async def prepare(jobs: int) -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        if jobs:
            await noop.batch_defer_async(*({"n": n} for n in range(1, jobs + 1)))


async def work() -> None:
    async with app.open_async():
        await app.run_worker_async(concurrency=CONCURRENCY, listen_notify=True, install_signal_handlers=False)


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(prepare(int(sys.argv[2])) if sys.argv[1] == "prepare" else work())
