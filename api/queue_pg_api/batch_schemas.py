"""Bodies and queries of batches."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from queue_pg.batch_model import BatchState
from queue_pg.models import NewJob
from queue_pg_api.schemas import (
    MAX_PAGE_JOBS,
    Attempts,
    Body,
    Cost,
    Key,
    Name,
    Priority,
    Query,
    Seconds,
    TimeoutSeconds,
    WaitSeconds,
)


class CallbackBody(Body):
    """A job that the end of a batch submits. Its payload gets the batch and its counts as `batch`."""

    kind: Name = Field(description="Which handler runs it.", examples=["report"])
    payload: dict[str, Any] = Field(default_factory=dict[str, Any])
    queue: Name = "default"
    priority: Priority = 0
    delay_seconds: Seconds | None = None
    max_attempts: Attempts | None = None
    timeout_seconds: TimeoutSeconds | None = None
    tags: Annotated[list[Name], Field(max_length=64)] = Field(default_factory=list[str])
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    limit_key: Key | None = Field(None, description="Its limit key.")
    cost: Cost = Field(1, description="Units each attempt takes from a rate.")

    def to_new_job(self) -> NewJob:
        return NewJob(
            kind=self.kind,
            payload=self.payload,
            queue=self.queue,
            priority=self.priority,
            delay=None if self.delay_seconds is None else timedelta(seconds=self.delay_seconds),
            max_attempts=self.max_attempts,
            timeout=None if self.timeout_seconds is None else timedelta(seconds=self.timeout_seconds),
            tags=self.tags,
            metadata=self.metadata,
            limit_key=self.limit_key,
            cost=self.cost,
        )


def parse_callback(value: object) -> object:
    """Take a bare URL for the webhook to it."""
    if not isinstance(value, str):
        return value
    if not value.lower().startswith(("http://", "https://")):
        raise ValueError("should be a job, an object with a kind, or the URL of a webhook")
    return {"kind": "webhook", "payload": {"url": value}}


CallbackInput = Annotated[
    CallbackBody,
    BeforeValidator(parse_callback),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "uri", "description": "A webhook: POST of the event as JSON."},
                CallbackBody.model_json_schema(),
            ]
        }
    ),
]


class BatchBody(Body):
    """A batch to make. Everything may be left out."""

    name: Name | None = Field(None, description="For people; need not be unique.", examples=["import"])
    on_complete: CallbackInput | None = Field(None, description="Submitted when all jobs have completed.")
    on_failed: CallbackInput | None = Field(None, description="Submitted when it ended with one failed or cancelled.")
    on_all: CallbackInput | None = Field(None, description="Submitted when it has ended, whichever way.")
    on_first_failed: CallbackInput | None = Field(None, description="Submitted as soon as one has failed for good.")
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any], description="Yours; callbacks get it.")


class BatchFilter(Query):
    """Which batches to list, newest first."""

    state: BatchState | None = None
    name: Name | None = None
    limit: int = Field(50, ge=1, le=MAX_PAGE_JOBS)
    cursor: str | None = Field(None, max_length=500, description="`next_cursor` of the page before.")


class BatchWait(Query):
    """How long to wait for the batch's end."""

    wait: WaitSeconds = Field(0, description="Answer when the batch has ended, at the latest after this many seconds.")


class CloseBody(Body):
    """No fields."""


class RetryFailedBody(Body):
    max_attempts: Attempts | None = Field(None, description="New limit of each job; default: as it was.")
    and_cancelled: bool = Field(False, description="Cancelled jobs too.")
