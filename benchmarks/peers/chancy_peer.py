"""Chancy: the asynchronous executor, eager polling, many jobs at once."""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop
from chancy import Chancy, Queue, Worker, job
from marks import begun

CONCURRENCY = 500


@job(queue="default")
async def noop(*, n: int) -> None:
    begun(n)


async def prepare(jobs: int) -> None:
    async with Chancy(os.environ["DATABASE_URL"]) as chancy:
        await chancy.migrate()
        queue = Queue(
            "default",
            concurrency=CONCURRENCY,
            executor="chancy.executors.asyncex.AsyncExecutor",
            polling_interval=1,
            eager_polling=True,
        )
        await chancy.declare(queue)
        if jobs:
            async for _ in chancy.push_many([noop.job.with_kwargs(n=n) for n in range(1, jobs + 1)]):
                pass


async def work() -> None:
    async with Chancy(os.environ["DATABASE_URL"]) as chancy, Worker(chancy) as worker:
        await worker.wait_for_shutdown()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(prepare(int(sys.argv[2])) if sys.argv[1] == "prepare" else work())
