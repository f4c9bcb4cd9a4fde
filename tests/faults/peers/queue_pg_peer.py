"""queue-pg: the command `queue-pg worker` with this module, and the asynchronous client."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from notes import SECONDS, effect, produce

from queue_pg import Queue
from queue_pg.schema import migrate
from queue_pg.tasks import current_job, task

DSN = os.environ["DATABASE_URL"]


@task
async def work(n: int) -> dict[str, Any]:
    job = current_job()
    with effect(n, job.job_id, job.lease_token):
        await asyncio.sleep(SECONDS)
    return {"token": job.lease_token}


async def submit_all() -> None:
    async with Queue(DSN) as queue:

        async def submit(n: int) -> object:
            return (await queue.submit("work", {"n": n})).id

        await produce(submit)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        migrate(DSN)
    else:
        asyncio.run(submit_all())
