"""Where claims wait: many long-polls, one shared wake-up, and no more claim statements than there are jobs.

Waiters that want the same (organisation, queues, kinds) form a line. When something may have become claimable, the
first in the line tries; only when it was filled up does the next one try. So a thousand idle workers cost one empty
claim for each wake-up, not a thousand, and the one that has waited longest is served first.

A claim that is going to wait arms its queues, so that the next INSERT notifies. A transaction that inserted before that
and commits after it does not, so a line looks once more soon after arming, and at its fallback interval for ever.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

from queue_pg.errors import DatabaseUnavailable, QueuePgError, SchemaError
from queue_pg.models import ClaimedJob
from queue_pg_api.queue_watch import QueueWatch

logger = logging.getLogger(__name__)

# Pause of a line after a round in vain: a storm of wake-ups for other queues must not become one of claims.
ROUND_SPACING_SECONDS = 0.01
# A job that became claimable without a notice (lost connection, notices switched off) is found after this long.
FALLBACK_SECONDS = 1.0
# While notifications arrive, many lines look more seldom: together about four times a second.
LINES_A_FALLBACK = 4
LONGEST_FALLBACK_SECONDS = 5.0
# By then a transaction that was committing while its queue was armed is over.
SECOND_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one worker asks for."""

    org: str
    worker: str
    queues: tuple[str, ...]
    kinds: tuple[str, ...] | None
    max_jobs: int
    lease_seconds: float | None

    @property
    def line(self) -> tuple[str, frozenset[str], frozenset[str] | None]:
        return self.org, frozenset(self.queues), None if self.kinds is None else frozenset(self.kinds)


@dataclass(slots=True, eq=False)
class _Waiter:
    wanted: Wanted
    jobs: asyncio.Future[list[ClaimedJob]]


@dataclass(slots=True, eq=False)
class _Line:
    waiters: deque[_Waiter] = field(default_factory=deque[_Waiter])
    kick: asyncio.Event = field(default_factory=asyncio.Event)
    watching: ExitStack = field(default_factory=ExitStack)
    second_look: asyncio.TimerHandle | None = None
    is_second_look: bool = False


class ClaimRoom:
    """Serves claims of one process; used from one event loop."""

    def __init__(
        self,
        claim: Callable[[Wanted, bool], Awaitable[list[ClaimedJob]]],
        give_back: Callable[[Sequence[ClaimedJob]], Awaitable[None]],
        *,
        watch: QueueWatch | None = None,
        fallback_seconds: float = FALLBACK_SECONDS,
    ) -> None:
        self._claim = claim
        self._watch = watch
        self._give_back = give_back
        self._fallback_seconds = fallback_seconds
        self._lines: dict[object, _Line] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wakes = 0

    @property
    def waiting(self) -> int:
        """Return how many claims wait now."""
        return sum(len(line.waiters) for line in self._lines.values())

    def wake(self) -> None:
        """Say that something may have become claimable, in whichever queue."""
        self._wakes += 1
        for line in self._lines.values():
            line.kick.set()

    async def claim(self, wanted: Wanted, *, wait_seconds: float, until: Sequence[asyncio.Event]) -> list[ClaimedJob]:
        """Claim now, or wait for jobs until `wait_seconds` have passed or one of the events is set."""
        wakes = self._wakes
        woken = asyncio.Event()
        with self._watching(wanted, woken) if wait_seconds > 0 else nullcontext():
            jobs = await self._claim_safely(wanted, arm=wait_seconds > 0 and self._listening)
            if jobs or wait_seconds <= 0 or any(event.is_set() for event in until):
                return jobs
            waiter = _Waiter(wanted, asyncio.get_running_loop().create_future())
            line = self._join(waiter)
        if woken.is_set() or wakes != self._wakes:
            # A job came between the empty claim above and joining the line: nobody else would look for it.
            line.kick.set()
        elif self._listening:
            self._look_again(line)
        ended: list[asyncio.Future[Any]] = [asyncio.ensure_future(event.wait()) for event in until]
        delivered = False
        try:
            await asyncio.wait({waiter.jobs, *ended}, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not waiter.jobs.done():
                return []
            jobs = waiter.jobs.result()
            delivered = True
            return jobs
        finally:
            for task in ended:
                task.cancel()
            if waiter in line.waiters:
                line.waiters.remove(waiter)
            if not line.waiters:
                line.kick.set()  # to end
            if not waiter.jobs.done():
                waiter.jobs.cancel()
            elif not delivered and not waiter.jobs.cancelled() and waiter.jobs.exception() is None:
                # Cancelled in the very moment of being served.
                self._spawn(self._return(waiter.jobs.result()))

    async def give_back(self, jobs: Sequence[ClaimedJob]) -> None:
        """Hand back jobs whose claimer has gone, even when this request is being cancelled."""
        await asyncio.shield(self._spawn(self._return(jobs)))

    async def close(self) -> None:
        """Wait until what is under way has been claimed or handed back."""
        while self._tasks:
            self.wake()
            await asyncio.wait(self._tasks)

    def _join(self, waiter: _Waiter) -> _Line:
        key = waiter.wanted.line
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            line.waiters.append(waiter)
            line.watching.enter_context(self._watching(waiter.wanted, line.kick))
            self._spawn(self._serve(key, line))
        else:
            line.waiters.append(waiter)
        return line

    async def _serve(self, key: object, line: _Line) -> None:
        try:
            while line.waiters:
                try:
                    async with asyncio.timeout(self._pause_seconds()):
                        await line.kick.wait()
                except TimeoutError:
                    pass
                line.kick.clear()
                if not line.waiters:
                    break
                second, line.is_second_look = line.is_second_look, False
                if await self._round(line):
                    continue
                if self._listening and not second:
                    self._look_again(line)
                await asyncio.sleep(ROUND_SPACING_SECONDS)
        finally:
            # No await since the line was seen empty: nobody can have joined it in between.
            del self._lines[key]
            line.watching.close()
            if line.second_look is not None:
                line.second_look.cancel()

    @property
    def _listening(self) -> bool:
        return self._watch is not None and self._watch.listening

    def _watching(self, wanted: Wanted, kick: asyncio.Event) -> AbstractContextManager[None]:
        return nullcontext() if self._watch is None else self._watch.watching(wanted.queues, kick.set)

    def _pause_seconds(self) -> float:
        longest = self._fallback_seconds
        if self._listening and longest < LONGEST_FALLBACK_SECONDS:
            longest = min(longest * max(1.0, len(self._lines) / LINES_A_FALLBACK), LONGEST_FALLBACK_SECONDS)
        return longest * random.uniform(0.75, 1.0)

    def _look_again(self, line: _Line) -> None:
        def look() -> None:
            line.second_look = None
            line.is_second_look = True
            line.kick.set()

        if line.second_look is None:
            line.second_look = asyncio.get_running_loop().call_later(SECOND_LOOK_SECONDS, look)

    async def _round(self, line: _Line) -> bool:
        """Serve the line from its head while there are jobs; return whether anybody was served."""
        served = False
        while line.waiters:
            waiter = line.waiters[0]
            try:
                jobs = await self._claim(waiter.wanted, self._listening)
            except Exception as error:
                self._refuse(line, waiter, error)
                break
            if waiter.jobs.done():  # it left while its claim was under way
                await self._return(jobs)
                continue
            if not jobs:
                break
            line.waiters.remove(waiter)
            waiter.jobs.set_result(jobs)
            served = True
            if len(jobs) < waiter.wanted.max_jobs:
                break
        return served

    def _refuse(self, line: _Line, waiter: _Waiter, error: Exception) -> None:
        # A database that is away concerns all who wait, a bad request only the one who made it.
        everybody = isinstance(error, DatabaseUnavailable | SchemaError)
        for each in list(line.waiters) if everybody else [waiter]:
            if each in line.waiters:
                line.waiters.remove(each)
            if not each.jobs.done():
                each.jobs.set_exception(error)
        line.kick.set()

    async def _claim_safely(self, wanted: Wanted, *, arm: bool) -> list[ClaimedJob]:
        # A claim that is cancelled half-way may have committed: let it end, and hand back what it got.
        task = self._spawn(self._claim(wanted, arm))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._spawn(self._return_from(task))
            raise

    async def _return_from(self, task: asyncio.Task[list[ClaimedJob]]) -> None:
        try:
            jobs = await task
        except QueuePgError:
            return
        await self._return(jobs)

    async def _return(self, jobs: Sequence[ClaimedJob]) -> None:
        if not jobs:
            return
        try:
            await self._give_back(jobs)
        except QueuePgError as error:
            logger.warning("Could not hand back %d claimed jobs (%s); their leases will expire", len(jobs), error.code)
        self.wake()

    def _spawn(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(_as_coroutine(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _as_coroutine(work: Awaitable[Any]) -> Any:
    return await work
