"""A task that tells when it begins and when it ends, with the process it runs in."""

from __future__ import annotations

import asyncio
import os

from telling_tasks import tell

from queue_pg.tasks import current_job, task


@task
async def take_turn() -> None:
    job = current_job()
    tell("began", os.getpid(), job.job_id)
    # The work: other workers come by meanwhile.
    await asyncio.sleep(0.01)
    tell("ended", os.getpid(), job.job_id)
