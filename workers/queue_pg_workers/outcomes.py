"""Outcomes that the worker decides; those that handlers return or raise are made by `queue_pg.outcomes`.

Making an outcome never fails, whatever user code hands in.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from queue_pg import outcomes
from queue_pg.errors import InvalidJob
from queue_pg.models import ClaimedJob, Fail, Outcome, Snooze
from queue_pg.payloads import encode_json, error_object, sanitise_text

MAX_DELAY = timedelta(days=365)


def returned(job_id: UUID, lease_token: int, value: Any) -> Outcome:
    """Return the outcome for what a handler returned."""
    try:
        if isinstance(value, Snooze):
            value = Snooze(_bounded(value.delay))
        elif isinstance(value, Fail):
            delay = None if value.delay is None else _bounded(value.delay)
            # Code and message are said already; a detail of that name would collide with them.
            details = {str(name): detail for name, detail in (value.details or {}).items()}
            details = {name: detail for name, detail in details.items() if name not in ("code", "message")}
            value = replace(value, delay=delay, details=details)
        return outcomes.of_return(job_id, lease_token, value)
    except Exception as error:
        # A serialiser of the user's, or a Snooze made of something else than a duration.
        return result_invalid(job_id, lease_token, f"{type(error).__name__}: {sanitise_text(error)}")


def raised(job_id: UUID, lease_token: int, error: BaseException) -> Outcome:
    """Return the outcome for what a handler raised: `code` is the name of the exception's class."""
    return outcomes.of_error(job_id, lease_token, error)


def payload_unreadable(job: ClaimedJob, reason: str) -> Outcome:
    return _discarded(job.id, job.lease_token, "payload_unreadable", reason)


def payload_invalid(job: ClaimedJob, invalid: InvalidJob) -> Outcome:
    return _discarded(job.id, job.lease_token, "payload_invalid", invalid.message, field=invalid.field)


def result_invalid(job_id: UUID, lease_token: int, reason: str) -> Outcome:
    return _discarded(job_id, lease_token, "result_invalid", reason)


def timed_out(job: ClaimedJob) -> Outcome:
    message = f"the attempt ran longer than its timeout of {job.timeout_seconds:g} s"
    error = encode_json(error_object("timeout", message, timeout_seconds=job.timeout_seconds), field="error")
    return Outcome(id=job.id, lease_token=job.lease_token, outcome="fail", error=error)


def released(job: ClaimedJob) -> Outcome:
    return Outcome(id=job.id, lease_token=job.lease_token, outcome="release")


def _discarded(job_id: UUID, lease_token: int, code: str, message: str, **details: Any) -> Outcome:
    error = encode_json(error_object(code, message, **details), field="error")
    return Outcome(id=job_id, lease_token=lease_token, outcome="discard", error=error)


def _bounded(delay: timedelta) -> timedelta:
    return min(max(delay, timedelta(0)), MAX_DELAY)
