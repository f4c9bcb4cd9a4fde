"""The same work done once: results answered at once, and shared while they are being made.

DATABASE_URL=postgresql://app@localhost/app python examples/caching.py
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

from queue_pg import Queue, Tasks
from queue_pg.testing import drain

tasks = Tasks()


@tasks.task(queue="summaries", cache_for=timedelta(hours=1))
async def summarise(text: str) -> str:
    print(f"at work on {len(text.split())} words")
    return text.split()[0]


async def main() -> None:
    text = f"Queues {uuid.uuid4()}"  # not that of an earlier run
    async with Queue() as queue:
        submit = summarise.using(queue=queue).submit
        first, second = await submit(text), await submit(text)
        print(f"first {first.state}, second {second.state}")
        await drain(queue, tasks, queues=["summaries"])
        second = await queue.wait(second.id, timeout=30)
        print(f"second: {second.result!r}, from the first: {second.cached_from == first.id}")

        third = await submit(text)
        print(f"third: {third.state} at once, {third.result!r}")

        other = await summarise.using(queue=queue, cache_version="large-2").submit(text)
        print(f"another version: {other.state}")
        await drain(queue, tasks, queues=["summaries"])


asyncio.run(main())
