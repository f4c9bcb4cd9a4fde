"""A job's events, for readers of a Queue: one page, all of them as they come, the log, and the attempts they tell of.

`reading_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from queue_pg import arguments, rows, store
from queue_pg.attempt_model import AttemptPage
from queue_pg.errors import JobNotFound
from queue_pg.feed import Feed, Following
from queue_pg.models import EventPage, EventsRead, JobEvent, LogPage
from queue_pg.wakeup import Wakeups


class AsyncReading(ABC):
    """What Queue inherits for readers of events."""

    org: str | None
    wakeups: Wakeups
    _feed: Feed | None

    @abstractmethod
    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Lend a connection."""

    async def events(self, job_id: UUID | str, *, after: int = 0) -> AsyncGenerator[JobEvent]:
        """Give the events of a job, those that are there and then each as it comes, until the job's last one.

        The list begins with number 1 and never changes: who was away goes on with `after` the last number seen. An
        outage that begins while reading is waited out. Raises JobNotFound.
        """
        with self.follow(job_id, after=after) as following:
            while events := await following.more():
                for event in events:
                    yield rows.event(event)

    def follow(self, job_id: UUID | str, *, after: int = 0) -> Following:
        """Follow a job's events with time-outs, page by page; `events` is easier."""
        known, number = arguments.job_id(job_id), arguments.event_number("after", after)
        if self._feed is None:
            raise RuntimeError("The Queue is not open: use `async with Queue(...)`, or call `open()` first.")
        return self._feed.join(known, number)

    async def events_page(self, job_id: UUID | str, *, after: int = 0, limit: int = 1000) -> EventPage:
        """Return the events of a job that are there now, at most `limit` after a number. Raises JobNotFound."""
        read = await self.events_read(job_id, after=after, limit=limit)
        return EventPage(events=[rows.event(event) for event in read.events], state=read.state, last_seq=read.last_seq)

    async def events_read(self, job_id: UUID | str, *, after: int = 0, limit: int = 1000) -> EventsRead:
        """Return what `events_page` does, the events' data as JSON text. Raises JobNotFound."""
        known, number = arguments.job_id(job_id), arguments.event_number("after", after)
        arguments.page_size(limit)
        async with self.connection() as conn:
            [read] = await store.read_events(conn, [(known, number)], max_events=limit)
        if read is None or not self._may_see(read):
            raise JobNotFound(known)
        return read

    async def logs(
        self, job_id: UUID | str, *, from_seq: int = 1, limit: int = 100, stream: str | None = None
    ) -> LogPage:
        """Return log lines of a job from a number on, of one stream or of all. Raises JobNotFound."""
        known, number = arguments.job_id(job_id), arguments.event_number("from_seq", from_seq)
        arguments.page_size(limit)
        arguments.check_filters(stream=stream)
        await self.events_page(known, after=arguments.MAX_EVENT_NUMBER, limit=1)
        async with self.connection() as conn:
            lines = await store.logs(conn, known, from_seq=number, limit=limit + 1, stream=stream)
        return LogPage(lines=lines[:limit], next_seq=lines[limit].seq if len(lines) > limit else None)

    async def attempts(self, job_id: UUID | str, *, after: int = 0, limit: int = 100) -> AttemptPage:
        """Return the attempts of a job, oldest first, those that started after an event number. Raises JobNotFound.

        A page ends early when the errors in it are large; `next_after` says whether there is another one.
        """
        known, number = arguments.job_id(job_id), arguments.event_number("after", after)
        arguments.page_size(limit)
        async with self.connection() as conn:
            found = await store.attempts(conn, known, after=number, limit=limit, org=self.org)
        if found is None:
            raise JobNotFound(known)
        return found

    # --- for Feed -----------------------------------------------------------------------------------------------------

    def _open_feed(self) -> Feed:
        return Feed(follow=self._mark_followed, read=self._read_events, wakeups=self.wakeups)

    async def _mark_followed(self, ids: Sequence[UUID]) -> None:
        async with self.connection() as conn:
            await store.follow(conn, ids)

    async def _read_events(self, places: Sequence[tuple[UUID, int]]) -> list[EventsRead | None]:
        async with self.connection() as conn:
            found = await store.read_events(conn, places)
        return [read if read is not None and self._may_see(read) else None for read in found]

    def _may_see(self, read: EventsRead) -> bool:
        return self.org is None or read.org == self.org
