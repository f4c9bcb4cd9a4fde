"""What the console reads of the whole queue, once for all who look: the figures of each queue, and what has changed.

Everything goes through `looking()`: no statement for a page takes longer than LOOK_SECONDS, and all pages together have
a part of the connections, so that a crowd before the console leaves the API its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from queue_pg import batch_store, limit_store, store
from queue_pg.client import Queue
from queue_pg.errors import JobNotFound, TooSlow
from queue_pg.look_plans import look_schedules_mark
from queue_pg.looking import look_family, look_marks, looking, now
from queue_pg.models import QueueStats
from queue_pg_api.pages.pulse import Pulse, Rest

LOOK_SECONDS = 2.0
FRESH_SECONDS = 0.4
CONNECTIONS = 3
# Of the jobs around a job, those it waits for and those that wait for it; more make no picture.
MAX_EDGES = 60
# Of the lists that may be long.
WATCHED = 100
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
        self._rest = Rest()
        self.pulse = Pulse(self._look, stopping)

    async def close(self) -> None:
        await self.pulse.close()

    @asynccontextmanager
    async def looking(self) -> AsyncGenerator[AsyncConnection[Any]]:
        """Lend a connection to read for a page. Raises TooSlow, DatabaseUnavailable."""
        async with self._slots, looking(self._queue, LOOK_SECONDS) as conn:
            yield conn

    async def overview(self) -> Overview:
        """Return the queues, not older than FRESH_SECONDS, or than the rest that follows slow looks."""
        async with self._lock:  # whoever waited for another's look takes its answer
            if self._overview is None or time.monotonic() >= self._fresh_until:
                async with self.looking() as conn:
                    began = time.monotonic()  # having a connection, which may have had to be opened, or to become free
                    self._overview = Overview(await store.queue_stats(conn, org=self._queue.org), await now(conn))
                ended = time.monotonic()
                self._fresh_until = ended + max(FRESH_SECONDS, self._rest.after(ended - began))
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
        async with self.looking() as conn:
            for topic in LISTS.keys() & topics:
                marks[topic] = _digest(await LISTS[topic](conn, self._org))
            if ids := _ids("job", topics):
                found = await look_marks(conn, ids, org=self._org)
                marks |= {f"job:{job_id}": mark for job_id, mark in found.items()}
        for topic in sorted(topics):
            if look := LOOKS_AT_ONE.get(topic.partition(":")[0]):
                # Each by itself: one that takes too long holds up no others, and its page finds out when it looks.
                with suppress(TooSlow):
                    async with self.looking() as conn:
                        marks[topic] = _digest(await look(conn, UUID(topic.partition(":")[2]), self._org))
        return marks

    @property
    def _org(self) -> str:
        return self._queue.org or "default"


def _ids(name: str, topics: Collection[str]) -> list[UUID]:
    return [UUID(topic.partition(":")[2]) for topic in topics if topic.startswith(f"{name}:")]


async def _workers(conn: AsyncConnection[Any], _: str) -> object:
    return await store.workers(conn)


async def _schedules(conn: AsyncConnection[Any], org: str) -> object:
    return await look_schedules_mark(conn, org=org)


async def _batches(conn: AsyncConnection[Any], org: str) -> object:
    return await batch_store.list_batches(conn, limit=WATCHED, org=org)


async def _limits(conn: AsyncConnection[Any], org: str) -> object:
    return await limit_store.limits(conn, org=org, limit=WATCHED)


async def _family(conn: AsyncConnection[Any], job_id: UUID, org: str) -> object:
    try:
        family = await look_family(conn, job_id, org=org, limit=MAX_EDGES)
    except JobNotFound:
        return None
    return family.relatives, family.edges


async def _batch(conn: AsyncConnection[Any], batch_id: UUID, org: str) -> object:
    return await batch_store.get_batch(conn, batch_id, org=org, with_states=False)


LOOKS_AT_ONE = {"family": _family, "batch": _batch}
# What of a list is watched for changes. Of batches and limits the first ones; those behind them change with the jobs.
LISTS = {"workers": _workers, "schedules": _schedules, "batches": _batches, "limits": _limits}


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "replace")).hexdigest()[:16]
