"""Jobs fail because something is down; later all that failed for it are replayed.

DATABASE_URL=postgresql://... python examples/replay.py
"""

from __future__ import annotations

import asyncio

from queue_pg import Fail, JobFilter, Queue
from queue_pg.tasks import Tasks
from queue_pg.testing import drain

tasks = Tasks()
down = {"smtp": True}


@tasks.task(queue="mail", max_attempts=1)
async def send(to: str) -> str | Fail:
    """Send a mail, unless the server is down."""
    if down["smtp"]:
        return Fail("the mail server does not answer", code="smtp_down", retry=False)
    return f"sent to {to}"


async def main() -> None:
    async with Queue() as queue:
        for name in ("ann", "bob", "cleo"):
            await queue.submit("send", {"to": name}, queue="mail")
        await drain(queue, tasks)

        failed = JobFilter(state="failed", queue="mail", error_code="smtp_down")
        counted = await queue.act_on_jobs("retry", failed, dry_run=True)
        print(f"{counted.matched} failed for it")

        down["smtp"] = False
        replayed = await queue.act_on_jobs("retry", failed)
        print(f"{replayed.changed} put back")
        for job in await drain(queue, tasks):
            print(job.state, job.result)

        deleted = await queue.act_on_jobs("delete", JobFilter(queue="mail"))
        print(f"{deleted.changed} deleted")


if __name__ == "__main__":
    asyncio.run(main())
