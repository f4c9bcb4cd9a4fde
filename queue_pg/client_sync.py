# Generated from queue_pg/client.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""`SyncQueue`: submit jobs, read them back, wait for them, steer them."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from psycopg import Connection
from psycopg_pool import ConnectionPool

from queue_pg import arguments, store_sync as store
from queue_pg.acting_sync import SyncActing
from queue_pg.artifacts_sync import SyncArtifacts
from queue_pg.batching_sync import SyncBatching
from queue_pg.bulk_sync import SyncBulk
from queue_pg.chunks import chunks_sync, name_position
from queue_pg.errors import InvalidJob, InvalidTransition, JobCancelled, JobFailed, JobNotFound, WaitTimeout
from queue_pg.feed_sync import Feed
from queue_pg.graph import encode_graph, encode_one, is_part, parents_of
from queue_pg.limiting_sync import SyncLimiting
from queue_pg.models import (
    Dependencies,
    Job,
    JobState,
    KindInfo,
    NewJob,
    OnUnsuccessful,
    Page,
    Parent,
    Parents,
    QueueStats,
    Submitted,
    WhyWaiting,
    WorkerInfo,
)
from queue_pg.payloads import DEFAULT_MAX_PAYLOAD_BYTES
from queue_pg.planning_sync import SyncPlanning
from queue_pg.pool_sync import SyncPool, lend
from queue_pg.pulling_sync import SyncPulling
from queue_pg.reading_sync import SyncReading
from queue_pg.scaling_sync import SyncScaling
from queue_pg.scheduling_sync import SyncScheduling
from queue_pg.sqlstates import translated
from queue_pg.stepping_sync import SyncStepping
from queue_pg.submission import JobChecker, encode_array
from queue_pg.surroundings import REAL, Surroundings
from queue_pg.templating_sync import SyncTemplating
from queue_pg.tracing import submitting, submitting_many
from queue_pg.waiting_sync import Waiting
from queue_pg.wakeup import EVENTS, RESULT, Wakeups

Pool = ConnectionPool[Any]

NewJobs = Iterable[NewJob]


class SyncQueue(
    SyncPulling,
    SyncReading,
    SyncScheduling,
    SyncStepping,
    SyncBatching,
    SyncArtifacts,
    SyncTemplating,
    SyncLimiting,
    SyncPlanning,
    SyncActing,
    SyncScaling,
):
    """The queue in one Postgres database.

        with SyncQueue("postgresql://app@localhost/app") as queue:
            job = queue.submit("chat", {"prompt": "Say hello"})
            print(queue.result(job.id, timeout=60))

    `dsn` None takes DATABASE_URL (settings.py). A `pool` of your own is used and left open; `dsn` then serves only to
    LISTEN, for example past a pooler. `org` is the tenant: jobs are submitted to it and others' are invisible; with
    None all are visible and submissions go to `default`. With `notify` off nothing listens and `wait` polls.
    At most `max_connections` are open besides the listening one; who finds all in use for `pool_timeout_seconds` gets
    DatabaseUnavailable. `max_payload_bytes` bounds payloads and results. `surroundings` stand in for the machine, its
    clock and its lines, where both are simulated.

    Errors are those of queue_pg.errors: DatabaseUnavailable from every method, others as told.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        pool: Pool | None = None,
        org: str | None = "default",
        notify: bool = True,
        max_connections: int = 10,
        pool_timeout_seconds: float = 10,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
        surroundings: Surroundings = REAL,
    ) -> None:
        self.dsn = arguments.dsn_of(dsn, pool)
        self.org = org
        self.max_payload_bytes = max_payload_bytes
        self._check = JobChecker(org=org or "default", max_payload_bytes=max_payload_bytes)
        self._max_connections = max_connections
        self._timeout_seconds = pool_timeout_seconds
        self._given_pool = pool
        self._surroundings = surroundings
        self._pool: SyncPool | Pool | None = None
        self.wakeups = Wakeups(self.dsn, (RESULT, EVENTS), enabled=notify, surroundings=surroundings)
        self._waiting: Waiting | None = None
        self._feed: Feed | None = None

    def open(self, *, check: bool = False) -> None:
        """Make the SyncQueue usable. With `check`, connect now, so that a wrong address is told at once."""
        if check:
            with translated():
                conn = self._surroundings.connect(self.dsn, application="queue-pg")
                conn.close()
        if self._pool is None:
            self._pool = self._given_pool or SyncPool(
                self.dsn,
                max_size=self._max_connections,
                timeout_seconds=self._timeout_seconds,
                surroundings=self._surroundings,
            )
        if self._waiting is None:
            self._waiting = Waiting(
                watch=self._watch,
                states=self._states,
                jobs=self._finished,
                wakeups=self.wakeups,
                surroundings=self._surroundings,
            )
        if self._feed is None:
            self._feed = self._open_feed()

    def close(self) -> None:
        """End waits, stop listening and close the connections, unless the pool is yours."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        self.wakeups.close()
        if isinstance(self._pool, SyncPool):
            self._pool.close()
        self._pool = None

    def __enter__(self) -> Self:
        self.open(check=self._given_pool is None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def connection(self, *, unsafe_to_repeat: bool = False) -> Generator[Connection[Any]]:
        """Lend a connection of the pool; database errors inside become those of queue_pg.errors."""
        if self._pool is None:
            raise RuntimeError("The SyncQueue is not open: use `with SyncQueue(...)`, or call `open()` first.")
        with translated(unsafe_to_repeat=unsafe_to_repeat):
            with lend(self._pool) as conn:
                yield conn

    # --- submitting ---------------------------------------------------------------------------------------------------

    def submit(
        self,
        kind: str,
        payload: Any = None,
        *,
        queue: str = "default",
        priority: int = 0,
        run_at: datetime | None = None,
        delay: timedelta | float | None = None,
        max_attempts: int | None = None,
        timeout: timedelta | float | None = None,
        expires_at: datetime | None = None,
        unique_key: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        batch_id: UUID | str | None = None,
        depends_on: Parents = (),
        limit_key: str | None = None,
        cost: int = 1,
        cache: bool | None = None,
        cache_for: timedelta | float | None = None,
        cache_version: str | None = None,
        connection: Any = None,
    ) -> Job:
        """Store a job and return it; with a `unique_key` that names the same work already, that job.

        `payload` is any JSON value, None meaning {}. `delay` and `timeout` are timedeltas or seconds. The job waits for
        those of `depends_on`, and its payload may take what they have made (docs/dependencies.md). With `cache` it may
        be answered by identical work that has completed, at most `cache_for` ago, or share that in flight;
        `cache_version` is part of what is compared (docs/caching.md). `connection` is yours, psycopg's, SQLAlchemy's or Django's:
        the job then exists if and only if your transaction commits. Raises InvalidJob, PayloadTooLarge and
        UniqueKeyConflict; nothing is stored then.
        """
        job = NewJob(
            kind=kind,
            payload=payload,
            queue=queue,
            priority=priority,
            run_at=run_at,
            delay=arguments.duration("delay", delay),
            max_attempts=max_attempts,
            timeout=arguments.duration("timeout", timeout),
            expires_at=expires_at,
            unique_key=unique_key,
            tags=tags,
            metadata={} if metadata is None else metadata,
            traceparent=traceparent,
            batch_id=batch_id,
            depends_on=depends_on,
            limit_key=limit_key,
            cost=cost,
            cache=cache,
            cache_for=arguments.duration("cache_for", cache_for),
            cache_version=cache_version,
        )
        stored, _ = self.submit_new(job, connection=connection)
        return stored

    def submit_new(self, job: NewJob, *, connection: Any = None) -> tuple[Job, bool]:
        """Store one job as `submit` does; return it and whether it is new (false: its unique key was known)."""
        with submitting(job) as carrying:
            jobs = encode_one(carrying, self._check) if is_part(job) else encode_array([self._check(carrying)])
            if connection is not None:
                with translated():
                    return store.submit(connection, jobs, own_transaction=False)
            with self.connection(unsafe_to_repeat=job.unique_key is None) as conn:
                return store.submit(conn, jobs, own_transaction=True)

    def submit_many(self, jobs: NewJobs, *, connection: Any = None) -> builtins.list[Submitted]:
        """Store all jobs or none, and return their ids in order. `jobs` may be a generator: it is read in chunks."""
        if connection is not None:
            # A generator may be reading from the very connection, which a COPY that stays open would take from it.
            bulk = SyncBulk(connection, own_transaction=False, streams=isinstance(jobs, Collection))
            with submitting_many(jobs) as carrying:
                return self._store(bulk, carrying)
        with self.connection(unsafe_to_repeat=True) as conn:
            with submitting_many(jobs) as carrying:
                return self._store(SyncBulk(conn, own_transaction=True, streams=True), carrying)

    def submit_graph(self, jobs: Iterable[NewJob], *, connection: Any = None) -> builtins.list[Submitted]:
        """Store jobs that wait for each other, all or none, and return their ids in order.

        They name each other by `key` in `depends_on`, in any order. Raises InvalidJob, which names a circle.
        """
        with submitting_many(jobs) as carrying:
            graph = encode_graph(carrying, self._check)
            if connection is not None:
                with translated():
                    return store.submit_many(connection, graph, own_transaction=False)
            with self.connection(unsafe_to_repeat=True) as conn:
                return store.submit_many(conn, graph, own_transaction=True)

    def chain(
        self,
        job_id: UUID | str,
        job: NewJob,
        *,
        name: str = "parent",
        on_unsuccessful: OnUnsuccessful = "cancel",
        completed_only: bool = False,
    ) -> Job:
        """Store a job that follows another one, which its templates call `name`, and return it.

        It waits for a parent that lives, unless `completed_only` forbids that. Raises JobNotFound, InvalidTransition.
        """
        chained, _ = self.chain_new(
            job_id, job, name=name, on_unsuccessful=on_unsuccessful, completed_only=completed_only
        )
        return chained

    def chain_new(
        self,
        job_id: UUID | str,
        job: NewJob,
        *,
        name: str = "parent",
        on_unsuccessful: OnUnsuccessful = "cancel",
        completed_only: bool = False,
    ) -> tuple[Job, bool]:
        """Store a job as `chain` does; return it and whether it is new (false: its unique key was known)."""
        parent = self.get(job_id)
        if completed_only and parent.state is not JobState.COMPLETED:
            raise InvalidTransition(parent.id, "chain to", parent.state)
        follows = Parent(parent, name, on_unsuccessful)
        return self.submit_new(replace(job, depends_on=[follows, *parents_of(job.depends_on)]))

    def _store(self, bulk: SyncBulk, jobs: NewJobs) -> builtins.list[Submitted]:
        submitted: builtins.list[Submitted] = []
        try:
            with translated(unsafe_to_repeat=bulk.own_transaction):
                with bulk, closing(chunks_sync(jobs, self._check)) as chunks:
                    for chunk in chunks:
                        submitted += bulk.add(chunk.jobs, chunk.places, last=chunk.last)
        except InvalidJob as error:
            if len(bulk.refused) == 1:
                name_position(error, bulk.refused[0])
            raise
        return submitted

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, job_id: UUID | str) -> Job:
        """Return a job, live or finished. Raises JobNotFound.

        A payload or result that Python cannot hold, as plain SQL may store it, is shown as payloads.Unreadable.
        """
        known = arguments.job_id(job_id)
        with self.connection() as conn:
            job = store.get_job(conn, known, org=self.org)
        if job is None:
            raise JobNotFound(known)
        return job

    def wait(self, job_id: UUID | str, timeout: float | None = None) -> Job:
        """Return the job once it has ended, whichever way. Raises WaitTimeout after `timeout` seconds, JobNotFound."""
        known = arguments.job_id(job_id)
        if self._waiting is None:
            raise RuntimeError("The SyncQueue is not open: use `with SyncQueue(...)`, or call `open()` first.")
        job, state = self._waiting.wait(known, timeout)
        if job is None:
            raise WaitTimeout(known, timeout or 0, state)
        return job

    def result(self, job_id: UUID | str, timeout: float | None = None) -> Any:
        """Wait for a job and return its result. Raises JobFailed, JobCancelled, WaitTimeout, JobNotFound."""
        job = self.wait(job_id, timeout)
        if job.state is JobState.COMPLETED:
            return job.result
        unsuccessful = JobFailed if job.state is JobState.FAILED else JobCancelled
        raise unsuccessful(job.id, job.state, job.error)

    def list(
        self,
        *,
        state: JobState | str | None = None,
        queue: str | None = None,
        kind: str | None = None,
        tag: str | None = None,
        batch_id: UUID | str | None = None,
        parent_id: UUID | str | None = None,
        unique_key: str | None = None,
        rerun_of: UUID | str | None = None,
        error_code: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
        with_payload: bool = False,
    ) -> Page:
        """Return a page of jobs, newest first; payload and result are None unless `with_payload`.

        `created_after` is inclusive, `created_before` is not. Give `page.next_cursor` as `cursor` for the next page.
        Raises InvalidJob for a bad cursor, limit or filter.
        """
        arguments.check_filters(queue=queue, kind=kind, tag=tag, unique_key=unique_key, error_code=error_code)
        arguments.aware("created_after", created_after)
        arguments.aware("created_before", created_before)
        limit = arguments.page_size(limit)
        wanted_state, before = arguments.state(state), arguments.before(cursor)
        batch, parent = arguments.filter_id("batch_id", batch_id), arguments.filter_id("parent_id", parent_id)
        origin = arguments.filter_id("rerun_of", rerun_of)
        with self.connection() as conn:
            jobs = store.list_jobs(
                conn,
                limit=limit + 1,
                with_payload=with_payload,
                org=self.org,
                state=wanted_state,
                queue=queue,
                kind=kind,
                tag=tag,
                batch_id=batch,
                parent_id=parent,
                unique_key=unique_key,
                rerun_of=origin,
                error_code=error_code,
                created_after=created_after,
                created_before=created_before,
                before=before,
            )
        return arguments.page(jobs, limit)

    def stats(self) -> builtins.list[QueueStats]:
        """Return the counts of each queue."""
        with self.connection() as conn:
            return store.queue_stats(conn, org=self.org)

    def workers(self) -> builtins.list[WorkerInfo]:
        """Return the worker processes known, live or recently gone."""
        with self.connection() as conn:
            return store.workers(conn)

    def kinds(self) -> builtins.list[KindInfo]:
        """Return the kinds that workers have registered."""
        with self.connection() as conn:
            return store.kinds(conn)

    def dependencies(self, job_id: UUID | str, *, limit: int = 100) -> Dependencies:
        """Return up to `limit` parents and children of a job, and how many there are. Raises JobNotFound."""
        known = arguments.job_id(job_id)
        limit = arguments.page_size(limit)
        with self.connection() as conn:
            found = store.dependencies(conn, known, limit=limit, org=self.org)
        if found is None:
            raise JobNotFound(known)
        return found

    def why_waiting(self, job_id: UUID | str) -> builtins.list[WhyWaiting]:
        """Return why a job does not run. Raises JobNotFound."""
        known = arguments.job_id(job_id)
        with self.connection() as conn:
            reasons = store.why_waiting(conn, known, org=self.org)
            if not reasons and store.get_job(conn, known, org=self.org) is None:
                raise JobNotFound(known)
        return reasons

    # --- steering -----------------------------------------------------------------------------------------------------

    def cancel(self, job_id: UUID | str, reason: str | None = None) -> Job:
        """End a job as cancelled, running or not; twice is fine. Raises InvalidTransition if it ended otherwise."""
        known = arguments.job_id(job_id)
        with self.connection() as conn:
            job = store.cancel(conn, known, reason=arguments.reason(reason), org=self.org)
        if job is None:
            raise JobNotFound(known)
        return job

    def retry(self, job_id: UUID | str, max_attempts: int | None = None, *, fresh: bool = False) -> Job:
        """Put a failed or cancelled job back into its queue. Raises InvalidTransition for any other state.

        It goes on after the steps that it has finished; with `fresh` it does them again.
        """
        known = arguments.job_id(job_id)
        arguments.max_attempts(max_attempts)
        with self.connection() as conn:
            job = store.retry(conn, known, max_attempts=max_attempts, fresh=fresh, org=self.org)
        if job is None:
            raise JobNotFound(known)
        return job

    def reprioritize(self, job_id: UUID | str, priority: int) -> Job:
        """Give an unfinished job another priority, higher first; one that runs has it when it is run again.

        Raises InvalidTransition for one that has ended.
        """
        known = arguments.job_id(job_id)
        arguments.priority(priority)
        with self.connection() as conn:
            job = store.reprioritize(conn, known, priority, org=self.org)
        if job is None:
            raise JobNotFound(known)
        return job

    def pause(self, queue: str, until: datetime | None = None) -> None:
        """Stop claims from a queue until a moment, or until `resume`."""
        arguments.check_filters(queue=queue)
        arguments.aware("until", until)
        with self.connection() as conn:
            store.pause_queue(conn, queue, until=until, org=self.org or "default")

    def drain(self, queue: str) -> None:
        """Have a queue take no new jobs (QueueDraining) until `resume`; those it has are done.

        It ends a pause, and a pause ends it. Retries, subtasks of its jobs and callbacks of batches are let in.
        """
        arguments.check_filters(queue=queue)
        with self.connection() as conn:
            store.drain_queue(conn, queue, org=self.org or "default")

    def resume(self, queue: str) -> None:
        """End the pause of a queue, or have a draining one take jobs again."""
        arguments.check_filters(queue=queue)
        with self.connection() as conn:
            store.resume_queue(conn, queue, org=self.org or "default")

    # --- for Waiting --------------------------------------------------------------------------------------------------

    def _watch(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        with self.connection() as conn:
            return store.watch(conn, ids)

    def _states(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        with self.connection() as conn:
            return store.job_states(conn, ids)

    def _finished(self, ids: Sequence[UUID]) -> builtins.list[Job]:
        with self.connection() as conn:
            return store.get_jobs(conn, ids, org=self.org)
