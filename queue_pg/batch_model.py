"""Batches as the library hands them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from queue_pg.payloads import decode_or_mark


class BatchState(StrEnum):
    """`open` takes jobs, `closed` waits for the end of those it has; the others are how it ended."""

    OPEN = "open"
    CLOSED = "closed"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self not in (BatchState.OPEN, BatchState.CLOSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch and its counts, as one row of `queue_pg.batch_progress`.

    What is unfinished is told by state too, except in lists: there `scheduled`, `waiting`, `queued` and `running` are
    None. `run` grows when a job of a finished batch is retried; `callback_ids` are the jobs its last end submitted.
    """

    id: UUID
    org: str
    name: str | None
    state: BatchState
    run: int
    total: int
    scheduled: int | None
    waiting: int | None
    queued: int | None
    running: int | None
    completed: int
    failed: int
    cancelled: int
    unfinished: int
    percent: float
    on_complete: dict[str, Any] | None
    on_failed: dict[str, Any] | None
    on_all: dict[str, Any] | None
    on_first_failed: dict[str, Any] | None
    callback_ids: list[UUID]
    callback_error: str | None
    first_failed_at: datetime | None
    first_failed_id: UUID | None
    metadata: dict[str, Any]
    created_at: datetime
    closed_at: datetime | None
    cancelled_at: datetime | None
    finished_at: datetime | None

    @property
    def finished(self) -> bool:
        return self.state.finished


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPage:
    """One page of `Queue.list_batches`, newest first. Give `next_cursor` for the next one; None: this is the last."""

    batches: list[Batch]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAction:
    """What cancelling or retrying a batch has done: to how many `jobs`, and the batch after it.

    Not `done`: the time was over before all jobs had their turn; call again to go on.
    """

    batch: Batch
    jobs: int
    done: bool


def batch(row: Mapping[str, Any]) -> Batch:
    """Return the batch of a row of sql/get_batch.sql, whose documents are JSON text."""
    found: dict[str, Any] = {**row, "state": BatchState(row["state"])}
    for name in ("on_complete", "on_failed", "on_all", "on_first_failed", "metadata"):
        found[name] = decode_or_mark(found[name])
    return Batch(**found)
