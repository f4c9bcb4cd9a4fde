"""The jobs this process holds, and until when it may believe so."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from queue_pg.models import LeasedJob, Outcome
from queue_pg.tasks import HandlerLink, JobContext

FENCE_SECONDS: Final = 0.25


class Interruption(StrEnum):
    """Why a handler is stopped before its end."""

    TIMEOUT = "timeout"
    LEASE_LOST = "lease_lost"
    FENCED = "fenced"
    SHUTDOWN = "shutdown"


class Held:
    """One claimed job until its outcome is recorded or its lease is lost.

    `trusted_until` is on the monotonic clock: past it another worker may have the job. It is counted from before
    the request that got or extended the lease was sent, so it never lies after the lease's end in the database.
    `times_out_at`, on the same clock, is set when the handler starts.
    """

    __slots__ = (
        "_context",
        "_last_end",
        "_on_interrupted",
        "interruption",
        "job",
        "link",
        "lost",
        "metadata",
        "outcome",
        "running",
        "sending",
        "stop",
        "times_out_at",
        "trusted_until",
        "unknown",
    )

    def __init__(
        self,
        job: LeasedJob,
        *,
        asked_at: float,
        on_interrupted: Callable[[Held], object],
        link: HandlerLink | None = None,
    ) -> None:
        self.job = job
        self.link = link
        self.metadata: Any = None
        self.trusted_until = asked_at + job.lease_seconds
        # queue_pg.heartbeat extends no lease beyond the attempt's timeout plus one lease.
        self._last_end = self.trusted_until + job.timeout_seconds
        self.times_out_at = self._last_end
        self.interruption: Interruption | None = None
        self.lost = False
        # Whether the handler's code runs, and how to ask it to end; None for threads, which cannot be made to.
        self.running = False
        self.stop: Callable[[], object] | None = None
        self.outcome: Outcome | None = None
        # True while a finish with this lease is under way: its reply, not a heartbeat, then tells whether it counted.
        self.sending = False
        # The outcome was sent before without an answer: it may have been recorded then.
        self.unknown = False
        self._context: JobContext | None = None
        self._on_interrupted = on_interrupted

    @property
    def key(self) -> tuple[str, int]:
        return (self.job.id, self.job.lease_token)

    def context(self) -> JobContext:
        """Return what `current_job()` gives the handler; made when it is first asked for, in whatever thread."""
        if self._context is None:
            with _making_context:
                if self._context is None:
                    self._context = self._make_context()
            # It may have been interrupted before there was anything to tell.
            if self.interruption is not None:
                self._context.cancelled.set()
        return self._context

    def _make_context(self) -> JobContext:
        job = self.job
        return JobContext(
            job_id=UUID(job.id),
            kind=job.kind,
            queue=job.queue,
            org=job.org,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            lease_token=job.lease_token,
            metadata=self.metadata or {},
            tags=job.tags or [],
            traceparent=job.traceparent,
            link=self.link,
        )

    def extended(self, *, asked_at: float) -> None:
        """Take in that a heartbeat sent at `asked_at` (monotonic) has extended the lease."""
        self.trusted_until = min(asked_at + self.job.lease_seconds, self._last_end)

    def interrupt(self, reason: Interruption) -> None:
        """Stop the handler; the first reason counts. May be called from any thread, as `on_interrupted` then is."""
        if reason is Interruption.LEASE_LOST:
            self.lost = True
        if self.interruption is None:
            self.interruption = reason
        if self._context is not None:
            # What handlers in threads look at, and those that block the loop.
            self._context.cancelled.set()
        self._on_interrupted(self)


# One for all jobs: making a lock for each would cost more than it is ever waited for.
_making_context: Final = threading.Lock()


class Leases:
    """All jobs held; written by the loop, read by the heartbeat thread too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[str, int], Held] = {}
        # Extended before the loop has heard of them, and when that was asked for.
        self._unheard: dict[tuple[str, int], float] = {}
        # When the loop last came by (monotonic); before it has, nobody can tell that it does not.
        self.looked_at = math.inf

    def __len__(self) -> int:
        return len(self._held)

    def add(self, batch: Iterable[Held]) -> None:
        """Hold what a claim has brought: there is one at a time, so nothing unheard of is left after it."""
        added = {held.key: held for held in batch}
        with self._lock:
            unheard, self._unheard = self._unheard, {}
            # Before the heartbeat sees them, which may extend them further.
            for key, asked_at in unheard.items():
                if key in added:
                    added[key].extended(asked_at=asked_at)
            self._held.update(added)

    def remove(self, batch: Iterable[Held]) -> None:
        with self._lock:
            for held in batch:
                self._held.pop(held.key, None)

    def get(self, key: tuple[str, int]) -> Held | None:
        with self._lock:
            return self._held.get(key)

    def all(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def extended(self, asked: Sequence[Held], still_held: set[str], *, asked_at: float) -> None:
        """Take in the answer to a heartbeat sent at `asked_at`: what is not in `still_held` is lost."""
        for held in asked:
            if held.job.id in still_held:
                held.extended(asked_at=asked_at)
        self.checked(asked, still_held)

    def extended_unheard(self, keys: Iterable[tuple[str, int]], *, asked_at: float) -> None:
        """Take in that leases of a claim whose answer still waits for the loop have been extended."""
        with self._lock:
            for key in keys:
                if (held := self._held.get(key)) is None:
                    self._unheard[key] = asked_at
                else:
                    # By the one thread that does so.
                    held.extended(asked_at=asked_at)

    def checked(self, asked: Iterable[Held], still_held: set[str]) -> None:
        """Interrupt the handlers of jobs whose lease is gone."""
        for held in asked:
            if held.job.id in still_held or held.sending:
                continue
            with self._lock:
                # Finished by ourselves between the question and the answer: no loss.
                gone = held.key not in self._held
            if not gone and not held.lost:
                held.interrupt(Interruption.LEASE_LOST)

    async def fence(self, *, on_fenced: Callable[[Held], None], clock: Callable[[], float]) -> None:
        """Interrupt, for ever, each handler whose lease may have passed to another worker.

        On the loop and not in the heartbeat thread, which may itself hang in a request to a dead database.
        """
        while True:
            self.looked_at = now = clock()
            for held in self.all():
                if held.interruption is None and now > held.trusted_until:
                    held.interrupt(Interruption.FENCED)
                    on_fenced(held)
            await asyncio.sleep(FENCE_SECONDS)
