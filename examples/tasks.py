"""Functions as jobs. A worker serves this module with: queue-pg worker examples/tasks.py (or examples.tasks)

python examples/tasks.py        submits, and runs the jobs in this process as a test would
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from queue_pg import InvalidJob, Queue, Snooze, current_job, task, use_queue
from queue_pg.testing import drain

rate_limited = {"once": True}


@task(max_attempts=3, timeout=60, retry_base_seconds=1, retry_cap_seconds=30)
async def summarise(text: str, words: int = 5) -> str:
    """Keep the first words of a text."""
    return " ".join(text.split()[:words])


@task
def fetch(url: str) -> Snooze | dict[str, str | int]:
    """Fetch a page; a server that is busy is asked again later, which burns no attempt."""
    if rate_limited.pop("once", False):
        return Snooze(timedelta(0))
    return {"url": url, "attempt": current_job().attempt}


async def main() -> None:
    async with Queue() as queue:
        use_queue(queue)
        # Arguments are checked twice: by your type checker, and before the job is stored.
        await summarise.submit(text="one two three four five six seven", words=3)
        await summarise.using(priority=10, tags=["urgent"]).submit("urgent things go first")
        await fetch.submit(url="https://example.org/")
        try:
            await summarise.submit(text="x", words="many")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        except InvalidJob as error:
            print(f"refused: {error}")
        for job in await drain(queue):
            print(f"{job.kind}: {job.state} {job.result}")


if __name__ == "__main__":
    asyncio.run(main())
