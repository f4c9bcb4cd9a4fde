"""What a handler did, as the Outcome to record. Values are outcomes too: Snooze, Cancel, Fail and Plan are returned.

Nothing here raises, whatever a handler returned: the failure path must not fail.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, cast
from uuid import UUID

from pydantic_core import to_jsonable_python

from queue_pg.errors import EventTimeout, InvalidJob, InvalidStep
from queue_pg.models import Cancel, Fail, Outcome, Plan, Snooze
from queue_pg.payloads import DEFAULT_MAX_PAYLOAD_BYTES, encode_json, error_object, sanitise_text
from queue_pg.suspension import is_suspension

MAX_DELAY: Final = timedelta(days=365)


def of_return(
    job_id: UUID | str, lease_token: int, value: Any, *, max_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES
) -> Outcome:
    """Return the outcome for a value that a handler returned.

    Snooze, Cancel, Fail and Plan mean what they say; any other value is the result: JSON, or pydantic models,
    dataclasses, datetimes and the like, which become JSON. A result that cannot be stored fails the job for good, since
    the same handler would return it again.
    """
    if value is None:
        return Outcome(job_id, lease_token, "complete")
    try:
        if isinstance(value, Snooze):
            return Outcome(id=job_id, lease_token=lease_token, outcome="snooze", delay=_bounded(value.delay))
        if isinstance(value, Cancel):
            error = _error("cancelled", value.reason)
            return Outcome(id=job_id, lease_token=lease_token, outcome="cancel", error=error)
        if isinstance(value, Fail):
            outcome = "fail" if value.retry else "discard"
            delay = None if value.delay is None else _bounded(value.delay)
            error = _error(value.code, value.message, value.details)
            return Outcome(id=job_id, lease_token=lease_token, outcome=outcome, error=error, delay=delay)
        if isinstance(value, Plan):
            return Outcome(job_id, lease_token, "plan", result=_plan(value))
        result = encode_result(value, max_bytes=max_bytes)
    except InvalidJob as refused:
        return discarded(job_id, lease_token, "result_invalid", refused.message)
    except Exception as error:
        # A Snooze made of something else than a duration, say.
        return discarded(job_id, lease_token, "result_invalid", f"{type(error).__name__}: {sanitise_text(error)}")
    return Outcome(id=job_id, lease_token=lease_token, outcome="complete", result=result)


def of_error(job_id: UUID | str, lease_token: int, error: BaseException) -> Outcome:
    """Return the outcome for an exception that a handler raised: a failed attempt, retried while attempts are left.

    Suspended is no failure: the job waits. What the next attempt would meet again is not retried.
    """
    if is_suspension(error):
        return Outcome(job_id, lease_token, "wait")
    if isinstance(error, InvalidStep):
        return discarded(job_id, lease_token, error.code, error.message, step=error.name)
    if isinstance(error, EventTimeout):
        return discarded(job_id, lease_token, error.code, error.message, event=error.event)
    stored = _error(type(error).__name__, error, {"traceback": _traceback(error)})
    return Outcome(id=job_id, lease_token=lease_token, outcome="fail", error=stored)


def discarded(job_id: UUID | str, lease_token: int, code: str, message: object, **details: Any) -> Outcome:
    """Return the outcome of a job that no retry can help."""
    return Outcome(id=job_id, lease_token=lease_token, outcome="discard", error=_error(code, message, details))


def encode_result(value: Any, *, max_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES) -> str:
    """Return a handler's result as JSON text. Raises InvalidJob naming `result...`."""
    try:
        plain = to_jsonable_python(value, inf_nan_mode="constants")
    except Exception as error:  # serialisers of the user's raise what they like
        raise InvalidJob("result", f"is not JSON: {sanitise_text(error, 500)}") from None
    return encode_json(plain, field="result", max_bytes=max_bytes)


def _plan(value: Plan) -> str:
    plan: dict[str, Any] = {"subtasks": list(value.subtasks), "kind": value.kind}
    if value.queue is not None:
        plan["queue"] = value.queue
    if value.max_attempts is not None:
        plan["max_attempts"] = value.max_attempts
    if value.timeout is not None:
        plan["timeout_seconds"] = value.timeout.total_seconds()
    return encode_json(plan, field="plan")


def _error(code: object, message: object, details: Any = None) -> str:
    given = cast("Mapping[object, Any]", details).items() if isinstance(details, Mapping) else ()
    # Code and message are said already; a detail of that name would collide with them.
    named = {str(name): value for name, value in given if name not in ("code", "message")}
    return encode_json(error_object(code, message, **named), field="error")


def _bounded(delay: timedelta) -> timedelta:
    return min(max(delay, timedelta(0)), MAX_DELAY)


def _traceback(error: BaseException) -> str | None:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return None
