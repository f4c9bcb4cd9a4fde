"""A task that tells when it begins and when it ends, with the process it runs in."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from telling_tasks import tell

from queue_pg.tasks import current_job, task


@task
async def take_turn(gate: str) -> None:
    job = current_job()
    tell("began", os.getpid(), job.job_id)
    # Nobody goes on before the test reads the gate: a named pipe that opens for writing only then.
    await asyncio.to_thread(Path(gate).write_bytes, b"")
    # The work: other workers come by meanwhile.
    await asyncio.sleep(0.01)
    tell("ended", os.getpid(), job.job_id)
