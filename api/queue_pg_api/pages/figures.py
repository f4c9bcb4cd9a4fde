"""What the console reads of the whole queue, once for all who look: the figures of each queue, and what has changed.

Everything goes through `looking()`: no statement for a page takes longer than LOOK_SECONDS, and all pages together have
a part of the connections, so that a crowd before the console leaves the API its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from queue_pg import store
from queue_pg.client import Queue
from queue_pg.looking import look_marks, looking, now
from queue_pg.models import QueueStats
from queue_pg_api.pages.pulse import REST, Pulse

LOOK_SECONDS = 2.0
FRESH_SECONDS = 0.4
CONNECTIONS = 3
COUNTED_STATES = ("scheduled", "waiting", "queued", "running", "completed", "failed", "cancelled")
# Lists change whenever a job changes its state, and then so does a count.
COUNT_TOPICS = frozenset({"jobs", "queues"})


@dataclass(frozen=True, slots=True)
class Overview:
    """The queues as they were at a moment of the database's clock."""

    queues: list[QueueStats]
    at: datetime

    @property
    def totals(self) -> dict[str, int]:
        return {state: sum(getattr(each, state) for each in self.queues) for state in COUNTED_STATES}

    @property
    def mark(self) -> str:
        # Not the age of the oldest: it changes by itself.
        return _digest([astuple(each)[:-1] for each in self.queues])


class Figures:
    """The console's way to the database, one for each process."""

    def __init__(self, queue: Queue, stopping: asyncio.Event) -> None:
        self._queue = queue
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._lock = asyncio.Lock()
        self._overview: Overview | None = None
        self._fresh_until = float("-inf")
        self.pulse = Pulse(self._look, stopping)

    async def close(self) -> None:
        await self.pulse.close()

    @asynccontextmanager
    async def looking(self) -> AsyncGenerator[AsyncConnection[Any]]:
        """Lend a connection to read for a page. Raises TooSlow, DatabaseUnavailable."""
        async with self._slots, looking(self._queue, LOOK_SECONDS) as conn:
            yield conn

    async def overview(self) -> Overview:
        """Return the queues, not older than FRESH_SECONDS, or than the rest that follows a slow look."""
        async with self._lock:  # whoever waited for another's look takes its answer
            if self._overview is None or time.monotonic() >= self._fresh_until:
                began = time.monotonic()
                async with self.looking() as conn:
                    self._overview = Overview(await store.queue_stats(conn, org=self._queue.org), await now(conn))
                ended = time.monotonic()
                self._fresh_until = ended + max(FRESH_SECONDS, (ended - began) * REST)
            return self._overview

    def changed(self) -> None:
        """Forget what was read: somebody has changed something by way of this console."""
        self._fresh_until = float("-inf")
        self.pulse.kick()

    async def _look(self, topics: Collection[str]) -> Mapping[str, str]:
        marks: dict[str, str] = {}
        if COUNT_TOPICS.intersection(topics):
            mark = (await self.overview()).mark
            marks |= dict.fromkeys(COUNT_TOPICS, mark)
        ids = [UUID(topic.removeprefix("job:")) for topic in topics if topic.startswith("job:")]
        async with self.looking() as conn:
            if "workers" in topics:
                marks["workers"] = _digest([astuple(each) for each in await store.workers(conn)])
            if ids:
                found = await look_marks(conn, ids, org=self._queue.org or "default")
                marks |= {f"job:{job_id}": mark for job_id, mark in found.items()}
        return marks


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "replace")).hexdigest()[:16]
