"""Every answer as a pydantic model, for /openapi.json. `rendering.py` writes them, and tests validate real ones."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from queue_pg.batch_model import BatchState
from queue_pg.models import JobState


class Answer(BaseModel):
    """A response body."""

    model_config = ConfigDict(extra="forbid")


class ZbrainState(StrEnum):
    """The states in ZBrain's words, as `?vocab=zbrain` asks for them."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    RETRYING = "Retrying"
    CANCELED = "Canceled"


class JobSummary(Answer):
    """A job as listed: without payload and result."""

    id: UUID
    kind: str
    queue: str
    org: str
    state: JobState | ZbrainState
    priority: int
    error: dict[str, Any] | None
    attempt: int
    max_attempts: int
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    timeout_seconds: float
    unique_key: str | None
    limit_key: str | None
    cost: int
    tags: list[str]
    metadata: dict[str, Any]
    worker_id: str | None
    parent_id: UUID | None
    batch_id: UUID | None
    traceparent: str | None
    lease_expires_at: datetime | None
    rerun_of: UUID | None = Field(description="The job that this one runs again.")
    cached: bool = Field(description="It has not run: identical work had its result, or got it meanwhile.")
    cached_from: UUID | None = Field(description="The job that did that work.")


class DependencyAnswer(Answer):
    """A parent, or a child."""

    id: UUID
    name: str
    on_unsuccessful: Literal["cancel", "run", "fail"]
    outcome: JobState | None = Field(description="How the parent ended, as the child was told; null: it has not.")
    state: JobState | None = Field(description="Of this job now; null: forgotten.")


class DependenciesAnswer(Answer):
    """At most 100 parents and 100 children, and how many there are."""

    parents: list[DependencyAnswer]
    children: list[DependencyAnswer]
    parents_count: int
    children_count: int


class JobAnswer(JobSummary):
    """A job."""

    payload: Any
    result: Any


class Waiting(Answer):
    """Why a job does not run yet."""

    reason: str = Field(examples=["limit_full"])
    message: str
    until: datetime | None = Field(description="When it may start; null: unknown.")
    holders: list[str] = Field(description="Who or what it waits for: jobs, a queue, a key, workers; ten at most.")


class RelatedJobAnswer(JobAnswer):
    """A job as read by its id, with why it waits, and with its parents and children if it has any."""

    waiting: Waiting | None = Field(description="Null for a job that runs or has ended.")
    dependencies: DependenciesAnswer | None = Field(None, description="Left out where there are none.")


class JobPage(Answer):
    jobs: list[JobSummary]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null: this is the last.")


class TaskSummary(Answer):
    """A task as listed: without its output; `description` and `prompt` are null when they are very long."""

    task_id: UUID
    id: UUID = Field(description="The same; every task is a job.")
    name: str | None
    description: str | None
    prompt: str | None
    status: JobState = Field(description="While it waits for its subtasks: queued until one has started, then running.")
    priority: int
    created_at: datetime
    scheduled_for: datetime | None
    subtasks: list[str]
    subtask_ids: list[str] = Field(description="`GET /tasks/{id}` reads them, too.")
    error: dict[str, Any] | None
    attempts: int
    max_attempts: int
    parent_task_id: UUID | None = Field(description="The task that it is a subtask of, or chained to.")


class TaskAnswer(TaskSummary):
    """A task."""

    output: Any = Field(description="The result; of a planned task the list of its subtasks' results.")


class TaskPageAnswer(Answer):
    tasks: list[TaskSummary]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null: this is the last.")


class BatchAnswer(Answer):
    """A batch. `scheduled`, `waiting`, `queued` and `running` are null in lists."""

    id: UUID
    name: str | None
    org: str
    state: BatchState
    run: int = Field(description="Grows when a job of a finished batch is retried.")
    total: int
    scheduled: int | None
    waiting: int | None
    queued: int | None
    running: int | None
    completed: int
    failed: int
    cancelled: int
    unfinished: int
    percent: float = Field(description="How many of its jobs have ended, whichever way.")
    on_complete: dict[str, Any] | None
    on_failed: dict[str, Any] | None
    on_all: dict[str, Any] | None
    on_first_failed: dict[str, Any] | None
    callback_ids: list[UUID] = Field(description="The jobs that its last end submitted.")
    callback_error: str | None = Field(description="Why they could not be submitted.")
    first_failed_at: datetime | None = Field(description="When the first failure of this run called back.")
    first_failed_id: UUID | None = Field(description="The job that was submitted then.")
    metadata: dict[str, Any]
    created_at: datetime
    closed_at: datetime | None
    cancelled_at: datetime | None
    finished_at: datetime | None


class BatchesAnswer(Answer):
    batches: list[BatchAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null: this is the last.")


class BatchActionAnswer(Answer):
    jobs: int = Field(description="How many were cancelled, or put back.")
    done: bool = Field(description="False: it took too long; send the request again to go on.")
    batch: BatchAnswer


class StepAnswer(Answer):
    name: str
    type: Literal["step", "sleep", "event"]
    result: Any = Field(description="What the step returned, or the payload of the signal.")
    timed_out: bool = Field(description="The event did not come in time.")
    until: datetime | None = Field(description="End of a sleep or of the wait for an event; null: none.")
    attempt: int = Field(description="The attempt that reached it last.")
    begun_at: datetime
    finished_at: datetime | None = Field(description="Null: the job waits, or waited, for it.")


class StepsAnswer(Answer):
    steps: list[StepAnswer]


class SavedStepAnswer(Answer):
    id: UUID
    name: str


class SignalAnswer(Answer):
    id: UUID
    name: str
    created: bool = Field(description="False: a signal of this name came before, and counts.")


class TemplateAnswer(Answer):
    """A job template in one version, which never changes."""

    name: str
    version: int
    org: str
    kind: str
    queue: str
    priority: int
    max_attempts: int | None
    timeout_seconds: float | None
    limit_key: str | None
    cost: int
    cache: bool | None
    cache_for_seconds: float | None
    cache_version: str | None
    payload: Any
    variables: dict[str, Any]
    description: str | None
    created_at: datetime


class TemplatesAnswer(Answer):
    templates: list[TemplateAnswer]


class SubmittedJob(Answer):
    id: UUID
    created: bool = Field(description="False: the unique key names this job already.")


class SubmittedJobs(Answer):
    """Answer to an array: one entry per job, in its order."""

    jobs: list[SubmittedJob]


class SubmittedLines(Answer):
    """Answer to NDJSON: one id per line, in their order."""

    count: int
    created: int = Field(description="How many are new; the others were there under their unique key.")
    ids: list[UUID]


class ClaimedJobAnswer(Answer):
    id: UUID
    kind: str
    queue: str
    org: str
    payload: Any
    metadata: dict[str, Any]
    attempt: int
    max_attempts: int
    lease_token: int = Field(description="Send it with every write about this job.")
    lease_expires_at: datetime = Field(description="Heartbeat before.")
    lease_seconds: float
    timeout_seconds: float
    tags: list[str]
    traceparent: str | None
    created_at: datetime


class ClaimAnswer(Answer):
    jobs: list[ClaimedJobAnswer]


class HeartbeatAnswer(Answer):
    id: UUID
    lease_expires_at: datetime


class FinishAnswer(Answer):
    id: UUID
    state: JobState = Field(description="A failed attempt that is retried makes the job `scheduled`.")


class ArtifactAnswer(Answer):
    name: str
    size: int
    sha256: str = Field(description="In hex.")
    content_type: str
    attempt: int = Field(description="The attempt that left it; 0: an input.")
    created_at: datetime


class ArtifactsAnswer(Answer):
    artifacts: list[ArtifactAnswer]


class EventAnswer(Answer):
    seq: int
    at: datetime | None = Field(description="Null only for `forgotten`.")
    type: str
    data: dict[str, Any]


class EventsAnswer(Answer):
    """A page of a job's events."""

    events: list[EventAnswer]
    state: JobState
    last_seq: int = Field(description="Number of the newest event; more are there if it is above that of the last one.")


class LogLineAnswer(Answer):
    seq: int
    at: datetime
    stream: str
    line: str
    data: dict[str, Any] = Field(description="The fields given beside the line.")


class LogsAnswer(Answer):
    logs: list[LogLineAnswer]
    next_seq: int | None = Field(description="Pass as `from_seq` for the next page; null: this is the last so far.")


class AttemptAnswer(Answer):
    """A claim of a job and how it ended. What is null is forgotten, unless it is said here what else that means."""

    seq: int | None = Field(description="Number of the event that began it.")
    attempt: int | None = Field(description="As the job counted then; several have the same when one was given back.")
    worker_id: str | None
    outcome: (
        Literal[
            "running",
            "completed",
            "failed",
            "timeout",
            "snoozed",
            "suspended",
            "planned",
            "released",
            "lease_lost",
            "cancelled",
        ]
        | None
    ) = Field(description="Null: it has ended.")
    started_at: datetime | None
    ended_at: datetime | None = Field(description="Null, too, while it runs.")
    waited_seconds: float | None = Field(description="How long it could have been claimed before it was.")
    ran_seconds: float | None = Field(description="Until now while it runs.")
    error: dict[str, Any] | None = Field(description="Null, too, where there was none.")
    run_at: datetime | None = Field(description="When the job was to run again; null, too, where no time was set.")
    ended_seq: int | None = Field(description="Number of the event that ended it.")
    model: str | None = Field(description="That of the result, if it names one.")
    usage: dict[str, Any] | None = Field(description="That of the result, if it has it.")


class AttemptsAnswer(Answer):
    """Attempts of a job, oldest first."""

    attempts: list[AttemptAnswer]
    forgotten_to: int | None = Field(
        description="Events up to this number are forgotten: attempts that ended by then are missing."
    )
    next_after: int | None = Field(description="Pass as `after` for the next page; null: this is the last so far.")


class AppendAnswer(Answer):
    id: UUID
    last_seq: int = Field(description="Number of the job's newest event.")


class QueueAnswer(Answer):
    queue: str
    org: str
    state: Literal["active", "paused", "draining"] = Field(
        description="Paused: it hands out no jobs. Draining: it takes no new ones, and those it has are done."
    )
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


class QueuesAnswer(Answer):
    queues: list[QueueAnswer]


class WorkerAnswer(Answer):
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
    live: bool = Field(description="Its last heartbeat is younger than a minute.")


class WorkersAnswer(Answer):
    workers: list[WorkerAnswer]


class HorizonAnswer(Answer):
    """Who keeps dead rows of the queue from being removed: the oldest transaction, replication slot or standby."""

    kind: Literal["session", "prepared", "slot", "standby"]
    pid: int | None = Field(description="The server process: select pg_terminate_backend(pid).")
    name: str | None = Field(description="Its application, prepared transaction or slot.")
    username: str | None
    database: str | None
    state: str | None
    visible: bool = Field(description="False: without pg_read_all_stats state, age in seconds and query are hidden.")
    age_seconds: float | None
    age_transactions: int
    query: str | None
    dead_rows: int = Field(description="Dead rows in the live tables.")
    jobs_bytes: int = Field(description="Size of the table of live jobs with its indexes.")


class StatsAnswer(Answer):
    """Jobs by state over all queues, then queue by queue. `processing` is `running` in Cerebro's word."""

    scheduled: int
    waiting: int
    queued: int
    running: int
    processing: int
    completed: int
    failed: int
    cancelled: int
    total: int
    workers: int
    horizon: HorizonAnswer | None = Field(description="Null: nobody has for more than 5 s.")
    queues: list[QueueAnswer]


class HealthAnswer(Answer):
    status: Literal["healthy"]
    service: Literal["queue-pg"]
    database: Literal["connected", "disconnected"]


class AliveAnswer(Answer):
    status: Literal["alive"]


class ReadyAnswer(Answer):
    status: Literal["ready"]


class CerebroStatus(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class CerebroSubmitted(Answer):
    job_id: UUID
    id: UUID
    status: CerebroStatus


class CerebroJob(Answer):
    job_id: UUID
    id: UUID
    messages: list[Any]
    metadata: dict[str, Any]
    payload: Any
    attempt: int
    lease_token: int
    lease_expires_at: datetime


class CerebroResult(Answer):
    job_id: UUID
    id: UUID
    status: CerebroStatus
    result: Any
    error: dict[str, Any] | None
    metadata: dict[str, Any]
    attempt: int
    created_at: datetime
    finished_at: datetime | None


class ErrorAnswer(BaseModel):
    """Every refusal. More fields say what it is about."""

    model_config = ConfigDict(extra="allow")

    detail: str = Field(description="What happened, and what to do next.")
    code: str = Field(description="A word for programs.", examples=["job_not_found"])
    field: str | None = Field(None, description="Path of the field that was refused.")
    suggestions: list[str] | None = None
    state: str | None = Field(None, description="The job's state, when that is what is in the way.")
    line: int | None = Field(None, description="Line of an NDJSON body, from 1.")
    index: int | None = Field(None, description="Index in an array body, from 0.")
