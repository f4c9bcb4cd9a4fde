"""For tests of applications: run queued jobs here and now, see what was submitted, move the database's clock.

    job = await order_placed(order)                       # your code, which submits
    assert [j.payload for j in await submitted(queue, kind="receipt")] == [{"order": 7}]
    await drain(queue, tasks)                             # runs it in this process
    assert (await queue.get(job.id)).state == "completed"

Use a database of the tests' own; `drain` claims whatever is queued there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from psycopg import AsyncConnection

from queue_pg import outcomes, store
from queue_pg.client import Queue
from queue_pg.client_sync import SyncQueue
from queue_pg.connections import connect
from queue_pg.errors import InvalidJob, LeaseLost
from queue_pg.handler_events import EventSink, RunningJob
from queue_pg.models import Appended, ClaimedJob, Job, JobState, NewEvent, Outcome
from queue_pg.payloads import UnreadableJson, decode_json
from queue_pg.statements import statement
from queue_pg.suspension import Suspended
from queue_pg.tasks import JobContext, Task, Tasks, default_tasks, job_context

T = TypeVar("T")

WORKER_ID: Final = "queue_pg.testing"


async def drain(
    queue: Queue,
    tasks: Tasks | None = None,
    *,
    queues: Sequence[str] | None = None,
    max_jobs: int = 1_000,
) -> list[Job]:
    """Run what is queued and due until nothing is, and return the jobs run, in order, as they are now.

    Jobs go through the real claim and finish, one after the other, in this process and event loop. Jobs that handlers
    submit run too; a job that is retried later, or waits, does not, until the clock or a signal says so. Runs the kinds
    of `tasks` (default_tasks unless given) in `queues` (all unless given). Raises RuntimeError after `max_jobs` runs.
    """
    known = default_tasks if tasks is None else tasks
    ran: dict[Any, None] = {}
    runs = 0
    while True:
        claimed = await _claim(queue, known, queues)
        if claimed is None:
            return [await queue.get(job_id) for job_id in ran]
        if runs >= max_jobs:
            await queue.release(claimed.id, claimed.lease_token)
            raise RuntimeError(f"drain() has run {runs} jobs and there are more; do jobs submit each other for ever?")
        runs += 1
        task = known.get(claimed.kind)
        assert task is not None, "only kinds of these tasks are claimed"  # noqa: S101
        outcome = await run(task, claimed, queue)
        async with queue.connection() as conn:
            await store.finish(conn, [outcome])
        ran[claimed.id] = None


def drain_sync(
    queue: SyncQueue,
    tasks: Tasks | None = None,
    *,
    queues: Sequence[str] | None = None,
    max_jobs: int = 1_000,
) -> list[Job]:
    """Do what `drain` does, blocking; async handlers run in an event loop of its own."""

    async def work() -> list[Job]:
        async with Queue(queue.dsn, org=queue.org, notify=False, max_connections=1) as twin:
            return await drain(twin, tasks, queues=queues, max_jobs=max_jobs)

    return asyncio.run(work())


async def run(task: Task[..., Any], claimed: ClaimedJob, queue: Queue | None = None) -> Outcome:
    """Run one claimed job in this process and return its outcome; exceptions become failed attempts.

    `queue` is the handler's way to the database, if it needs one.
    """
    try:
        arguments = task.validate(decode_json(claimed.payload))
        metadata: Any = decode_json(claimed.metadata)
    except UnreadableJson as error:
        return outcomes.discarded(claimed.id, claimed.lease_token, "payload_unreadable", error)
    except InvalidJob as error:
        return outcomes.discarded(claimed.id, claimed.lease_token, "payload_invalid", error, field=error.field)
    context = JobContext(
        job_id=claimed.id,
        kind=claimed.kind,
        queue=claimed.queue,
        org=claimed.org,
        attempt=claimed.attempt,
        max_attempts=claimed.max_attempts,
        lease_token=claimed.lease_token,
        metadata=metadata,
        tags=claimed.tags,
        traceparent=claimed.traceparent,
        link=None if queue is None or task.run_in == "process" else _QueueLink(queue),
    )
    try:
        with job_context(context):
            value: Any = task.fn(**arguments)
            if task.is_async:
                value = await value
    except (Exception, Suspended, BaseExceptionGroup) as error:
        return outcomes.of_error(claimed.id, claimed.lease_token, error)
    return outcomes.of_return(claimed.id, claimed.lease_token, value)


class _QueueLink:
    """The HandlerLink of `run`: what handlers say is stored when they say it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    @property
    def events(self) -> EventSink:
        return self

    async def run(self, statement: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        async with self._queue.connection() as conn:
            return await statement(conn)

    def run_blocking(self, statement: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        # The handler blocks the queue's own loop, so it gets a queue and a loop of its own.
        async def work() -> T:
            async with Queue(self._queue.dsn, notify=False, max_connections=1) as twin, twin.connection() as conn:
                return await statement(conn)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(work())).result()

    async def add(self, job: RunningJob, events: list[tuple[str, str]]) -> None:
        _check_held(job, await self.run(lambda conn: store.append_events(conn, _new_events(job, events))))

    def add_blocking(self, job: RunningJob, events: list[tuple[str, str]]) -> None:
        _check_held(job, self.run_blocking(lambda conn: store.append_events(conn, _new_events(job, events))))


def _new_events(job: RunningJob, events: list[tuple[str, str]]) -> list[NewEvent]:
    return [NewEvent(job.job_id, job.lease_token, *event) for event in events]


def _check_held(job: RunningJob, answers: list[Appended]) -> None:
    for answer in answers:
        if not answer.accepted:
            raise LeaseLost(job.job_id, answer.state)


async def _claim(queue: Queue, tasks: Tasks, queues: Sequence[str] | None) -> ClaimedJob | None:
    async with queue.connection() as conn:
        await store.maintain(conn)  # makes due jobs claimable
        if queues is None:
            queues = sorted({stats.queue for stats in await store.queue_stats(conn, org=queue.org)})
        claimed = await store.claim(conn, WORKER_ID, queues, kinds=tasks.kinds, org=queue.org, lease_seconds=3_600)
    return claimed[0] if claimed else None


async def submitted(queue: Queue, *, kind: str | None = None, in_queue: str | None = None) -> list[Job]:
    """Return the jobs submitted so far with their payloads, whatever became of them, oldest first."""
    jobs: list[Job] = []
    cursor: str | None = None
    while True:
        page = await queue.list(kind=kind, queue=in_queue, with_payload=True, limit=500, cursor=cursor)
        jobs += page.jobs
        cursor = page.next_cursor
        if cursor is None:
            return jobs[::-1]


def submitted_sync(queue: SyncQueue, *, kind: str | None = None, in_queue: str | None = None) -> list[Job]:
    """Do what `submitted` does, blocking."""
    jobs: list[Job] = []
    cursor: str | None = None
    while True:
        page = queue.list(kind=kind, queue=in_queue, with_payload=True, limit=500, cursor=cursor)
        jobs += page.jobs
        cursor = page.next_cursor
        if cursor is None:
            return jobs[::-1]


def states(jobs: Iterable[Job]) -> list[JobState]:
    """Return the states of jobs, for short assertions."""
    return [job.state for job in jobs]


class Clock:
    """The queue's clock in a test database, movable: leases expire and retries fall due without waiting.

    Replaces `queue_pg.now()` there at the first move, for every session of that database.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._installed = False

    def advance(self, by: timedelta | float) -> datetime:
        """Move the clock by a timedelta or seconds, and return the new time."""
        moved = by if isinstance(by, timedelta) else timedelta(seconds=by)
        with connect(self._dsn, application="queue-pg clock") as conn:
            if not self._installed:
                for name in ("testing_clock_table", "testing_clock_start", "testing_clock_function"):
                    conn.execute(statement(name))
                self._installed = True
            [now] = conn.execute(statement("testing_clock_advance"), {"by": moved}).fetchone() or [None]
        assert isinstance(now, datetime)  # noqa: S101
        return now

    def now(self) -> datetime:
        """Return the time in the database."""
        with connect(self._dsn, application="queue-pg clock") as conn:
            [now] = conn.execute(statement("now")).fetchone() or [None]
        assert isinstance(now, datetime)  # noqa: S101
        return now
