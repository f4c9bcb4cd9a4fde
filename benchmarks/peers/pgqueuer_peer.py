"""PgQueuer with the driver and the event loop of its own benchmark, asyncpg and uvloop."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import asyncpg
import uvloop
from marks import begun
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

DSN = os.environ["DATABASE_URL"]
BATCH = 500


async def prepare(jobs: int) -> None:
    connection = await asyncpg.connect(DSN)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for start in range(1, jobs + 1, 10_000):
        numbers = range(start, min(start + 10_000, jobs + 1))
        await queries.enqueue(["noop"] * len(numbers), [str(n).encode() for n in numbers], [0] * len(numbers))
    await connection.close()


async def work() -> None:
    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(DSN)))

    @pgq.entrypoint("noop")
    async def noop(job: Job) -> None:
        assert job.payload is not None
        begun(int(job.payload))

    await pgq.run(batch_size=BATCH, dequeue_timeout=timedelta(seconds=1))


if __name__ == "__main__":
    uvloop.run(prepare(int(sys.argv[2])) if sys.argv[1] == "prepare" else work())
