"""Bodies, queries and answers of actions on many jobs, of the deletion of one, and of the scale of a queue."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from queue_pg.action_model import JobFilter
from queue_pg.models import JobState
from queue_pg_api.answers import Answer
from queue_pg_api.schemas import Attempts, Body, Id, Key, Name, Priority, Query, Timestamp


class ActionFilter(Body):
    """Which jobs: those to which all that is given applies, with the words of `GET /jobs`."""

    all: Literal[True] | None = Field(None, description="Every job. Alone; without it an empty filter is refused.")
    state: JobState | None = Field(None, strict=False)
    kind: Name | None = None
    queue: Name | None = None
    org: Name | None = None
    batch: Id | None = None
    parent: Id | None = None
    tag: Name | None = None
    key: Key | None = Field(None, description="The unique key.")
    rerun_of: Id | None = None
    error_code: Name | None = Field(None, description="The `code` of the job's error.")
    created_after: Timestamp | None = Field(None, description="Submitted then or later.")
    created_before: Timestamp | None = Field(None, description="Submitted earlier.")

    def to_filter(self) -> JobFilter:
        return JobFilter(
            state=self.state,
            kind=self.kind,
            queue=self.queue,
            tag=self.tag,
            batch_id=self.batch,
            parent_id=self.parent,
            unique_key=self.key,
            rerun_of=self.rerun_of,
            error_code=self.error_code,
            created_after=self.created_after,
            created_before=self.created_before,
            all=self.all or False,
        )


class ActionBody(Body):
    """An action, and the jobs it is for."""

    action: Literal["cancel", "retry", "reprioritize", "delete"] = Field(
        description="`cancel` and `reprioritize` are for unfinished jobs, `retry` for failed ones (or cancelled ones, "
        "if the filter has that state), `delete` for those that have ended."
    )
    filter: ActionFilter
    dry_run: bool = Field(False, description="True: only count the jobs that match.")
    reason: Annotated[str, Field(max_length=2_000)] | None = Field(None, description="Beside `cancel`.")
    priority: Priority | None = Field(None, description="Beside `reprioritize`.")
    max_attempts: Attempts | None = Field(None, description="Beside `retry`; default: as many as each had.")
    fresh: bool = Field(False, description="Beside `retry`: do the steps again that they have finished.")
    cursor: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="`cursor` of an answer with `done` false: go on there."
    )


class DeleteQuery(Query):
    """Whether a job may be deleted that has not ended."""

    cancel: bool = Field(False, description="Cancel it first when it has not ended.")


class ActionAnswer(Answer):
    """What an action on many jobs has done."""

    action: str
    dry_run: bool
    matched: int = Field(description="Jobs that match, and that the action is for.")
    changed: int
    skipped: dict[str, int] = Field(
        description="The others by reason: `locked` by a transaction, `gone` (changed meanwhile), `same_priority`, "
        "`awaited` (a waiting child may need its result), `incomplete` (a task whose subtask is forgotten).",
        examples=[{"locked": 1}],
    )
    done: bool = Field(description="False: it took too long. Send the request again with `cursor`.")
    cursor: str | None


class ScaleQuery(Query):
    """How the workers of a queue are to be counted."""

    slots: int | None = Field(
        None, ge=1, le=100_000, description="Jobs that a worker runs at once. Default: as those that live do, else 10."
    )
    jobs_per_worker: float | None = Field(
        None, ge=0.001, le=1e9, description="One worker for as many jobs queued or running. Default: its slots."
    )
    target_wait: float | None = Field(
        None, ge=0.001, le=31_536_000, description="Instead: what is queued is to start within as many seconds."
    )
    job_seconds: float | None = Field(
        None, ge=0.000001, le=31_536_000, description="How long a job takes. Default: as the newest ones took."
    )
    min: int = Field(0, ge=0, le=100_000, description="Workers at least, unless the queue is paused or draining.")
    max: int = Field(100, ge=0, le=100_000, description="Workers at most.")


class ScaleAnswer(Answer):
    """How many workers a queue needs, and by what."""

    queue: str
    desired_workers: int
    state: Literal["active", "paused", "draining"]
    queued: int = Field(description="Counted as far as it matters for `max`.")
    running: int
    startable: int = Field(description="Of those that are queued: how many limits and pauses let start now.")
    slots_per_worker: int
    seconds_per_job: float | None
