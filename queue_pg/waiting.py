"""Waiting for jobs to end: everybody who waits on one Queue shares one loop, and one statement asks for all of them.

The loop is asleep until a notification names a waited job, somebody new waits, or the fallback interval passes.
`waiting_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from queue_pg.concurrency import AsyncBackground, AsyncSignal
from queue_pg.errors import DatabaseUnavailable, JobNotFound, QueuePgError
from queue_pg.models import FINISHED_STATES, Job
from queue_pg.surroundings import REAL, Surroundings
from queue_pg.wakeup import RESULT, Subscription, Wakeups

RECHECK_SECONDS: Final = 5.0  # with notifications: in case one was lost
POLL_SECONDS: Final = (0.05, 1.0)  # without: from the first to the last pause
_FETCH_AT_ONCE: Final = 100

States = Callable[[list[UUID]], Awaitable[dict[UUID, str]]]
Jobs = Callable[[list[UUID]], Awaitable[list[Job]]]


@dataclass(slots=True, eq=False)
class _Waiter:
    signal: AsyncSignal
    job: Job | None = None
    error: Exception | None = None
    seen: bool = False
    state: str = "unknown"
    subscription: Subscription | None = field(default=None)


class Waiting:
    """`watch` and `states` tell the states of ids, `watch` asking for notifications too; `jobs` reads finished ones."""

    def __init__(
        self, *, watch: States, states: States, jobs: Jobs, wakeups: Wakeups, surroundings: Surroundings = REAL
    ) -> None:
        self._watch = watch
        self._states = states
        self._jobs = jobs
        self._wakeups = wakeups
        self._surroundings = surroundings
        self._lock = threading.Lock()
        self._waiters: dict[UUID, set[_Waiter]] = {}
        self._due: set[UUID] = set()
        self._all_due_at = 0.0
        self._pause = POLL_SECONDS[0]
        self._kick: AsyncSignal | None = None
        self._loop: AsyncBackground | None = None
        self._closed = False

    async def wait(self, job_id: UUID, timeout_seconds: float | None) -> tuple[Job | None, str]:
        """Return the finished job, or None when the time is over, and the last state seen.

        An outage of the database that begins while waiting is waited out; one at the start is raised.
        """
        waiter = _Waiter(AsyncSignal())
        self._join(job_id, waiter)
        try:
            await waiter.signal.wait(timeout_seconds)
        finally:
            self._leave(job_id, waiter)
        if waiter.error is not None:
            raise waiter.error
        if waiter.job is None and (not waiter.seen or waiter.state in FINISHED_STATES):
            return await self._look(job_id)
        return waiter.job, waiter.state

    async def _look(self, job_id: UUID) -> tuple[Job | None, str]:
        """Look once, for who had no time to wait for the loop: a timeout of 0 asks whether the job has ended.

        Nor had one whose time was over between the loop's two statements, when the job is known to have ended.
        """
        states = await self._states([job_id])
        if job_id not in states:
            raise JobNotFound(job_id)
        jobs = await self._jobs([job_id]) if states[job_id] in FINISHED_STATES else []
        return next((job for job in jobs if job.finished), None), states[job_id]

    async def close(self) -> None:
        """End the loop and every wait."""
        with self._lock:
            self._closed = True
            loop, kick = self._loop, self._kick
        if loop is not None and kick is not None:
            kick.set()
            await loop.join()

    # --- the callers' side --------------------------------------------------------------------------------------------

    def _join(self, job_id: UUID, waiter: _Waiter) -> None:
        self._wakeups.start()
        if self._wakeups.enabled:
            waiter.subscription = self._wakeups.subscribe(RESULT, str(job_id), callback=lambda: self._make_due(job_id))
        with self._lock:
            if self._closed:
                raise DatabaseUnavailable("The Queue is closed.", hint="Wait for jobs before you close it.")
            self._waiters.setdefault(job_id, set()).add(waiter)
            self._due.add(job_id)
            self._pause = POLL_SECONDS[0]
            if self._loop is None or not self._loop.running:
                self._kick = AsyncSignal()
                self._loop = AsyncBackground(self._run, "queue-pg waiting")
            kick = self._kick
        if kick is not None:
            kick.set()

    def _leave(self, job_id: UUID, waiter: _Waiter) -> None:
        if waiter.subscription is not None:
            waiter.subscription.close()
        with self._lock:
            group = self._waiters.get(job_id, set())
            group.discard(waiter)
            if not group:
                self._waiters.pop(job_id, None)
                self._due.discard(job_id)

    def _make_due(self, job_id: UUID) -> None:
        """Called in the listening thread, for a notification and after every reconnect."""
        with self._lock:
            self._due.add(job_id)
            kick = self._kick
        if kick is not None:
            kick.set()

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        outage_pause = POLL_SECONDS[0]
        while True:
            with self._lock:
                kick = self._kick
                if self._closed or kick is None:
                    self._resolve_all(QueuePgError("The Queue was closed while waiting."))
                    return
                ids = self._take_due()
            try:
                await self._check(ids)
                outage_pause = POLL_SECONDS[0]
                pause = self._next_pause()
            except Exception as error:
                self._after_error(ids, error)
                outage_pause = min(outage_pause * 2, RECHECK_SECONDS)
                pause = outage_pause * self._surroundings.uniform(0.5, 1.0)
            await kick.wait(pause)

    def _take_due(self) -> list[UUID]:
        if self._surroundings.monotonic() >= self._all_due_at:
            self._due.update(self._waiters)
            interval = RECHECK_SECONDS if self._wakeups.listening else self._pause
            self._pause = min(self._pause * 1.5, POLL_SECONDS[1])
            self._all_due_at = self._surroundings.monotonic() + interval * self._surroundings.uniform(0.8, 1.2)
        ids = [job_id for job_id in self._due if job_id in self._waiters]
        self._due.clear()
        return ids

    def _next_pause(self) -> float | None:
        with self._lock:
            if not self._waiters:
                return None
            now = self._surroundings.monotonic()
            if not self._wakeups.listening:
                self._all_due_at = min(self._all_due_at, now + self._pause)
            return POLL_SECONDS[0] if self._due else max(self._all_due_at - now, 0)

    async def _check(self, ids: list[UUID]) -> None:
        if not ids:
            return
        states = await (self._watch(ids) if self._wakeups.enabled else self._states(ids))
        ended = [job_id for job_id in ids if states.get(job_id) in FINISHED_STATES]
        with self._lock:
            for job_id in ids:
                for waiter in self._waiters.get(job_id, ()):
                    waiter.seen = True
                    waiter.state = states.get(job_id, waiter.state)
            for job_id in ids:
                if job_id not in states:
                    self._resolve(job_id, error=JobNotFound(job_id))
        for start in range(0, len(ended), _FETCH_AT_ONCE):
            jobs = await self._jobs(ended[start : start + _FETCH_AT_ONCE])
            with self._lock:
                self._settle(ended[start : start + _FETCH_AT_ONCE], jobs)

    def _settle(self, ids: Iterable[UUID], jobs: Iterable[Job]) -> None:
        found = {job.id: job for job in jobs}
        for job_id in ids:
            job = found.get(job_id)
            if job is None:
                self._resolve(job_id, error=JobNotFound(job_id))
            elif job.finished:
                self._resolve(job_id, job=job)
            else:
                # Somebody retried it between the two statements: it is watched anew.
                self._due.add(job_id)

    def _resolve(self, job_id: UUID, *, job: Job | None = None, error: Exception | None = None) -> None:
        for waiter in self._waiters.pop(job_id, set()):
            waiter.job, waiter.error = job, error
            waiter.state = job.state if job is not None else waiter.state
            waiter.signal.set()

    def _resolve_all(self, error: QueuePgError) -> None:
        for job_id in list(self._waiters):
            self._resolve(job_id, error=error)

    def _after_error(self, ids: list[UUID], error: Exception) -> None:
        """Raise to those who have just come; those who waited before the outage go on waiting."""
        with self._lock:
            for job_id in ids:
                group = self._waiters.get(job_id, set())
                passing = isinstance(error, DatabaseUnavailable)
                for waiter in [waiter for waiter in group if not waiter.seen or not passing]:
                    group.discard(waiter)
                    waiter.error = error
                    waiter.signal.set()
                if group:
                    self._due.add(job_id)
                else:
                    self._waiters.pop(job_id, None)
