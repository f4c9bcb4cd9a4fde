"""Claiming: as many jobs as there are free slots, and their handlers' start."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping

import psycopg

from queue_pg import store
from queue_pg.models import LeasedJob
from queue_pg_workers.attempt import Attempts
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.deadlines import Deadlines
from queue_pg_workers.finisher import Finisher
from queue_pg_workers.kinds import Handler
from queue_pg_workers.leases import Held, Leases
from queue_pg_workers.link import Link
from queue_pg_workers.outage import Outage
from queue_pg_workers.outcomes import released
from queue_pg_workers.signals import Signals
from queue_pg_workers.slots import Slots

log = logging.getLogger(__name__)

LAST_CLAIM_SECONDS = 1.0
# How many handlers start before the loop turns to other things, such as sending what the first ones returned.
START_AT_ONCE = 100


class Claiming:
    """Claims jobs while slots are free and starts their handlers, until `stop` is set."""

    def __init__(
        self,
        config: WorkerConfig,
        worker_id: str,
        handlers: Mapping[str, Handler],
        *,
        link: Link,
        leases: Leases,
        slots: Slots,
        attempts: Attempts,
        finisher: Finisher,
        cover: Callable[[float], None],
        signals: Signals,
    ) -> None:
        self._config = config
        self._worker_id = worker_id
        self._handlers = handlers
        self._kinds = sorted(handlers)
        self._link = link
        self._leases = leases
        self._slots = slots
        self._attempts = attempts
        self._finisher = finisher
        self._cover = cover
        self._signals = signals
        self._deadlines = Deadlines(leases)
        # Jobs may be there; apart from `Slots.room`, because an empty queue stays empty when a slot gets free.
        self._hint = asyncio.Event()
        self._stop = asyncio.Event()

    def look(self) -> None:
        """Claim soon: jobs may be there."""
        self._hint.set()

    def stop(self) -> None:
        """Claim no more; what the claim under way brings is handed back."""
        if not self._stop.is_set():
            self._stop.set()
            self._link.interrupt_in(LAST_CLAIM_SECONDS)
        self._hint.set()
        self._slots.room.set()

    async def run(self) -> None:
        outage = Outage("claiming", log=log, signals=self._signals)
        while not self._stop.is_set():
            # Cleared before the look: what comes during it ends the wait after it.
            self._hint.clear()
            self._slots.room.clear()
            free = self._slots.free
            if free <= 0 or self._finisher.lagging:
                await self._slots.room.wait()
                continue
            asked_at = time.monotonic()
            try:
                jobs = await self._claim(free)
            except (psycopg.Error, OSError) as error:
                await wait(self._stop, outage.failed(error))
                continue
            outage.over()
            if jobs:
                self._signals.emit("claimed", len(jobs))
                await self._take(jobs, asked_at)
            if len(jobs) < free:
                self._signals.emit("idle")
                # A little early and never the same, so that a fleet does not poll in step.
                await wait(self._hint, self._config.poll_seconds * random.uniform(0.7, 1.0))

    async def _claim(self, free: int) -> list[LeasedJob]:
        return await self._link.run(
            lambda connection: store.claim_for_worker(
                connection,
                self._worker_id,
                self._config.queues,
                kinds=self._kinds,
                max_jobs=free,
                lease_seconds=self._config.lease_seconds,
            )
        )

    async def _take(self, jobs: list[LeasedJob], asked_at: float) -> None:
        on_interrupted = self._attempts.interrupted
        batch = [Held(job, asked_at=asked_at, on_interrupted=on_interrupted) for job in jobs]
        self._leases.add(batch)
        if self._stop.is_set():
            for held in batch:
                held.outcome = released(held.job)
                self._finisher.add(held)
            return
        self._slots.taken.update(batch)
        self._cover(min([job.lease_seconds for job in jobs]))
        begun_at = time.monotonic()
        for held in batch:
            held.times_out_at = begun_at + held.job.timeout_seconds
        self._deadlines.watch(min([held.times_out_at for held in batch]))
        verbose = log.isEnabledFor(logging.DEBUG)
        for begin in range(0, len(batch), START_AT_ONCE):
            if begin:
                await asyncio.sleep(0)
            for held in batch[begin : begin + START_AT_ONCE]:
                if verbose:
                    _log_begin(held.job)
                self._attempts.start(held, self._handlers[held.job.kind])


def _log_begin(job: LeasedJob) -> None:
    log.debug("job %s (%s): attempt %d of %d begins", job.id, job.kind, job.attempt, job.max_attempts)


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
