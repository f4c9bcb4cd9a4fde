"""What a handler did, as the Outcome to record. Values are outcomes too: Snooze, Cancel and Fail are returned."""

from __future__ import annotations

import traceback
from typing import Any
from uuid import UUID

from pydantic_core import PydanticSerializationError, to_jsonable_python

from queue_pg.errors import InvalidJob
from queue_pg.models import Cancel, Fail, Outcome, Snooze
from queue_pg.payloads import DEFAULT_MAX_PAYLOAD_BYTES, encode_json, error_object


def of_return(job_id: UUID, lease_token: int, value: Any, *, max_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES) -> Outcome:
    """Return the outcome for a value that a handler returned.

    Snooze, Cancel and Fail mean what they say; any other value is the result: JSON, or pydantic models, dataclasses,
    datetimes and the like, which become JSON. A result that cannot be stored fails the job for good, since the same
    handler would return it again.
    """
    if isinstance(value, Snooze):
        return Outcome(id=job_id, lease_token=lease_token, outcome="snooze", delay=value.delay)
    if isinstance(value, Cancel):
        error = encode_json(error_object("cancelled", value.reason), field="error")
        return Outcome(id=job_id, lease_token=lease_token, outcome="cancel", error=error)
    if isinstance(value, Fail):
        error = encode_json(error_object(value.code, value.message, **(value.details or {})), field="error")
        outcome = "fail" if value.retry else "discard"
        return Outcome(id=job_id, lease_token=lease_token, outcome=outcome, error=error, delay=value.delay)
    try:
        result = None if value is None else encode_result(value, max_bytes=max_bytes)
    except InvalidJob as refused:
        error = encode_json(error_object("invalid_result", refused.message), field="error")
        return Outcome(id=job_id, lease_token=lease_token, outcome="discard", error=error)
    return Outcome(id=job_id, lease_token=lease_token, outcome="complete", result=result)


def of_error(job_id: UUID, lease_token: int, error: BaseException) -> Outcome:
    """Return the outcome for an exception that a handler raised: a failed attempt, retried while attempts are left."""
    stored = error_object(type(error).__name__, error, traceback=_traceback(error))
    return Outcome(id=job_id, lease_token=lease_token, outcome="fail", error=encode_json(stored, field="error"))


def encode_result(value: Any, *, max_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES) -> str:
    """Return a handler's result as JSON text. Raises InvalidJob naming `result...`."""
    try:
        plain = to_jsonable_python(value, inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidJob("result", f"is not JSON: {error}") from None
    return encode_json(plain, field="result", max_bytes=max_bytes)


def _traceback(error: BaseException) -> str | None:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return None
