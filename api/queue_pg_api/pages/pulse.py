"""What has changed, for all who watch the console: one look at the database for all of them, now and then.

A viewer names topics (`jobs`, `queues`, `job:<id>`; all are in stream.py) and is told which of them have changed; it
then fetches what it shows of them. Nobody watching, nobody looks. Looks that take long are taken less often, so that
watching a big queue takes a twentieth of the time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from queue_pg.errors import QueuePgError, TooSlow

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.5
# After a look of a second comes a rest of twenty.
REST = 20
FAILURE_SECONDS = 2.0
SLOW_SECONDS = 30.0
MAX_VIEWERS = 200

Look = Callable[[Collection[str]], Awaitable[Mapping[str, str]]]


class Rest:
    """How long to rest after each look, by the time it took.

    One slow look may be chance: a connection that was opened for it, a machine that had other things to do. After a
    second one in a row it is the queue that is big.
    """

    def __init__(self) -> None:
        self._before = 0.0

    def after(self, took: float) -> float:
        rest = REST * min(took, self._before)
        self._before = took
        return rest


class TooManyViewers(Exception):
    """There are MAX_VIEWERS already."""


class Viewer:
    """One open page: what it watches, and what of it has changed since it was told last."""

    def __init__(self, topics: frozenset[str]) -> None:
        self.topics = topics
        self.changed: set[str] = set()
        # Set once its topics have been looked at: from then on no change is missed.
        self.ready = asyncio.Event()
        self.woken = asyncio.Event()

    async def wait(self, timeout: float, until: asyncio.Event) -> list[str]:
        """Return the topics that have changed since the last call, waiting for the first of them."""
        await wait_any(timeout, self.woken, until)
        self.woken.clear()
        changed, self.changed = sorted(self.changed), set()
        return changed


class Pulse:
    """The viewers of one process, and the task that looks for them; used from one event loop."""

    def __init__(self, look: Look, stopping: asyncio.Event) -> None:
        self._look = look
        self._stopping = stopping
        self._viewers: set[Viewer] = set()
        self._seen: dict[str, str | None] = {}
        self._kicked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._rest = Rest()

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    def enter(self, topics: Collection[str]) -> Viewer:
        """Begin to watch the topics, until `leave`. Raises TooManyViewers."""
        if len(self._viewers) >= MAX_VIEWERS:
            raise TooManyViewers
        viewer = Viewer(frozenset(topics))
        self._viewers.add(viewer)
        self.kick()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """End watching; when nobody is left, the task ends too."""
        self._viewers.discard(viewer)
        if not self._viewers:
            self.kick()

    def kick(self) -> None:
        """Look now: something was changed here, or somebody new watches."""
        self._kicked.set()

    async def close(self) -> None:
        """End the task; the viewers' streams end by themselves when the service stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._viewers and not self._stopping.is_set():
            self._kicked.clear()
            began = time.monotonic()
            pause = await self._look_once()
            rest = self._rest.after(time.monotonic() - began)
            await wait_any(max(pause, rest), self._kicked, self._stopping)
        self._seen.clear()

    async def _look_once(self) -> float:
        viewers = list(self._viewers)
        topics = frozenset[str]().union(*(viewer.topics for viewer in viewers))
        try:
            found = await self._look(topics)
        except TooSlow:
            # The pages look by themselves once in a while.
            for viewer in viewers:
                viewer.ready.set()
            return SLOW_SECONDS
        except QueuePgError:
            # Each page finds out by itself and says so; when the database is back, everything counts as changed.
            self._tell(viewers, topics)
            self._seen = dict.fromkeys(topics, "")
            return FAILURE_SECONDS
        except Exception:
            logger.exception("The look for the console's viewers failed; it is taken again in %g s", FAILURE_SECONDS)
            return FAILURE_SECONDS
        now = {topic: found.get(topic) for topic in topics}
        self._tell(viewers, {topic for topic in topics if topic in self._seen and self._seen[topic] != now[topic]})
        # Topics that nobody watches any more are forgotten with the assignment.
        self._seen = now
        for viewer in viewers:
            viewer.ready.set()
        return INTERVAL_SECONDS

    @staticmethod
    def _tell(viewers: Collection[Viewer], changed: Collection[str]) -> None:
        for viewer in viewers:
            news = viewer.topics.intersection(changed)
            if news:
                viewer.changed |= news
                viewer.woken.set()


async def wait_any(timeout: float, *events: asyncio.Event) -> None:
    """Wait until one of the events is set, at most `timeout` seconds."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
