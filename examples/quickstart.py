"""Submit a job, run it, read its result: all from Python, with nothing but DATABASE_URL.

python examples/quickstart.py
"""

from __future__ import annotations

import asyncio
from typing import Any

from queue_pg import Queue
from queue_pg.payloads import decode_json


async def work(queue: Queue) -> None:
    """Do what a worker does: claim, run, complete. In earnest this is `queue-pg worker`."""
    while True:
        for job in await queue.claim("quickstart-worker", ["default"], kinds=["greet"]):
            payload: dict[str, Any] = decode_json(job.payload)
            await queue.complete(job.id, job.lease_token, f"Hello {payload['name']}")
        await asyncio.sleep(0.05)


async def main() -> None:
    async with Queue() as queue:
        # The same key gives the same job: repeating this after a lost answer adds no second one.
        job = await queue.submit("greet", {"name": "world"}, unique_key="greet-world")
        again = await queue.submit("greet", {"name": "world"}, unique_key="greet-world")
        assert again.id == job.id
        print(f"submitted: {job.kind} is {job.state}")

        worker = asyncio.create_task(work(queue))
        print(f"result: {await queue.result(job.id, timeout=30)}")
        worker.cancel()

        later = await queue.submit("greet", {"name": "tomorrow"}, delay=24 * 3600, priority=10)
        print(f"later: {later.state}")
        print(f"cancelled: {(await queue.cancel(later.id, 'no longer needed')).state}")


asyncio.run(main())
