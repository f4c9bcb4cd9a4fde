"""The attempts of a job, as `Queue.attempts` hands them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from queue_pg.payloads import decode_or_mark

FORGOTTEN = "forgotten"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One claim of a job and how it ended. What is None is forgotten, unless it is said here what else that means.

    `attempt` is its number as the job counted it then; several have the same when one was given back. `outcome` is
    running, completed, failed, timeout, snoozed, suspended, planned, released, lease_lost or cancelled; None: it has
    ended. `waited_seconds` is how long it could have been claimed before it was, `ran_seconds` lasts until now while it
    runs. `error` is None where there was none, `run_at` where no time to run again was set. `seq` and `ended_seq`
    are the numbers of the events that began and ended it. `model` and `usage` are those of the result, if it has them.
    """

    seq: int | None
    attempt: int | None
    worker_id: str | None
    outcome: str | None
    started_at: datetime | None
    ended_at: datetime | None
    waited_seconds: float | None
    ran_seconds: float | None
    error: dict[str, Any] | None
    run_at: datetime | None
    ended_seq: int | None
    model: str | None
    usage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class AttemptPage:
    """Attempts of a job, oldest first. Give `next_after` as `after` for the next page; None: that was the last so far.

    `forgotten_to` is the number of the last event whose retention has passed: attempts that ended by then are missing.
    """

    attempts: list[Attempt]
    forgotten_to: int | None
    next_after: int | None


def page(found: Sequence[Mapping[str, Any]], limit: int) -> AttemptPage:
    """Return at most `limit` attempts of the rows of sql/attempts.sql, of which one more was asked for."""
    told = [row for row in found if row["ordinality"] is not None]
    forgotten_to = told.pop(0)["seq"] if told and told[0]["outcome"] == FORGOTTEN else None
    attempts = [_attempt(row) for row in told[:limit]]
    if not attempts or told[0]["found"] - (forgotten_to is not None) == len(attempts):
        return AttemptPage(attempts, forgotten_to, None)
    last = attempts[-1]
    return AttemptPage(attempts, forgotten_to, last.seq if last.ended_seq is None else last.ended_seq)


def _attempt(row: Mapping[str, Any]) -> Attempt:
    fields = {name: value for name, value in row.items() if name not in {"ordinality", "found"}}
    return Attempt(**{**fields, "error": decode_or_mark(row["error"]), "usage": decode_or_mark(row["usage"])})
