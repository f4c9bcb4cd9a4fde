"""awa: its Rust engine with an asynchronous Python handler."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass

from awa import AsyncClient, Job
from marks import begun

WORKERS = 200


@dataclass
class Noop:
    n: int


async def prepare(jobs: int) -> None:
    client = AsyncClient(os.environ["DATABASE_URL"])
    await client.migrate()
    await client.install_queue_storage()
    for start in range(1, jobs + 1, 5_000):
        numbers = range(start, min(start + 5_000, jobs + 1))
        await client.enqueue_many_copy([Noop(n) for n in numbers], queue="default")
    await client.close()


async def work() -> None:
    client = AsyncClient(os.environ["DATABASE_URL"], max_connections=20)

    @client.task(Noop, queue="default")
    async def noop(job: Job) -> None:
        begun(job.args.n)

    await client.start([("default", WORKERS)], poll_interval_ms=50)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(prepare(int(sys.argv[2])) if sys.argv[1] == "prepare" else work())
