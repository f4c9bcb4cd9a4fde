"""Claiming: as many jobs as there are free slots, and their handlers' start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import AsyncConnection

from queue_pg import store
from queue_pg.models import LeasedJob
from queue_pg.surroundings import REAL, Surroundings
from queue_pg.tasks import HandlerLink
from queue_pg_workers.attempt import Attempts
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.deadlines import Deadlines
from queue_pg_workers.finisher import Finisher
from queue_pg_workers.kinds import Handler
from queue_pg_workers.leases import Held, Leases
from queue_pg_workers.link import Link
from queue_pg_workers.looking import Looking
from queue_pg_workers.outage import Outage
from queue_pg_workers.outcomes import released
from queue_pg_workers.signals import Signals
from queue_pg_workers.slots import Slots
from queue_pg_workers.tally import Tally

log = logging.getLogger(__name__)

# How long the claim under way has when the worker is to end, before it is cancelled, and again before it is cut off.
LAST_CLAIM_SECONDS = (0.25, 1.0)
# A worker without free slots that is notified asks for no more of it, at most this often.
DISARM_SECONDS = 0.05
# One that has disarmed, and has had no free slot for so long, arms again for the others.
HAND_OVER_SECONDS = 0.02
# How many handlers start before the loop turns to other things, such as sending what the first ones returned.
START_AT_ONCE = 100
# A claim of more than this takes half of the slots at most: the other half's jobs run while the database works.
CLAIM_AT_ONCE = 250


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
        listening: Callable[[], bool],
        signals: Signals,
        handler_link: HandlerLink,
        tally: Tally | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._config = config
        self._handler_link = handler_link
        self._tally = tally
        self._surroundings = surroundings
        self._worker_id = worker_id
        self._handlers = handlers
        self._kinds = sorted(handlers)
        self._link = link
        self._leases = leases
        self._slots = slots
        self._attempts = attempts
        self._finisher = finisher
        self._cover = cover
        self._listening = listening
        self._signals = signals
        self._deadlines = Deadlines(leases)
        self._looking = Looking(poll_seconds=config.poll_seconds, jitter=surroundings.uniform)
        self._disarmed_at = 0.0
        # Jobs may be there; apart from `Slots.room`, because an empty queue stays empty when a slot gets free.
        self._hint = asyncio.Event()
        self._stop = asyncio.Event()
        self._claimed: asyncio.Queue[list[Held]] = asyncio.Queue()
        # Since when a claim is under way, whose answer has not been taken in; read by the heartbeat thread too.
        self.asked_at: float | None = None
        self._at_once = max(CLAIM_AT_ONCE, config.concurrency // 2)

    def look(self) -> None:
        """Claim soon: jobs may be there."""
        self._hint.set()
        self._slots.room.set()

    def share(self, fleet: int) -> None:
        """Take in how many live workers serve our queues, ourselves included; may be called from any thread."""
        self._looking.fleet = fleet

    def stop(self) -> None:
        """Claim no more; what the claim under way brings is handed back."""
        if not self._stop.is_set():
            self._stop.set()
            self._link.interrupt_in(last_claim_seconds(self._config.grace_seconds))
        self._hint.set()
        self._slots.room.set()

    @property
    def owes_arming(self) -> bool:
        """Whether others wait in vain for notifications if we look no more."""
        return self._looking.has_disarmed and self._looking.fleet > 1

    async def run(self) -> None:
        outage = Outage("claiming", log=log, signals=self._signals, surroundings=self._surroundings)
        while not self._stop.is_set():
            free = self._slots.free
            try:
                if free <= 0 or self._finisher.lagging:
                    await self._until_room()
                    continue
                await self._look(free)
            except (psycopg.Error, OSError) as error:
                if self._stop.is_set():
                    return  # we have given it up ourselves
                await wait(self._stop, outage.failed(error))
                continue
            outage.over()
            if pause := self._looking.pause_seconds(listening=self._listening()):
                self._signals.emit("idle", pause)
                # Deaf to hints in a storm of them, not to the order to stop.
                hinted = await wait(self._stop if self._looking.deaf else self._hint, pause)
                self._looking.paused(hinted=hinted)

    async def _look(self, free: int) -> None:
        # Cleared before the look: what comes during it ends the wait after it.
        self._hint.clear()
        self.asked_at = asked_at = self._surroundings.monotonic()
        try:
            await self._claim(asked_at, free)
        finally:
            self.asked_at = None

    async def _claim(self, asked_at: float, free: int) -> None:
        wanted = min(free, self._at_once)
        arm = self._looking.arm(listening=self._listening())

        async def claim(connection: AsyncConnection[Any]) -> list[LeasedJob]:
            # Connecting may have taken long.
            if self._stop.is_set():
                return []
            return await store.claim_for_worker(
                connection,
                self._worker_id,
                self._config.queues,
                kinds=self._kinds,
                max_jobs=wanted,
                lease_seconds=self._config.lease_seconds,
                arm=arm,
            )

        jobs = await self._link.run(claim)
        if self._tally is not None:
            self._tally.claims.add(self._surroundings.monotonic() - asked_at)
            self._tally.claimed += len(jobs)
        self._looking.looked(len(jobs), room=wanted)
        if jobs:
            self._signals.emit("claimed", len(jobs))
            self._take(jobs, asked_at)

    async def _until_room(self) -> None:
        """Wait for something to change, and see meanwhile that neither we nor the others are notified in vain."""
        room, queues = self._slots.room, self._config.queues
        room.clear()
        if self._hint.is_set():
            self._hint.clear()
            now = self._surroundings.monotonic()
            if now - self._disarmed_at >= DISARM_SECONDS:
                # At once or not at all: those who have free slots were notified too, and arm when they have looked.
                self._disarmed_at = now
                await self._link.run(lambda connection: store.disarm(connection, queues))
        elif not self.owes_arming:
            await room.wait()
        elif not await wait(room, HAND_OVER_SECONDS):
            self._looking.has_disarmed = False
            await self._link.run(lambda connection: store.arm(connection, queues))

    def _take(self, jobs: list[LeasedJob], asked_at: float) -> None:
        on_interrupted, link = self._attempts.interrupted, self._handler_link
        batch = [Held(job, asked_at=asked_at, on_interrupted=on_interrupted, link=link) for job in jobs]
        self._leases.add(batch)
        if self._stop.is_set():
            for held in batch:
                held.outcome = released(held.job)
                self._finisher.add(held)
            return
        self._slots.taken.update(batch)
        self._cover(min([job.lease_seconds for job in jobs]))
        self._claimed.put_nowait(batch)

    async def start(self) -> None:
        """Start what was claimed, for ever; apart from `run`, so that the next claim is under way meanwhile."""
        while True:
            batch = await self._claimed.get()
            begun_at = self._surroundings.monotonic()
            for held in batch:
                held.times_out_at = begun_at + held.job.timeout_seconds
            if self._tally is not None:
                self._tally.started(batch)
            self._deadlines.watch(min([held.times_out_at for held in batch]))
            verbose = log.isEnabledFor(logging.DEBUG)
            for begin in range(0, len(batch), START_AT_ONCE):
                for held in batch[begin : begin + START_AT_ONCE]:
                    if verbose:
                        _log_begin(held.job)
                    self._attempts.start(held, self._handlers[held.job.kind])
                await asyncio.sleep(0)


def last_claim_seconds(grace_seconds: float) -> float:
    """Return how long the last claim has, twice: a third of the grace in all, within bounds."""
    shortest, longest = LAST_CLAIM_SECONDS
    return min(longest, max(shortest, grace_seconds / 6))


def _log_begin(job: LeasedJob) -> None:
    log.debug("job %s (%s): attempt %d of %d begins", job.id, job.kind, job.attempt, job.max_attempts)


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long; return whether it came."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
