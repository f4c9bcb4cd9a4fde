"""The tasks that queue-pg's own worker runs here: `queue-pg worker benchmarks.contestants.noop_tasks`."""

from __future__ import annotations

from benchmarks.peers.marks import begun
from queue_pg import task


@task
async def noop(n: int) -> None:
    """Do nothing but be counted."""
    begun(n)
