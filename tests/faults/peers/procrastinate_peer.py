"""Procrastinate: the command `procrastinate worker`, with the task for stalled jobs that its page on them gives."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import procrastinate
import psycopg_pool
from notes import CONCURRENCY, DEAD_SECONDS, POOLED, SECONDS, effect, produce

OPTIONS: dict[str, Any] = (
    {"pool_factory": psycopg_pool.AsyncNullConnectionPool, "kwargs": {"prepare_threshold": None}} if POOLED else {}
)
app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"], **OPTIONS),
    worker_defaults={
        "concurrency": CONCURRENCY,
        "update_heartbeat_interval": 1,
        "stalled_worker_timeout": DEAD_SECONDS,
    },
)


@app.task(queue="default", name="work", pass_context=True)
async def work(context: procrastinate.JobContext, n: int) -> None:
    with effect(n, context.job.id):
        await asyncio.sleep(SECONDS)


@app.periodic(cron=f"* * * * * */{DEAD_SECONDS}")
@app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: procrastinate.JobContext, timestamp: int) -> None:
    for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=DEAD_SECONDS):
        await app.job_manager.retry_job(job)


async def main(what: str) -> None:
    async with app.open_async():
        if what == "prepare":
            await app.schema_manager.apply_schema_async()
        else:
            await produce(lambda n: work.defer_async(n=n))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
