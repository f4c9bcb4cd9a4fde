"""Many jobs as one: a batch with a callback, its progress, and another try for what failed.

DATABASE_URL=postgresql://app@localhost/app python examples/batches.py
"""

from __future__ import annotations

import asyncio
from typing import Any

from queue_pg import Fail, NewJob, Queue, Tasks, store
from queue_pg.testing import drain

tasks = Tasks()
broken = {"b.csv"}


@tasks.task(queue="imports")
async def load(file: str) -> Fail | None:
    return Fail("cannot be read", retry=False) if file in broken else None


@tasks.task(queue="imports")
async def report(batch: dict[str, Any]) -> None:
    print(f"report: {batch['name']} {batch['state']}, {batch['completed']} of {batch['total']} loaded")


async def work(queue: Queue) -> None:
    """What workers do by themselves: run the jobs, and end the batch."""
    await drain(queue, tasks, queues=["imports"])
    async with queue.connection() as conn:
        await store.maintain(conn)
    await drain(queue, tasks, queues=["imports"])


async def main() -> None:
    async with Queue() as queue:
        async with queue.batch("import", on_all=NewJob(kind="report", queue="imports")) as batch:
            await batch.submit_many(
                NewJob(kind="load", queue="imports", payload={"file": file}) for file in ("a.csv", "b.csv", "c.csv")
            )
        print(f"submitted: {(await batch.progress()).queued} jobs are queued")
        await work(queue)
        done = await batch.wait(timeout=30)
        print(f"{done.state}: {done.percent:.0f} % ended, {done.failed} failed")

        broken.clear()
        again = await queue.retry_failed(batch.id)
        print(f"retried: {again.jobs}")
        await work(queue)
        print(f"{(await batch.wait(timeout=30)).state}")


asyncio.run(main())
