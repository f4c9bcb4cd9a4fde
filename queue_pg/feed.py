"""Following the events of jobs: everybody who follows on one Queue shares one loop, and one statement reads for many.

A follower is read for when it asks for more and not before, so each holds one page of events at most, a slow one keeps
nobody up, and what it has not taken yet stays where it is. Numbers of events never change: a follower that was away
goes on after the last one it has seen, here or at another process.

The loop is asleep until a notification names a followed job, somebody asks, or the fallback interval passes.
`feed_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

from queue_pg.concurrency import AsyncBackground, AsyncSignal
from queue_pg.errors import DatabaseUnavailable, JobNotFound
from queue_pg.models import EventsRead, StoredEvent
from queue_pg.wakeup import EVENTS, Subscription, Wakeups

RECHECK_SECONDS: Final = 10.0  # with notifications: in case one was lost
POLL_SECONDS: Final = (0.05, 1.0)  # without: from the first to the last pause
READ_AT_ONCE: Final = 100

Follow = Callable[[list[UUID]], Awaitable[None]]
Read = Callable[[list[tuple[UUID, int]]], Awaitable[list[EventsRead | None]]]


@dataclass(slots=True, eq=False)
class _Follower:
    """`stale`: there may be events after `after`. `asks`: its reader waits for them."""

    job_id: UUID
    after: int
    signal: AsyncSignal
    subscription: Subscription | None = None
    stale: bool = True
    asks: bool = False
    followed: bool = False
    seen: bool = False
    ended: bool = False
    state: str = "unknown"
    events: list[StoredEvent] | None = None
    error: Exception | None = None


class Following:
    """One reader's place in the events of a job. Close it, or use it as a context manager."""

    def __init__(self, owner: Feed, follower: _Follower) -> None:
        self._feed = owner
        self._follower = follower

    @property
    def after(self) -> int:
        """The number of the last event that was given out."""
        return self._follower.after

    @property
    def state(self) -> str:
        """The job's state when it was looked at last."""
        return self._follower.state

    async def more(self, timeout_seconds: float | None = None) -> list[StoredEvent] | None:
        """Wait for the next events; empty: the job has ended and there are no more; None: the time is over.

        An outage of the database that begins after the first look is waited out. Raises JobNotFound.
        """
        return await self._feed.more(self._follower, timeout_seconds)

    def interrupt(self) -> None:
        """End the wait in `more`, which then returns as if the time were over."""
        self._follower.signal.set()

    def close(self) -> None:
        """Let go of the job; twice is fine."""
        self._feed.leave(self._follower)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Feed:
    """`follow` asks for notifications about jobs, `read` reads the events of each after a number."""

    def __init__(self, *, follow: Follow, read: Read, wakeups: Wakeups) -> None:
        self._follow = follow
        self._read = read
        self._wakeups = wakeups
        self._lock = threading.Lock()
        self._followers: set[_Follower] = set()
        self._due: set[_Follower] = set()
        self._all_due_at = 0.0
        self._pause = POLL_SECONDS[0]
        self._kick: AsyncSignal | None = None
        self._loop: AsyncBackground | None = None
        self._closed = False

    def join(self, job_id: UUID, after: int) -> Following:
        """Follow a job from the event after the given number on."""
        self._wakeups.start()
        follower = _Follower(job_id, after, AsyncSignal())
        if self._wakeups.enabled:
            follower.subscription = self._wakeups.subscribe(
                EVENTS, str(job_id), callback=lambda: self._make_stale(follower)
            )
        with self._lock:
            if self._closed:
                raise DatabaseUnavailable("The Queue is closed.", hint="Read events before you close it.")
            self._followers.add(follower)
            self._pause = POLL_SECONDS[0]
            if self._loop is None or not self._loop.running:
                self._kick = AsyncSignal()
                self._loop = AsyncBackground(self._run, "queue-pg events")
        return Following(self, follower)

    def leave(self, follower: _Follower) -> None:
        if follower.subscription is not None:
            follower.subscription.close()
        with self._lock:
            self._followers.discard(follower)
            self._due.discard(follower)

    async def more(self, follower: _Follower, timeout_seconds: float | None) -> list[StoredEvent] | None:
        """See Following.more."""
        with self._lock:
            if self._has_news(follower):
                return self._take_news(follower)
            follower.asks = True
            if follower.stale:
                self._due.add(follower)
            kick = self._kick
        if kick is not None:
            kick.set()
        try:
            await follower.signal.wait(timeout_seconds)
        finally:
            with self._lock:
                follower.asks = False
        with self._lock:
            return self._take_news(follower) if self._has_news(follower) else None

    async def close(self) -> None:
        """End the loop and every wait."""
        with self._lock:
            self._closed = True
            loop, kick = self._loop, self._kick
        if loop is not None and kick is not None:
            kick.set()
            await loop.join()

    @staticmethod
    def _has_news(follower: _Follower) -> bool:
        return follower.events is not None or follower.ended or follower.error is not None

    @staticmethod
    def _take_news(follower: _Follower) -> list[StoredEvent]:
        events, follower.events = follower.events, None
        if events is None and follower.error is not None:
            raise follower.error
        return events or []

    def _make_stale(self, follower: _Follower) -> None:
        """Called in the listening thread, for a notification and after every reconnect."""
        with self._lock:
            follower.stale = True
            if not follower.asks:
                return
            self._due.add(follower)
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
                    for follower in self._followers:
                        self._fail(follower, DatabaseUnavailable("The Queue was closed while its events were read."))
                    return
                batch = self._take_due()
            try:
                await self._serve(batch)
                outage_pause = POLL_SECONDS[0]
                pause = self._next_pause()
            except Exception as error:
                self._after_error(batch, error)
                outage_pause = min(outage_pause * 2, RECHECK_SECONDS / 2)
                pause = outage_pause * random.uniform(0.5, 1.0)
            await kick.wait(pause)

    def _take_due(self) -> list[_Follower]:
        if time.monotonic() >= self._all_due_at:
            for follower in self._followers:
                follower.stale = True
                if follower.asks:
                    self._due.add(follower)
            interval = RECHECK_SECONDS if self._wakeups.listening else self._pause
            self._pause = min(self._pause * 1.5, POLL_SECONDS[1])
            self._all_due_at = time.monotonic() + interval * random.uniform(0.8, 1.2)
        # One that has a page has not taken it yet, and another one would take its place.
        batch = [each for each in self._due if each.asks and not self._has_news(each)][:READ_AT_ONCE]
        self._due.difference_update(batch)
        return batch

    def _next_pause(self) -> float | None:
        with self._lock:
            if not self._followers:
                return None
            if self._due:
                return 0
            now = time.monotonic()
            if not self._wakeups.listening:
                self._all_due_at = min(self._all_due_at, now + self._pause)
            return max(self._all_due_at - now, 0)

    async def _serve(self, batch: list[_Follower]) -> None:
        if not batch:
            return
        for follower in batch:
            # Before the look: what comes during it asks for another one.
            follower.stale = False
        if self._wakeups.enabled and (unmarked := [each for each in batch if not each.followed]):
            await self._follow(list({each.job_id for each in unmarked}))
            for each in unmarked:
                each.followed = True
        places = list({(each.job_id, each.after) for each in batch})
        read = dict(zip(places, await self._read(places), strict=True))
        with self._lock:
            for follower in batch:
                self._deliver(follower, read[follower.job_id, follower.after])

    def _deliver(self, follower: _Follower, read: EventsRead | None) -> None:
        if read is None:
            self._fail(follower, JobNotFound(follower.job_id))
            return
        follower.seen = True
        follower.state = read.state
        if read.events:
            follower.events = read.events
            follower.after = read.events[-1].seq
        if follower.after < read.last_seq:
            follower.stale = True
        elif read.state.finished:
            follower.ended = True
        elif self._wakeups.enabled and not read.followed:
            # Put back by somebody after it had ended: a new row, without the mark.
            follower.followed = False
            follower.stale = True
        if self._has_news(follower):
            follower.asks = False
            follower.signal.set()
        elif follower.stale:
            self._due.add(follower)

    def _fail(self, follower: _Follower, error: Exception) -> None:
        follower.error = error
        follower.signal.set()

    def _after_error(self, batch: list[_Follower], error: Exception) -> None:
        """Raise to those who have just come; those who followed before the outage go on waiting."""
        passing = isinstance(error, DatabaseUnavailable)
        with self._lock:
            for follower in batch:
                if follower.seen and passing:
                    follower.stale = True
                    self._due.add(follower)
                else:
                    self._fail(follower, error)
