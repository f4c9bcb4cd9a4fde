"""Files of any size that no compression makes smaller, and a task that stores and reads one."""

from __future__ import annotations

import os
import time
from collections.abc import Generator

from queue_pg import current_job, task

BLOCK_BYTES = 1024 * 1024


def blocks(count: int) -> Generator[bytes]:
    """Yield blocks of a MiB, all of them different: random bytes with a number in front."""
    rest = os.urandom(BLOCK_BYTES - 8)
    for number in range(count):
        yield number.to_bytes(8) + rest


@task
async def through(mebibytes: int) -> dict[str, float]:
    """Store a file of so many MiB as an artifact and read it back; return the seconds of both."""
    job = current_job()
    begin = time.monotonic()
    await job.artifact("large.bin", blocks(mebibytes))
    stored = time.monotonic()
    read = 0
    async for piece in await job.open_artifact("large.bin"):
        read += len(piece)
    if read != mebibytes * BLOCK_BYTES:
        raise RuntimeError(f"{read} bytes came back")
    return {"in": stored - begin, "out": time.monotonic() - stored}
