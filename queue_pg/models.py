"""What the library hands out: jobs as read, jobs as claimed, and the outcomes a handler may return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from uuid import UUID


class JobState(StrEnum):
    """The states of a job; docs/states.md has the legal edges."""

    SCHEDULED = "scheduled"
    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self in FINISHED_STATES


FINISHED_STATES = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


# Not frozen: that would double the cost of making one, and submit_many() takes hundreds of thousands.
@dataclass(slots=True, kw_only=True)
class NewJob:
    """A job to submit. Only `kind` is needed; times are absolute, `delay` and `timeout` are durations.

    It waits for the jobs of `depends_on`; `key` is what other jobs of one `submit_graph` call it there.
    """

    kind: str
    payload: Any = field(default_factory=dict[str, Any])
    queue: str = "default"
    priority: int = 0
    run_at: datetime | None = None
    delay: timedelta | None = None
    max_attempts: int | None = None
    timeout: timedelta | None = None
    expires_at: datetime | None = None
    unique_key: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    traceparent: str | None = None
    batch_id: UUID | str | None = None
    key: str | None = None
    depends_on: Parents = ()
    limit_key: str | None = None
    cost: int = 1
    cache: bool | None = None
    cache_for: timedelta | None = None
    cache_version: str | None = None

    @property
    def caches(self) -> bool:
        """Whether it asks for the cache: it may be answered by identical work, or share it."""
        asked = self.cache_for is not None or self.cache_version is not None
        return asked if self.cache is None else self.cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job, live or finished, as one row of `queue_pg.all_jobs`."""

    id: UUID
    org: str
    queue: str
    kind: str
    state: JobState
    priority: int
    run_at: datetime
    payload: Any
    result: Any
    error: dict[str, Any] | None
    attempt: int
    max_attempts: int
    lease_token: int
    lease_expires_at: datetime | None
    worker_id: str | None
    timeout: timedelta
    expires_at: datetime | None
    unique_key: str | None
    limit_key: str | None
    cost: int
    parent_id: UUID | None
    batch_id: UUID | None
    tags: list[str]
    metadata: dict[str, Any]
    traceparent: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    rerun_of: UUID | None
    cached_from: UUID | None

    @property
    def finished(self) -> bool:
        return self.state.finished


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A job that this worker holds the lease on. `payload` and `metadata` are JSON text, decoded job by job."""

    id: UUID
    org: str
    queue: str
    kind: str
    payload: str
    metadata: str
    attempt: int
    max_attempts: int
    lease_token: int
    lease_expires_at: datetime
    lease_seconds: float
    timeout_seconds: float
    tags: list[str]
    traceparent: str | None
    created_at: datetime


class LeasedJob(NamedTuple):
    """A ClaimedJob as the worker process takes it: no more than it needs, and nothing made that may not be asked for.

    `id` is the UUID's text, `metadata` and `tags` are None when empty.
    """

    id: str
    org: str
    queue: str
    kind: str
    payload: str
    metadata: str | None
    attempt: int
    max_attempts: int
    lease_token: int
    lease_seconds: float
    timeout_seconds: float
    tags: list[str] | None
    traceparent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a job, by `name`. Without `finished_at` the job waits, or waited, for it.

    `type` is step (`result` is what its function returned), sleep, or event (`result` is the payload of the signal).
    `until` is the end of a sleep or of the wait for an event; `timed_out`: the event had not come by then.
    """

    name: str
    type: str
    result: Any
    timed_out: bool
    until: datetime | None
    attempt: int
    begun_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Snooze:
    """Outcome: run the job again after `delay`; burns no attempt."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Cancel:
    """Outcome: end the job as `cancelled`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Outcome: this attempt failed. Retried while attempts are left, unless `retry` is false.

    `delay` replaces the kind's backoff for this retry. `details` is stored beside code and message.
    """

    message: str
    code: str = "error"
    retry: bool = True
    delay: timedelta | None = None
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Outcome: the job waits for these subtasks, and is completed with the list of their results.

    Each is a job of `kind` in `queue` with the payload {"task_id", "subtask_id", "description", "priority"}. The first
    that fails for good fails the job. What is None is as the task that is planned says, else the default: the queue
    work_queue.
    """

    subtasks: Sequence[str]
    queue: str | None = None
    kind: str = "subtask"
    max_attempts: int | None = None
    timeout: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """One job of `Queue.submit_many`. `created` is false when its unique key already named this job."""

    id: UUID
    created: bool


@dataclass(frozen=True, slots=True)
class Parent:
    """A job that another one waits for: a job, its id, or its key in the same `submit_graph`.

    Templates of the child call it `name`; unless given that is its key, else its place in `depends_on`, from 0.
    `on_unsuccessful` says what its failure or cancellation means: cancel the child, run it all the same, or fail it.
    """

    job: UUID | str | Job | Submitted
    name: str | None = None
    on_unsuccessful: OnUnsuccessful = "cancel"


OnUnsuccessful = Literal["cancel", "run", "fail"]
ParentRef = Parent | Job | Submitted | UUID | str
Parents = Sequence[ParentRef] | Mapping[str, ParentRef]
"""The jobs to wait for, in order or by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A parent or a child of a job. `state` is what it is now, None when it is forgotten.

    `outcome` is how the parent ended, as the child was told; None: the child still waits for it.
    """

    id: UUID
    name: str
    on_unsuccessful: str
    outcome: JobState | None
    state: JobState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """The parents and children of a job, as many as were asked for, and how many there are."""

    parents: list[Dependency]
    children: list[Dependency]
    parents_count: int
    children_count: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page of `Queue.list`, newest first. Give `next_cursor` to `list` for the next one; None: this is the last."""

    jobs: list[Job]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One event of a job, in the order of `seq`, which begins with 1 and has no gaps; docs/events.md lists the types.

    `at` is None only for `forgotten`, which stands for the events whose retention has passed.
    """

    seq: int
    at: datetime | None
    type: str
    data: Any


class StoredEvent(NamedTuple):
    """An event as it is passed on: `data` is JSON text."""

    seq: int
    at: datetime | None
    type: str
    data: str


@dataclass(slots=True, kw_only=True)
class EventsRead:
    """What one look at a job's events has found. `last_seq` is the number of the newest event there is."""

    org: str
    state: JobState
    followed: bool
    last_seq: int
    events: list[StoredEvent] = field(default_factory=list[StoredEvent])


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events of a job up to now. There are more if `last_seq` is above the last one's `seq`."""

    events: list[JobEvent]
    state: JobState
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line that a job's handler has logged. `data` holds the fields given beside it."""

    seq: int
    at: datetime
    stream: str
    line: str
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """Lines of a job's log. Give `next_seq` as `from_seq` for the next page; None: that was the last one so far."""

    lines: list[LogLine]
    next_seq: int | None


class NewEvent(NamedTuple):
    """An event to append to the job of a claim. `data` is JSON text of an object."""

    id: UUID | str
    lease_token: int
    type: str
    data: str


@dataclass(frozen=True, slots=True)
class Appended:
    """The answer to the events appended to one job. Not accepted: the lease is lost; `state` is what the job is now.

    `appended` counts the events that handlers have appended to the job in all; `followed`: somebody reads them as they
    come.
    """

    id: str
    accepted: bool
    state: str | None
    last_seq: int | None
    appended: int | None
    followed: bool | None


class Outcome(NamedTuple):
    """How a claimed job ends, as one entry of `queue_pg.finish`. `result` and `error` are JSON text.

    `outcome` is complete, fail (retried while attempts are left), discard (fail, never retried), snooze, wait (for what
    its steps wait for), plan (for the subtasks of the plan in `result`), release (back to the queue; these burn no
    attempt) or cancel. `delay` is for fail and snooze.
    """

    id: UUID | str
    lease_token: int
    outcome: str
    result: str | None = None
    error: str | None = None
    delay: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer to one Outcome. Not accepted: the lease is lost; `state` is what the job is now (None: unknown id)."""

    id: str
    accepted: bool
    state: str | None


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease that still stands after a heartbeat."""

    id: UUID
    lease_expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """Counts of one queue by state; `oldest_queued_seconds` is the age of the job that has been claimable longest.

    A queue is active, paused (it hands out no jobs) or draining (it takes no new ones).
    """

    org: str
    queue: str
    paused: bool
    paused_until: datetime | None
    scheduled: int
    waiting: int
    queued: int
    running: int
    completed: int
    failed: int
    cancelled: int
    oldest_queued_seconds: float | None
    draining: bool

    @property
    def state(self) -> Literal["active", "paused", "draining"]:
        return "paused" if self.paused else "draining" if self.draining else "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process; `live` while its last heartbeat is younger than 60 s. Counters are since its start."""

    id: str
    host: str
    pid: int
    version: str
    queues: list[str]
    kinds: list[str]
    capacity: int
    active: int
    processed: int
    failed: int
    stopping: bool
    started_at: datetime
    heartbeat_at: datetime
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KindInfo:
    """A kind of job as registered by workers. `schema` is the JSON Schema of its payload, None when unknown."""

    kind: str
    schema: dict[str, Any] | None
    max_attempts: int | None
    timeout: timedelta | None
    retry_base: timedelta | None
    retry_cap: timedelta | None
    description: str | None
    registered_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyWaiting:
    """One reason why a job does not run yet. `until` and `held_by` are given where they are known."""

    reason: str
    detail: str
    until: datetime | None
    held_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of a job. `sha256` is that of its content, in hex; `attempt` the one that left it, 0 before any."""

    name: str
    size: int
    sha256: str
    content_type: str
    attempt: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit of a queue or a key, and what runs under it now.

    `status` is open, full, rate (it opens at `opens_at`) or paused (until `paused_until`; None: until it is resumed).
    At most `max_running` attempts run at once, and `rate` units of cost start per second, minute, hour or day, `burst`
    of them at once after a quiet time; None is no limit. `template` is what it was made from at the first use of a key.
    `weight` is its share beside others (None: 1); `ageing_seconds`, of a queue, the wait after which jobs of every
    priority have turns.
    """

    org: str
    scope: str
    name: str
    status: str
    running: int
    max_running: int | None
    rate: int | None
    per: str | None
    burst: int | None
    units_left: int | None
    paused: bool
    paused_until: datetime | None
    opens_at: datetime | None
    template: str | None
    weight: float | None
    ageing_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceDefaults:
    """What a process's settings say for all jobs of the instance; None leaves the database's value as it is."""

    retention_seconds: float | None = None
    max_attempts: int | None = None
    timeout_seconds: float | None = None
    max_artifact_bytes: int | None = None
    max_artifacts: int | None = None
    max_job_artifact_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceStep:
    """What one call of `queue_pg.maintain` did. `next_due_seconds` is None when nothing is known to fall due."""

    reaped: int
    promoted: int
    expired: int
    busy: bool
    next_due_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceRound:
    """The answer of `queue_pg.lead_maintenance`: a step of the leader, or, to the others, when to look again.

    `at` is the database's time, `took_seconds` what the call took there.
    """

    step: MaintenanceStep | None
    at: datetime
    took_seconds: float
    next_look_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRound:
    """What one call of `queue_pg.maintain_history` did, and when it wants the next one."""

    created: int
    dropped: int
    again_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRows:
    """Rows of a live table as far as the statistics know, about a second old, and whether this role may vacuum it."""

    name: str
    dead: int
    live: int
    may_vacuum: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """Who keeps dead rows from being removed, as `queue_pg.horizon` tells (docs/operations.md).

    `kind` is session, prepared, slot or standby. A holder that is not `visible` to this role has no state, age in
    seconds and query; slots and standbys never have. `jobs_bytes` is the size of the live table with its indexes.
    """

    kind: str
    pid: int | None
    name: str | None
    username: str | None
    database: str | None
    state: str | None
    visible: bool
    age_seconds: float | None
    age_transactions: int
    query: str | None
    dead_rows: int
    jobs_bytes: int
