"""Bodies of what pull workers do under a lease: claim, keep it, steps, and how the attempt ends."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from queue_pg.task_model import MAX_DESCRIPTION_CHARS
from queue_pg_api.schemas import (
    MAX_CLAIM_JOBS,
    Attempts,
    Body,
    ErrorInput,
    LeaseSeconds,
    LeaseToken,
    Name,
    Seconds,
    TimeoutSeconds,
    Timestamp,
    WaitSeconds,
)

MAX_SUBTASKS = 100
MAX_STEP_SECONDS = 10 * 365 * 86_400


class ClaimBody(Body):
    """What a pull worker asks for."""

    worker: Name = Field(description="Who claims: unique per process.", examples=["go-worker-1"])
    queues: Annotated[list[Name], Field(min_length=1, max_length=100)] = Field(default_factory=lambda: ["default"])
    kinds: Annotated[list[Name], Field(min_length=1, max_length=1_000)] | None = Field(
        None, description="Only these kinds; absent: all."
    )
    max: Annotated[int, Field(ge=1, le=MAX_CLAIM_JOBS)] = Field(1, description="At most this many jobs.")
    wait: WaitSeconds = Field(0, description="Wait up to this many seconds for the first job.")
    lease_seconds: LeaseSeconds | None = Field(None, description="Default: the queue's lease.")


class HeartbeatBody(Body):
    lease_token: LeaseToken
    lease_seconds: LeaseSeconds | None = Field(
        None, description="Default: the queue's lease, whatever the claim asked for."
    )


class CompleteBody(Body):
    lease_token: LeaseToken
    result: Any = None


class FailBody(Body):
    lease_token: LeaseToken
    error: ErrorInput
    retry: bool = Field(True, description="False: never again, whatever attempts are left.")
    delay_seconds: Seconds | None = Field(None, description="Replaces the kind's backoff.")


StepName = Annotated[str, Field(min_length=1, max_length=200)]


class SaveStepBody(Body):
    """A step that is done."""

    lease_token: LeaseToken
    name: StepName = Field(examples=["download"])
    result: Any = Field(None, description="Any JSON, 1 MiB at most.")


class SleepBody(Body):
    """A sleep: one of `delay_seconds` and `until`."""

    lease_token: LeaseToken
    name: StepName = Field(examples=["cool down"])
    delay_seconds: Annotated[float, Field(ge=0, le=MAX_STEP_SECONDS)] | None = Field(
        None, description="From when it is first reached."
    )
    until: Timestamp | None = None


class WaitForEventBody(Body):
    """The wait for a signal."""

    lease_token: LeaseToken
    name: StepName = Field(description="Of the signal.", examples=["approved"])
    timeout_seconds: Annotated[float, Field(ge=0, le=MAX_STEP_SECONDS)] | None = Field(
        None, description="From when it is first reached; absent: no end."
    )


class PlanBody(Body):
    """What a job is split into."""

    lease_token: LeaseToken
    subtasks: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_DESCRIPTION_CHARS)]],
        Field(min_length=1, max_length=MAX_SUBTASKS, description="What each is to do."),
    ] = Field(examples=[["Open it", "Read it"]])
    queue: Name | None = Field(None, description="Default: the task's `subtask_queue`, else `work_queue`.")
    kind: Name | None = Field(None, description="Which handler runs them. Default: `subtask`.")
    max_attempts: Attempts | None = Field(None, description="Of each subtask. Default: the task's, else the kind's.")
    timeout_seconds: TimeoutSeconds | None = Field(
        None, description="Of each subtask. Default: the task's, else the kind's."
    )


class SnoozeBody(Body):
    lease_token: LeaseToken
    delay_seconds: Seconds = Field(description="Runs again after this long.")


class LeaseBody(Body):
    lease_token: LeaseToken
