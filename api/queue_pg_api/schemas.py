"""Bodies and queries as pydantic models: what is checked, and what /openapi.json is made from.

Batches, events, schedules, templates, workers that pull and Cerebro have theirs in files of their own. Bodies are
strict (no "5" for 5) and refuse unknown fields by name.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from queue_pg.models import JobState, NewJob, Parent
from queue_pg.task_model import MAX_OFFSET

MAX_WAIT_SECONDS = 300
MAX_CLAIM_JOBS = 1_000
MAX_PAGE_JOBS = 1_000
MAX_DELAY_SECONDS = 100 * 365 * 86_400
MAX_CACHE_SECONDS = 100 * 365 * 86_400
MAX_TIMEOUT_SECONDS = 365 * 86_400
MAX_LEASE_SECONDS = 86_400

PRIORITY_NAMES = {"critical": 20, "high": 10, "normal": 0, "low": -10, "batch": -20}


def parse_priority(value: object) -> object:
    """Turn a name of a priority into its number."""
    if isinstance(value, str):
        if value.lower() not in PRIORITY_NAMES:
            raise ValueError(f"should be an integer or one of {', '.join(PRIORITY_NAMES)}")
        return PRIORITY_NAMES[value.lower()]
    return value


def parse_timestamp(value: object) -> object:
    """Read an RFC 3339 timestamp; a time zone is needed, because guessing one runs jobs hours early or late."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not 19 <= len(value) <= 40:
        raise ValueError('should be an RFC 3339 timestamp such as "2026-07-01T12:00:00Z"')
    try:
        parsed = datetime.fromisoformat(value)
        if parsed.tzinfo is None:
            raise ValueError("needs a time zone: end it with Z or an offset such as +02:00")
        return parsed.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999") from None
    except ValueError as error:
        if "time zone" in str(error):
            raise
        raise ValueError('should be an RFC 3339 timestamp such as "2026-07-01T12:00:00Z"') from None


Priority = Annotated[
    int,
    BeforeValidator(parse_priority),
    Field(ge=-32_768, le=32_767, description="Higher runs first. An integer, or a name: " + ", ".join(PRIORITY_NAMES)),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": -32_768, "maximum": 32_767},
                {"type": "string", "enum": list(PRIORITY_NAMES)},
            ]
        }
    ),
]
Cost = Annotated[int, Field(ge=0, le=1_000_000)]
Timestamp = Annotated[
    datetime, BeforeValidator(parse_timestamp), WithJsonSchema({"type": "string", "format": "date-time"})
]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Key = Annotated[str, Field(min_length=1, max_length=255)]
Seconds = Annotated[float, Field(ge=0, le=MAX_DELAY_SECONDS)]
CacheSeconds = Annotated[float, Field(ge=0, le=MAX_CACHE_SECONDS)]
TimeoutSeconds = Annotated[float, Field(ge=0.001, le=MAX_TIMEOUT_SECONDS)]
LeaseSeconds = Annotated[float, Field(ge=0.1, le=MAX_LEASE_SECONDS)]
WaitSeconds = Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)]
LeaseToken = Annotated[int, Field(ge=0, le=2**63 - 1)]
Attempts = Annotated[int, Field(ge=1, le=1_000)]
JobKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
OnUnsuccessful = Literal["cancel", "run", "fail"]


def parse_uuid(value: object) -> object:
    """Read an id; UUID() alone also takes braces, "urn:uuid:" and hyphens anywhere."""
    if isinstance(value, str) and len(value) in {32, 36}:
        try:
            return UUID(value)
        except ValueError:
            pass
    raise ValueError("should be a UUID")


Id = Annotated[UUID, BeforeValidator(parse_uuid), WithJsonSchema({"type": "string", "format": "uuid"})]


class Body(BaseModel):
    """A request body."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Query(BaseModel):
    """The query string; values arrive as text."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoBody(Body):
    """No request body is read."""


class NoQuery(Query):
    """No query parameters."""


class ArtifactUpload(Query):
    lease_token: LeaseToken | None = Field(None, description="Of the claim; needed while the job runs.")
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(
        None, description="In hex. A content that has another one is refused."
    )


class ParentBody(Body):
    """A job to wait for."""

    job: Annotated[str, Field(min_length=1, max_length=100)]
    name: JobKey | None = None
    on_unsuccessful: OnUnsuccessful = "cancel"

    def to_parent(self) -> Parent:
        return Parent(self.job, self.name, self.on_unsuccessful)


def parse_parent(value: object) -> object:
    """Take a bare text for the id or key of a parent."""
    return {"job": value} if isinstance(value, str) else value


ParentInput = Annotated[
    ParentBody,
    BeforeValidator(parse_parent),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "description": "The id of a job, or a key of the same array."},
                {
                    "type": "object",
                    "properties": {
                        "job": {"type": "string"},
                        "name": {"type": "string", "description": "For templates: {{ parents.<name>.output }}."},
                        "on_unsuccessful": {"enum": ["cancel", "run", "fail"], "default": "cancel"},
                    },
                    "required": ["job"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class SubmitBody(Body):
    """A job to submit. Only `kind` is needed."""

    kind: Name = Field(description="Which handler runs it.", examples=["chat"])
    payload: Any = Field(
        default_factory=dict[str, Any],
        description="Any JSON the handler understands.",
        examples=[{"messages": [{"role": "user", "content": "Say hello."}]}],
    )
    queue: Name = "default"
    priority: Priority = 0
    run_at: Timestamp | None = Field(None, description="Not before this time.")
    scheduled_for: Timestamp | None = Field(None, description="Another name of `run_at`.")
    delay_seconds: Seconds | None = Field(None, description="Not before this long from now. Excludes `run_at`.")
    max_attempts: Attempts | None = Field(None, description="Default: the kind's.")
    timeout_seconds: TimeoutSeconds | None = Field(None, description="Of one attempt. Default: the kind's.")
    expires_at: Timestamp | None = Field(None, description="Fails with `expired` when it has not started by then.")
    unique_key: Key | None = Field(None, description="Submitting the same key again names the same job.")
    tags: Annotated[list[Name], Field(max_length=64)] = Field(default_factory=list[str])
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any], description="Yours; workers may read it.")
    limit_key: Key | None = Field(None, description="Jobs with one key share its limit and their turns in a queue.")
    cost: Cost = Field(1, description="Units each attempt takes from a rate.")
    cache: bool | None = Field(
        None, description="May be answered by identical work of the same kind and payload, or share it in flight."
    )
    cache_for_seconds: CacheSeconds | None = Field(None, description="How old such an answer may be. Asks for `cache`.")
    cache_version: Key | None = Field(None, description="Compared too: change it to forget. Asks for `cache`.")
    traceparent: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="W3C trace context; taken from the header when absent here."
    )
    batch_id: Id | None = Field(None, description="The open batch that it is added to.")
    key: JobKey | None = Field(None, description="What `depends_on` of other jobs of the same array call this one.")
    depends_on: Annotated[list[ParentInput], Field(max_length=100_000)] = Field(
        default_factory=list[ParentInput], description="The jobs to wait for. Not in NDJSON."
    )

    def to_new_job(self, *, unique_key: str | None = None, traceparent: str | None = None) -> NewJob:
        """Build the library's form; the arguments are what the request's headers say."""
        return NewJob(
            kind=self.kind,
            payload=self.payload,
            queue=self.queue,
            priority=self.priority,
            run_at=self.run_at or self.scheduled_for,
            delay=None if self.delay_seconds is None else timedelta(seconds=self.delay_seconds),
            max_attempts=self.max_attempts,
            timeout=None if self.timeout_seconds is None else timedelta(seconds=self.timeout_seconds),
            expires_at=self.expires_at,
            unique_key=self.unique_key if self.unique_key is not None else unique_key,
            tags=self.tags,
            metadata=self.metadata,
            traceparent=self.traceparent or traceparent,
            batch_id=self.batch_id,
            key=self.key,
            depends_on=[parent.to_parent() for parent in self.depends_on],
            limit_key=self.limit_key,
            cost=self.cost,
            cache=self.cache,
            cache_for=None if self.cache_for_seconds is None else timedelta(seconds=self.cache_for_seconds),
            cache_version=self.cache_version,
        )


class ChainBody(SubmitBody):
    """A job that follows another one."""

    name: JobKey = Field("parent", description="What its templates call the parent.")
    on_unsuccessful: OnUnsuccessful = Field("cancel", description="What becomes of it when the parent fails.")


class TaskBody(Body):
    """A task to submit: exactly one of `description`, `prompt`, `messages`, `type` and `cmd`."""

    description: str | None = Field(None, description="Planned into subtasks.", examples=["Build a REST API"])
    prompt: str | None = Field(None, description="For a chat model.", examples=["Say hello."])
    messages: list[dict[str, Any]] | None = Field(None, description="For a chat model, in OpenAI's format.")
    type: str | None = Field(None, description="A kind of job, with its `payload`.")
    payload: Any = Field(None, description="Beside `type`.")
    cmd: list[str] | None = Field(None, description="A command: the program and its arguments.")
    input: Any = Field(None, description="Beside `cmd`: what it reads.")
    env: dict[str, str] | None = Field(None, description="Beside `cmd`.")
    timeout_secs: TimeoutSeconds | None = Field(None, description="Beside `cmd`.")
    planner: Literal["rules", "llm"] | None = Field(
        None, description="Beside `description`; default: the setting PLANNER."
    )
    model: Name | None = Field(None, description="The model of `prompt`, `messages` and the planner llm.")
    name: Name | None = Field(None, description="For people.")
    queue: Name = Field("default", description="Of the task itself; its subtasks have `subtask_queue`.")
    subtask_queue: Name | None = Field(None, description="Beside `description`; default: the setting SUBTASK_QUEUE.")
    priority: Priority = 0
    scheduled_for: Timestamp | None = Field(None, description="Not before this time; null: now.")
    max_attempts: Attempts | None = Field(None, description="Default: the kind's.")
    timeout_seconds: TimeoutSeconds | None = Field(None, description="Of one attempt. Default: the kind's.")
    unique_key: Key | None = Field(None, description="Submitting the same key again names the same task.")
    tags: Annotated[list[Name], Field(max_length=64)] = Field(default_factory=list[str])
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any], description="Gets `task`: name, scheduled_for.")
    parent_task_id: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="A task that it follows: it waits while that one lives."
    )


class TaskFilter(Query):
    """Which tasks to list, newest first."""

    state: JobState | None = None
    parent_task_id: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="Only subtasks of this one, and those chained to it."
    )
    limit: int = Field(50, ge=1, le=MAX_PAGE_JOBS)
    offset: int = Field(0, ge=0, le=MAX_OFFSET, description="How many to pass over; `cursor` goes further.")
    cursor: str | None = Field(None, max_length=500, description="`next_cursor` of the page before.")


class TaskRetryBody(Body):
    max_attempts: Attempts | None = Field(None, description="Attempts from now on; default: as many as it had.")


Vocabulary = Annotated[
    Literal["zbrain"] | None,
    Field(description="zbrain: `state` is one of Pending, Running, Succeeded, Failed, Retrying, Canceled."),
]


class JobFilter(Query):
    """Which jobs to list, newest first."""

    state: JobState | None = None
    kind: Name | None = None
    queue: Name | None = None
    org: Name | None = None
    batch: UUID | None = None
    parent: UUID | None = None
    tag: Name | None = None
    key: Key | None = Field(None, description="The unique key.")
    rerun_of: UUID | None = Field(None, description="Only reruns of this job.")
    error_code: Name | None = Field(None, description="The `code` of the job's error.")
    created_after: Timestamp | None = Field(None, description="Submitted then or later.")
    created_before: Timestamp | None = Field(None, description="Submitted earlier.")
    limit: int = Field(50, ge=1, le=MAX_PAGE_JOBS)
    cursor: str | None = Field(None, max_length=500, description="`next_cursor` of the page before.")
    vocab: Vocabulary = None


class JobWait(Query):
    """How long to wait for the job's end."""

    wait: WaitSeconds = Field(0, description="Answer when the job has ended, at the latest after this many seconds.")
    vocab: Vocabulary = None


class CancelBody(Body):
    reason: Annotated[str, Field(max_length=2_000)] | None = Field(None, description="Stored as the error's message.")


class CancelJobBody(CancelBody):
    lease_token: LeaseToken | None = Field(
        None, description="Of the claim: only while that is current. For the worker that has the job."
    )


class RetryBody(Body):
    max_attempts: Attempts | None = Field(None, description="Attempts from now on; default: as many as it had.")
    fresh: bool = Field(False, description="True: do the steps again that it has finished.")


class ReprioritizeBody(Body):
    priority: Priority


class SignalBody(Body):
    payload: Any = Field(None, description="What `wait_for_event` returns to the handler.")


class RerunBody(Body):
    """What the new job is to have otherwise than its origin."""

    payload: Any = Field(None, description="Replaces the payload; null: the origin's.")
    payload_patch: dict[str, Any] | None = Field(
        None, description="Merged into the payload, null removing a field (RFC 7396). Excludes `payload`."
    )
    model: Name | None = Field(None, description="The `model` in the payload of a job of kind chat.")
    queue: Name | None = None
    priority: Priority | None = None
    run_at: Timestamp | None = Field(None, description="Not before this time.")
    delay_seconds: Seconds | None = Field(None, description="Not before this long from now. Excludes `run_at`.")
    max_attempts: Attempts | None = None
    timeout_seconds: TimeoutSeconds | None = Field(None, description="Of one attempt.")
    tags: Annotated[list[Name], Field(max_length=64)] | None = None
    metadata: dict[str, Any] | None = None


class ErrorDetails(BaseModel):
    """Why an attempt failed. Fields beside code and message are stored too."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    message: str
    code: Annotated[str, Field(min_length=1, max_length=200)] = "error"


def parse_error(value: object) -> object:
    """Take a bare text for the message of an error."""
    return {"message": value} if isinstance(value, str) else value


ErrorInput = Annotated[
    ErrorDetails,
    BeforeValidator(parse_error),
    Field(description="A text, or an object with `message`, perhaps `code`, and fields of your own."),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"message": {"type": "string"}, "code": {"type": "string"}},
                    "required": ["message"],
                    "additionalProperties": True,
                },
            ]
        }
    ),
]


class PauseBody(Body):
    until: Timestamp | None = Field(None, description="Resumes by itself then; absent: until resumed.")


class ResumeBody(Body):
    """No fields."""


class DrainBody(Body):
    """No fields."""


# Apart from `default`, or queue-pg's own workers would take the jobs from under the workers that pull.
