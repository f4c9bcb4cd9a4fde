"""Transitions of all jobs, live, for those who follow topics.

While anybody does, Postgres is asked to send each transition (functions/following.sql); there is no list that could be
read later, so who comes hears what happens from then on. Each observer has a bounded line; one that does not keep up is
cut off, and the others hear on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from urllib.parse import unquote
from uuid import UUID, uuid4

from queue_pg.errors import QueuePgError
from queue_pg.wakeup import TRANSITIONS, Wakeups
from queue_pg_api.errors import RETRY_AFTER_SECONDS, ApiError, invalid

logger = logging.getLogger(__name__)

MAX_LINE: Final = 1_000
MAX_TOPICS: Final = 100
MAX_TOPIC_CHARS: Final = 2_500  # a name of 200 characters, each percent-encoded
RENEW_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 0.05
START_SECONDS: Final = 3.0

Topic = tuple[str, str]


def parse_topics(texts: Iterable[str]) -> dict[Topic, str]:
    """Read topics: jobs, jobs/queue/<queue>, jobs/kind/<kind>, jobs/<id>; names are percent-encoded."""
    found: dict[Topic, str] = {}
    for text in texts:
        if len(text) > MAX_TOPIC_CHARS:
            raise invalid("topics", f"a topic may have {MAX_TOPIC_CHARS:,} characters")
        match text.strip().split("/"):
            case ["jobs"]:
                found["all", ""] = "jobs"
            case ["jobs", ("queue" | "kind") as what, name] if name:
                found[what, unquote(name)] = text.strip()
            case ["jobs", job_id]:
                try:
                    found["id", str(UUID(job_id))] = text.strip()
                except ValueError:
                    raise _unknown(text) from None
            case _:
                raise _unknown(text)
    if len(found) > MAX_TOPICS:
        raise invalid("topics", f"are more than {MAX_TOPICS}")
    return found


def _unknown(text: str) -> ApiError:
    known = "jobs, jobs/queue/<queue>, jobs/kind/<kind> or jobs/<id>"
    return invalid("topics", f"{text[:60]!r} is no topic; there are {known}")


class Observer:
    """One who follows topics. `lagging`: its line was full, and it has missed something."""

    def __init__(self, org: str) -> None:
        self.org = org
        self.topics: dict[Topic, str] = {}
        # From when on it hears: what it missed before is no gap.
        self.active = False
        self.lagging = False
        self._line: deque[str] = deque()
        self._come = asyncio.Event()

    def hear(self, message: str) -> None:
        if not self.active:
            return
        if len(self._line) >= MAX_LINE:
            self.lagging = True
        else:
            self._line.append(message)
        self._come.set()

    async def next(self) -> str | None:
        """Wait for the next message; None: it has been too slow."""
        while not self._line and not self.lagging:
            self._come.clear()
            await self._come.wait()
        return None if self.lagging else self._line.popleft()


class Observing:
    """The observers of one process, fed by its listening connection; used from one event loop."""

    def __init__(
        self,
        wakeups: Wakeups,
        *,
        observe: Callable[[str], Awaitable[bool]],
        unobserve: Callable[[str], Awaitable[None]],
    ) -> None:
        self._wakeups = wakeups
        self._observe = observe
        self._unobserve = unobserve
        self._observers: set[Observer] = set()
        self._keeping: asyncio.Task[None] | None = None
        self._observed = asyncio.Event()

    def start(self) -> None:
        loop = asyncio.get_running_loop()

        def heard(payload: str | None) -> None:
            if self._observers:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._heard, payload)

        self._wakeups.tap(TRANSITIONS, heard)

    @asynccontextmanager
    async def observer(self, org: str, topics: dict[Topic, str]) -> AsyncGenerator[Observer]:
        """Have an observer hear of what happens from now on. Raises ApiError when notifications do not get through."""
        observer = Observer(org)
        observer.topics = topics
        self._observers.add(observer)
        try:
            if self._keeping is None or self._keeping.done():
                self._observed.clear()
                self._keeping = asyncio.create_task(self._keep())
            try:
                async with asyncio.timeout(START_SECONDS):
                    await self._observed.wait()
            except TimeoutError:
                raise ApiError(
                    503,
                    "no_notifications",
                    "Notifications do not get through from the database at present.",
                    headers={"retry-after": str(RETRY_AFTER_SECONDS)},
                ) from None
            observer.active = True
            yield observer
        finally:
            self._observers.discard(observer)

    async def close(self) -> None:
        """Let Postgres send nothing more."""
        if self._keeping is not None:
            self._observers.clear()
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

    async def _keep(self) -> None:
        """Ask for transitions as long as there are observers, and take that back at their end."""
        # Its own name: while this takes its observation back, the next may have begun to ask.
        name = f"api {uuid4()}"
        try:
            while self._observers:
                observed = False
                if self._wakeups.listening:
                    with suppress(QueuePgError):
                        observed = await self._observe(name)
                if observed:
                    self._observed.set()
                await asyncio.sleep(RENEW_SECONDS if observed else RETRY_SECONDS)
        finally:
            self._keeping = None
            try:
                await asyncio.shield(self._unobserve(name))
            except QueuePgError as error:
                logger.debug("Could not take back the observation: %s", error.code)

    def _heard(self, payload: str | None) -> None:
        if payload is None:
            for observer in self._observers:
                observer.hear('{"type":"gap"}')
            return
        told: dict[str, Any] = json.loads(payload)
        keys: set[Topic] = {("all", ""), ("queue", told["queue"]), ("kind", told["kind"]), ("id", told["id"])}
        org = told["org"]
        for observer in self._observers:
            if observer.org == org and not keys.isdisjoint(observer.topics):
                observer.hear(payload)
