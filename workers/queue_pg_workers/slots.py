"""The slots of a worker: how many handlers run, and waiting for a free one."""

from __future__ import annotations

import asyncio

from queue_pg_workers.leases import Held


class Slots:
    """`capacity` slots. `room` is set when one gets free, and by others whom claiming waits for."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken: set[Held] = set()
        self.room = asyncio.Event()

    def __len__(self) -> int:
        return len(self.taken)

    @property
    def free(self) -> int:
        return self.capacity - len(self.taken)

    def give_back(self, held: Held) -> None:
        self.taken.discard(held)
        self.room.set()

    async def all_free(self, timeout_seconds: float) -> None:
        """Wait until no handler runs, at most so long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.taken:
                    self.room.clear()
                    await self.room.wait()
        except TimeoutError:
            return
