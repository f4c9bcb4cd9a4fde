"""Single submissions that come at the same time, stored in one transaction.

A commit costs about as much for one job as for fifty. While one group is being stored the next gathers; when nothing
is under way a job is stored at once, so waiting for company costs nobody anything. Every submitter hears of its job
after the commit, and only then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row

from queue_pg.errors import DatabaseUnavailable, SubmitError
from queue_pg.statements import statement
from queue_pg.submission import CheckedJob, encode_array
from queue_pg.uuid7 import uuid7_microseconds

MAX_JOBS: Final = 200
MAX_BYTES: Final = 4 * 1024 * 1024
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)

Connect = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """What the database adds to a new job. The limits are those of its kind or of the instance."""

    id: UUID
    created_at: datetime
    max_attempts: int
    timeout: timedelta


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    job: CheckedJob
    stored: asyncio.Future[StoredJob]


class Gathering:
    """Stores jobs without unique keys, in groups; used from one event loop.

    `connect` lends a connection and raises errors of queue_pg.errors (Queue.connection).
    Jobs with keys, or of the cache, are stored each by itself: whoever holds a key in an open transaction would keep
    the others waiting.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._waiting: deque[_Waiting] = deque()
        self._flushing: asyncio.Task[None] | None = None

    async def submit(self, job: CheckedJob) -> StoredJob:
        """Store a job; return when it is on disk. Raises InvalidJob, DatabaseUnavailable.

        A cancelled call leaves it open whether the job is stored, as a lost answer does.
        """
        waiting = _Waiting(job, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return await waiting.stored

    async def close(self) -> None:
        """Wait for what is being stored."""
        if self._flushing is not None:
            await asyncio.wait([self._flushing])

    async def _flush(self) -> None:
        try:
            while self._waiting:
                await self._store(self._take())
        finally:
            self._flushing = None

    def _take(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._waiting and len(group) < MAX_JOBS and size < MAX_BYTES:
            waiting = self._waiting.popleft()
            if not waiting.stored.done():  # cancelled
                group.append(waiting)
                size += len(waiting.job[1])
        return group

    async def _store(self, group: Sequence[_Waiting]) -> None:
        """Store a group and tell everybody in it what became of the job. Does not raise."""
        if not group:
            return
        try:
            stored = await self._submit([waiting.job for waiting in group])
        except SubmitError as error:
            if len(group) == 1:
                _refuse(group, error)
                return
            # Postgres refuses one of them and does not say which; the others are not to suffer.
            for waiting in group:
                await self._store([waiting])
        except DatabaseUnavailable as error:
            _refuse(group, error)
            # Those who came meanwhile have waited long enough, and nothing was sent for them.
            _refuse(self._waiting, error)
        except Exception as error:
            _refuse(group, error)
        else:
            for waiting, each in zip(group, stored, strict=True):
                if not waiting.stored.done():
                    waiting.stored.set_result(each)

    async def _submit(self, jobs: Sequence[CheckedJob]) -> list[StoredJob]:
        params = {"pin": "on", "jobs": encode_array(jobs), "kinds": [terms.kind for terms, _ in jobs]}
        async with self._connect() as conn, AsyncCursor(conn, row_factory=dict_row) as cursor:
            await cursor.execute(statement("submit_group"), params)
            return [_stored(position, row) for position, row in enumerate(await cursor.fetchall(), 1)]


def _stored(position: int, row: DictRow) -> StoredJob:
    made = UUID(row["id"])
    # submit_many() makes ids one microsecond apart, beginning after the moment that it takes for now.
    created_at = _BEGINNING + timedelta(microseconds=uuid7_microseconds(made) - position)
    timeout = timedelta(seconds=row["timeout_seconds"])
    return StoredJob(id=made, created_at=created_at, max_attempts=row["max_attempts"], timeout=timeout)


def _refuse(group: Iterable[_Waiting], error: Exception) -> None:
    for waiting in group:
        if not waiting.stored.done():
            waiting.stored.set_exception(error)
