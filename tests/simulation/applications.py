"""Applications that submit jobs through the library, and write down what they were told."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any, Final

from queue_pg.client import Queue
from queue_pg.errors import DatabaseUnavailable, InvalidBatchTransition, InvalidTransition, JobNotFound, WaitTimeout
from queue_pg.models import NewJob
from tests.simulation.handlers import Ledgers

# The limit that some jobs count against, and how many of them may run.
LIMIT: Final = "narrow"
MOST: Final = 2


class Application:
    """Submits jobs in all ways there are, and looks after some of them."""

    def __init__(self, queue: Queue, *, chance: random.Random, ledgers: Ledgers, lease_seconds: float) -> None:
        self._queue = queue
        self._chance = chance
        self._ledgers = ledgers
        self._lease_seconds = lease_seconds

    async def submit(self, jobs: int) -> None:
        forms = (
            self._keyed,
            self._keyed,
            self._once,
            self._many,
            self._family,
            self._limited,
            self._batch,
            self._cancelled,
        )
        left = jobs
        while left > 0:
            left -= await self._chance.choice(forms)()
            await asyncio.sleep(self._chance.choice((0.0, 0.01, 0.5, 2.0)) * self._chance.random())

    def _work(self, n: int) -> tuple[str, dict[str, Any]]:
        """Make up what a job is to do."""
        lease = self._lease_seconds
        match self._chance.randrange(10):
            case 0:
                return "flaky", {"n": n}
            case 1:
                return "nap", {"n": n}
            case 2:
                return "stepped", {"n": n}
            case 3:
                return "maker", {"n": n}
            case 4 | 5:
                return "work", {"n": n, "seconds": lease * self._chance.uniform(0.5, 2.5)}
            case 6:
                return "block", {"n": n, "seconds": lease * self._chance.uniform(0.1, 2.0)}
            case _:
                return "work", {"n": n, "seconds": self._chance.choice((0.0, 0.01, 0.3))}

    async def insist(self, n: int, kind: str, payload: dict[str, Any], **options: Any) -> Any:
        self._ledgers.will_submit(n)
        while True:
            try:
                job = await self._queue.submit(kind, payload, unique_key=f"key-{n}", **options)
            except DatabaseUnavailable:
                await asyncio.sleep(self._chance.uniform(0.05, 0.5))
            else:
                self._ledgers.acked(n, job.id)
                return job

    async def _keyed(self) -> int:
        n = self._ledgers.new_number()
        job = await self.insist(n, *self._work(n), delay=self._chance.choice((None, None, 1.0)))
        if self._chance.random() < 0.2:
            with suppress(DatabaseUnavailable, WaitTimeout):
                await self._queue.wait(job.id, timeout=self._chance.uniform(0.1, 10.0))
        return 1

    async def _once(self) -> int:
        n = self._ledgers.new_number()
        self._ledgers.will_submit(n)
        with suppress(DatabaseUnavailable):
            self._ledgers.acked(n, (await self._queue.submit(*self._work(n))).id)
        return 1

    async def _many(self) -> int:
        numbers = [self._ledgers.new_number() for _ in range(self._chance.randint(2, 5))]
        group = self._ledgers.new_group()
        for n in numbers:
            self._ledgers.will_submit(n, group)
        with suppress(DatabaseUnavailable):
            jobs = [NewJob(kind=kind, payload=payload) for kind, payload in map(self._work, numbers)]
            stored = await self._queue.submit_many(jobs)
            for n, one in zip(numbers, stored, strict=True):
                self._ledgers.acked(n, one.id)
        return len(numbers)

    async def _family(self) -> int:
        parent, child = self._ledgers.new_number(), self._ledgers.new_number()
        job = await self.insist(parent, *self._work(parent))
        await self.insist(child, "work", {"n": child}, depends_on=[job.id])
        self._ledgers.families.append((parent, child))
        return 2

    async def _limited(self) -> int:
        numbers = [self._ledgers.new_number() for _ in range(3)]
        for n in numbers:
            self._ledgers.limited.add(n)
            await self.insist(n, "work", {"n": n, "seconds": 0.3}, limit_key=LIMIT)
        return 3

    async def _batch(self) -> int:
        while True:
            try:
                batch = await self._queue.create_batch("mixed", on_all="told")
                break
            except DatabaseUnavailable:
                await asyncio.sleep(self._chance.uniform(0.05, 0.5))
        numbers = [self._ledgers.new_number() for _ in range(3)]
        for n in numbers:
            await self.insist(n, *self._work(n), batch_id=batch.id)
        while True:
            try:
                await self._queue.close_batch(batch.id)
                break
            except InvalidBatchTransition:
                break  # by the try before, whose answer was lost
            except DatabaseUnavailable:
                await asyncio.sleep(self._chance.uniform(0.05, 0.5))
        self._ledgers.members[str(batch.id)] = numbers
        return 3

    async def _cancelled(self) -> int:
        n = self._ledgers.new_number()
        job = await self.insist(n, "work", {"n": n, "seconds": 3.0})
        await asyncio.sleep(self._chance.uniform(0.0, 3.0))
        with suppress(DatabaseUnavailable, InvalidTransition, JobNotFound):
            await self._queue.cancel(job.id)
        return 1
