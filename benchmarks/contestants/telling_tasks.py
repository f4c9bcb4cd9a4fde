"""Tasks that say something: `queue-pg worker benchmarks.contestants.telling_tasks`."""

from __future__ import annotations

import asyncio
import random
import time

from benchmarks.peers.marks import begun
from queue_pg import current_job, task


@task
async def log_lines(lines: int) -> None:
    """Log so many lines as fast as it goes."""
    begun(0)
    job = current_job()
    for n in range(lines):
        await job.log(f"step {n}: 64 rows were written to the output, none was refused")


@task
async def stream_tokens(tokens: int) -> None:
    """Stream so many tokens as fast as it goes."""
    begun(0)
    job = current_job()
    for n in range(tokens):
        await job.stream(f" token{n}")


@task
async def tick(seconds: float, interval: float) -> None:
    """Say the time, at a fixed interval from a moment of its own on; late is late and not left out."""
    job = current_job()
    loop = asyncio.get_running_loop()
    begin = loop.time()
    due = begin + random.uniform(0, interval)
    while due < begin + seconds:
        await asyncio.sleep(due - loop.time())
        await job.emit("tick", {"t": time.monotonic_ns()})
        due += interval
