"""The jobs this process holds, and until when it may believe so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from uuid import UUID

from queue_pg.models import ClaimedJob

FENCE_SECONDS = 0.25


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
    """

    __slots__ = (
        "_interrupted",
        "_last_end",
        "_loop",
        "cancelled",
        "interruption",
        "job",
        "lost",
        "sending",
        "trusted_until",
    )

    def __init__(self, job: ClaimedJob, *, asked_at: float) -> None:
        self.job = job
        self.trusted_until = asked_at + job.lease_seconds
        # queue_pg.heartbeat extends no lease beyond the attempt's timeout plus one lease.
        self._last_end = asked_at + job.timeout_seconds + job.lease_seconds
        # What handlers in threads look at; current_job().cancelled.
        self.cancelled = threading.Event()
        self.interruption: Interruption | None = None
        self.lost = False
        # True while a finish with this lease is under way: its reply, not a heartbeat, then tells whether it counted.
        self.sending = False
        self._loop = asyncio.get_running_loop()
        self._interrupted = asyncio.Event()

    @property
    def key(self) -> tuple[UUID, int]:
        return (self.job.id, self.job.lease_token)

    def extended(self, *, asked_at: float) -> None:
        """Take in that a heartbeat sent at `asked_at` (monotonic) has extended the lease."""
        self.trusted_until = min(asked_at + self.job.lease_seconds, self._last_end)

    def interrupt(self, reason: Interruption) -> None:
        """Stop the handler; the first reason counts. May be called from any thread."""
        if reason is Interruption.LEASE_LOST:
            self.lost = True
        if self.interruption is None:
            self.interruption = reason
        self.cancelled.set()
        # A handler that blocks the loop sees `cancelled` at once and is cancelled when it lets go of the loop.
        try:
            self._loop.call_soon_threadsafe(self._interrupted.set)
        except RuntimeError:
            return  # the loop is closed: the worker has ended

    async def interrupted(self) -> None:
        await self._interrupted.wait()


class Leases:
    """All jobs held; written by the loop, read by the heartbeat thread too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[UUID, int], Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held) -> None:
        with self._lock:
            self._held[held.key] = held

    def remove(self, held: Held) -> None:
        with self._lock:
            self._held.pop(held.key, None)

    def all(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def extended(self, asked: Iterable[Held], still_held: set[UUID], *, asked_at: float) -> None:
        """Take in the answer to a heartbeat sent at `asked_at`: what is not in `still_held` is lost."""
        for held in asked:
            if held.job.id in still_held:
                held.extended(asked_at=asked_at)
        self.checked(asked, still_held)

    def checked(self, asked: Iterable[Held], still_held: set[UUID]) -> None:
        """Interrupt the handlers of jobs whose lease is gone."""
        for held in asked:
            if held.job.id in still_held or held.sending:
                continue
            with self._lock:
                # Finished by ourselves between the question and the answer: no loss.
                gone = held.key not in self._held
            if not gone and not held.lost:
                held.interrupt(Interruption.LEASE_LOST)

    async def fence(self, *, on_fenced: Callable[[Held], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Interrupt, for ever, each handler whose lease may have passed to another worker.

        On the loop and not in the heartbeat thread, which may itself hang in a request to a dead database.
        """
        while True:
            for held in self.all():
                if held.interruption is None and clock() > held.trusted_until:
                    held.interrupt(Interruption.FENCED)
                    on_fenced(held)
            await asyncio.sleep(FENCE_SECONDS)
