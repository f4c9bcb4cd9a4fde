"""Batches: many jobs followed, cancelled and retried as one, with callbacks when they have ended.

`batching_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import builtins
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from psycopg import AsyncConnection

from queue_pg import arguments, batch_store, callbacks
from queue_pg.batch_model import Batch, BatchAction, BatchPage, BatchState
from queue_pg.concurrency import AsyncSignal
from queue_pg.errors import BatchNotFound, DatabaseUnavailable, InvalidJob, WaitTimeout
from queue_pg.models import Job, NewJob, Submitted
from queue_pg.wakeup import RESULT, Wakeups

NewJobs = Iterable[NewJob] | AsyncIterable[NewJob]
Callback = NewJob | Mapping[str, Any] | str
# Does a part of the work behind an id; returns to how many jobs, and the last id if there may be more.
Bite = Callable[[AsyncConnection[Any], UUID | None], Awaitable[tuple[int, UUID | None] | None]]

# Jobs that one transaction cancels or retries.
JOBS_AT_ONCE: Final = 1_000
RECHECK_SECONDS: Final = 5.0  # with notifications: in case one was lost
POLL_SECONDS: Final = (0.05, 1.0)  # without: from the first to the last pause


class AsyncBatching(ABC):
    """What Queue inherits for batches."""

    org: str | None
    wakeups: Wakeups

    @abstractmethod
    def connection(self, *, unsafe_to_repeat: bool = False) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Lend a connection."""

    @abstractmethod
    async def submit_new(self, job: NewJob, *, connection: Any = None) -> tuple[Job, bool]:
        """Store one job."""

    @abstractmethod
    async def submit_many(self, jobs: NewJobs, *, connection: Any = None) -> builtins.list[Submitted]:
        """Store all jobs or none."""

    def batch(
        self,
        name: str | None = None,
        *,
        on_complete: Callback | None = None,
        on_failed: Callback | None = None,
        on_all: Callback | None = None,
        on_first_failed: Callback | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncBatch:
        """Return a batch that is made when its block begins and closed when that ends, or cancelled if it raises.

            async with queue.batch("import", on_all="report") as batch:
                await batch.submit("load", {"file": "a.csv"})
            done = await batch.wait(timeout=60)

        `on_complete` is submitted when all jobs have completed, `on_failed` when the batch has ended with one failed or
        cancelled, `on_all` when it has ended, `on_first_failed` as soon as one has failed: a kind, a NewJob or a
        mapping with its fields, whose payload, an object, gets the batch and its counts as `batch`; or the URL of a
        webhook.
        """
        return AsyncBatch(
            self,
            name,
            on_complete=on_complete,
            on_failed=on_failed,
            on_all=on_all,
            on_first_failed=on_first_failed,
            metadata=metadata,
        )

    async def create_batch(
        self,
        name: str | None = None,
        *,
        on_complete: Callback | None = None,
        on_failed: Callback | None = None,
        on_all: Callback | None = None,
        on_first_failed: Callback | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Make an open batch and return it; `batch` says what the arguments mean. Raises InvalidJob naming one."""
        checked = callbacks.check_name(name)
        async with self.connection(unsafe_to_repeat=True) as conn:
            batch_id = await batch_store.create_batch(
                conn,
                name=checked,
                on_complete=callbacks.encode("on_complete", on_complete),
                on_failed=callbacks.encode("on_failed", on_failed),
                on_all=callbacks.encode("on_all", on_all),
                on_first_failed=callbacks.encode("on_first_failed", on_first_failed),
                metadata=callbacks.encode_metadata(metadata),
                org=self.org or "default",
            )
        return await self.get_batch(batch_id)

    async def get_batch(self, batch_id: UUID | str) -> Batch:
        """Return a batch with its counts. Raises BatchNotFound."""
        return await self._batch(arguments.batch_id(batch_id), with_states=True)

    async def list_batches(
        self,
        *,
        state: BatchState | str | None = None,
        name: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> BatchPage:
        """Return a page of batches, newest first. Raises InvalidJob for a bad cursor, limit or filter."""
        arguments.check_filters(name=name)
        limit = arguments.page_size(limit)
        wanted, before = callbacks.batch_state(state), arguments.before(cursor)
        async with self.connection() as conn:
            found = await batch_store.list_batches(
                conn, limit=limit + 1, org=self.org, state=wanted, name=name, before=before
            )
        shown = found[:limit]
        return BatchPage(batches=shown, next_cursor=arguments.cursor_of(shown[-1].id) if len(found) > limit else None)

    async def close_batch(self, batch_id: UUID | str) -> Batch:
        """Say that no more jobs will be added, so that the batch can end; twice is fine. Raises BatchNotFound.

        Waits for transactions that are adding jobs to it.
        """
        known = arguments.batch_id(batch_id)
        async with self.connection() as conn:
            closed = await batch_store.close_batch(conn, known, org=self.org)
        if not closed:
            raise BatchNotFound(known)
        return await self.get_batch(known)

    async def cancel_batch(
        self, batch_id: UUID | str, reason: str | None = None, *, max_seconds: float | None = None
    ) -> BatchAction:
        """Close a batch and cancel all its unfinished jobs, running ones too, a thousand in a transaction.

        Raises BatchNotFound, and InvalidBatchTransition if it has ended otherwise than cancelled. After `max_seconds`
        it stops, to be called again.
        """
        known, text = arguments.batch_id(batch_id), arguments.reason(reason)

        async def some(conn: AsyncConnection[Any], after: UUID | None) -> tuple[int, UUID | None] | None:
            return await batch_store.cancel_batch(
                conn, known, reason=text, max_jobs=JOBS_AT_ONCE, after=after, org=self.org
            )

        return await self._in_bites(known, some, max_seconds)

    async def retry_failed(
        self,
        batch_id: UUID | str,
        *,
        max_attempts: int | None = None,
        and_cancelled: bool = False,
        max_seconds: float | None = None,
    ) -> BatchAction:
        """Put the failed jobs of a batch back into their queues, a thousand in a transaction. Raises BatchNotFound.

        A finished batch is closed again, and calls back once more when they have ended. After `max_seconds` it stops,
        to be called again.
        """
        known = arguments.batch_id(batch_id)
        arguments.max_attempts(max_attempts)

        async def some(conn: AsyncConnection[Any], after: UUID | None) -> tuple[int, UUID | None] | None:
            return await batch_store.retry_failed(
                conn,
                known,
                max_attempts=max_attempts,
                and_cancelled=and_cancelled,
                max_jobs=JOBS_AT_ONCE,
                after=after,
                org=self.org,
            )

        return await self._in_bites(known, some, max_seconds)

    async def wait_batch(self, batch_id: UUID | str, timeout: float | None = None) -> Batch:
        """Return the batch once it has ended, whichever way. Raises WaitTimeout after `timeout` seconds, BatchNotFound.

        An outage of the database that begins while waiting is waited out.
        """
        known = arguments.batch_id(batch_id)
        ends_at = None if timeout is None else time.monotonic() + timeout
        signal = AsyncSignal()
        self.wakeups.start()
        listens = self.wakeups.enabled and RESULT in self.wakeups.channels
        subscription = self.wakeups.subscribe(RESULT, str(known), callback=signal.set) if listens else None
        pause, state = POLL_SECONDS[0], None
        try:
            while True:
                try:
                    found = await self._batch(known, with_states=False)
                except DatabaseUnavailable:
                    if state is None:
                        raise
                else:
                    if found.finished:
                        return await self._batch(known, with_states=True)
                    state = found.state
                left = None if ends_at is None else ends_at - time.monotonic()
                if left is not None and left <= 0:
                    raise WaitTimeout(known, timeout or 0, state, noun="Batch")
                rest = RECHECK_SECONDS if self.wakeups.listening else pause
                pause = min(pause * 1.5, POLL_SECONDS[1])
                await signal.wait(rest if left is None else min(rest, left))
        finally:
            if subscription is not None:
                subscription.close()

    async def _batch(self, batch_id: UUID, *, with_states: bool) -> Batch:
        async with self.connection() as conn:
            found = await batch_store.get_batch(conn, batch_id, org=self.org, with_states=with_states)
        if found is None:
            raise BatchNotFound(batch_id)
        return found

    async def _in_bites(
        self,
        batch_id: UUID,
        some: Bite,
        max_seconds: float | None,
    ) -> BatchAction:
        ends_at = None if max_seconds is None else time.monotonic() + max_seconds
        jobs = 0
        after: UUID | None = None
        while True:
            async with self.connection() as conn:
                bite = await some(conn, after)
            if bite is None:
                raise BatchNotFound(batch_id)
            jobs += bite[0]
            after = bite[1]
            if after is None or (ends_at is not None and time.monotonic() >= ends_at):
                return BatchAction(batch=await self.get_batch(batch_id), jobs=jobs, done=after is None)


class AsyncBatch:
    """A batch that a block fills; see `Queue.batch`. `id` is known from the beginning of the block on."""

    def __init__(
        self,
        queue: AsyncBatching,
        name: str | None,
        *,
        on_complete: Callback | None,
        on_failed: Callback | None,
        on_all: Callback | None,
        on_first_failed: Callback | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        self.name = name
        self._queue = queue
        self._on_complete = on_complete
        self._on_failed = on_failed
        self._on_all = on_all
        self._on_first_failed = on_first_failed
        self._metadata = metadata
        self._id: UUID | None = None

    @property
    def id(self) -> UUID:
        if self._id is None:
            raise RuntimeError("The batch has no id yet: use `async with queue.batch(...) as batch`.")
        return self._id

    async def __aenter__(self) -> Self:
        made = await self._queue.create_batch(
            self.name,
            on_complete=self._on_complete,
            on_failed=self._on_failed,
            on_all=self._on_all,
            on_first_failed=self._on_first_failed,
            metadata=self._metadata,
        )
        self._id = made.id
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._queue.close_batch(self.id)
        else:
            # What has been submitted is half of what was meant.
            await self._queue.cancel_batch(self.id, f"the block that filled it ended with {kind.__name__}")

    async def submit(self, kind: str, payload: Any = None, *, connection: Any = None, **fields: Any) -> Job:
        """Add a job; `fields` are those of NewJob, with `delay` and `timeout` as timedeltas or seconds."""
        for field in ("delay", "timeout"):
            if field in fields:
                fields[field] = arguments.duration(field, fields[field])
        stored, _ = await self._queue.submit_new(
            NewJob(kind=kind, payload=payload, batch_id=self.id, **fields), connection=connection
        )
        return stored

    async def submit_many(self, jobs: NewJobs, *, connection: Any = None) -> builtins.list[Submitted]:
        """Add all jobs or none, as `Queue.submit_many` does. Raises InvalidJob for one of another batch."""
        added = callbacks.each_async(jobs, self._own)
        return await self._queue.submit_many(added, connection=connection)

    async def wait(self, timeout: float | None = None) -> Batch:
        """Return the batch once it has ended; it cannot before its block has. Raises WaitTimeout."""
        return await self._queue.wait_batch(self.id, timeout)

    async def progress(self) -> Batch:
        """Return the batch with its counts as of now."""
        return await self._queue.get_batch(self.id)

    def _own(self, job: NewJob) -> NewJob:
        if job.batch_id is not None and str(job.batch_id) != str(self.id):
            raise InvalidJob("batch_id", f"names another batch than this one, {self.id}")
        return replace(job, batch_id=self.id)
