"""Steps, an approval gate and a durable sleep: what is done is not done again, and nobody waits in a worker's slot.

python examples/approval.py        submits, plays worker and editor, and shows the steps
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from queue_pg import EventTimeout, Queue, current_job, task, use_queue
from queue_pg.testing import drain


@task(max_attempts=3)
async def publish(title: str) -> dict[str, Any]:
    """Write an article, wait for its review, publish it."""
    job = current_job()
    # Dear work, done once: a later attempt gets what it returned.
    draft = await job.step("draft", write, title)
    try:
        review = await job.wait_for_event("review", timeout=timedelta(days=3))
    except EventTimeout:
        return {"published": False, "why": "nobody reviewed it"}
    if not review["approved"]:
        return {"published": False, "why": review["why"]}
    await job.sleep(review["delay_seconds"], name="embargo")
    return {"published": await job.step("post", post, draft)}


async def write(title: str) -> str:
    print(f"writing {title!r}")
    return f"{title}: many words"


async def post(draft: str) -> str:
    print(f"posting {draft!r}")
    return f"https://example.org/{len(draft)}"


async def main() -> None:
    async with Queue() as queue:
        use_queue(queue)
        job = await publish.submit(title="Queues")
        await drain(queue)
        [why] = await queue.why_waiting(job.id)
        print(f"{(await queue.get(job.id)).state}: {why.detail}")

        # Also by HTTP (POST /jobs/{id}/signals/review), SQL (queue_pg.signal) and command line (queue-pg signal).
        await queue.signal(job.id, "review", {"approved": True, "delay_seconds": 0})
        await drain(queue)
        print(f"{(await queue.get(job.id)).state}: {await queue.result(job.id)}")
        for step in await queue.steps(job.id):
            print(f"{step.type} {step.name}: {step.result}")


if __name__ == "__main__":
    asyncio.run(main())
