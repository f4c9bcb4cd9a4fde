"""What every way of submitting over HTTP does: keys from headers, known kinds, where the job can be read."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from starlette.requests import Request

from queue_pg.models import Job, NewJob
from queue_pg_api.endpoints import Call
from queue_pg_api.errors import invalid
from queue_pg_api.schemas import SubmitBody

MAX_KEY_LENGTH = 255
KEY_HEADER = "Idempotency-Key"


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key header, None when there is none."""
    keys = request.headers.getlist(KEY_HEADER)
    if not keys:
        return None
    if len(keys) > 1:
        raise invalid(KEY_HEADER, "is given more than once")
    if not 1 <= len(keys[0]) <= MAX_KEY_LENGTH:
        raise invalid(KEY_HEADER, f"should have 1 to {MAX_KEY_LENGTH} characters")
    return keys[0]


def traceparent(request: Request) -> str | None:
    """Return the W3C trace context of the request, when it looks like one."""
    value = request.headers.get("traceparent", "")
    return value if 55 <= len(value) <= 255 else None


def to_new_job(call: Call[Any, Any], body: SubmitBody, key: str | None) -> NewJob:
    """Build the job to submit; a key in header and body must be the same one."""
    if body.run_at is not None and body.delay_seconds is not None:
        raise invalid("delay_seconds", "excludes run_at; give one of them")
    if key is not None and body.unique_key is not None and key != body.unique_key:
        raise invalid("unique_key", f"differs from the {KEY_HEADER} header; give one of them")
    return body.to_new_job(unique_key=key, traceparent=traceparent(call.request))


async def submit_one(call: Call[Any, Any], body: SubmitBody, key: str | None) -> tuple[Job, bool]:
    """Store a job; return it and whether it is new."""
    new = to_new_job(call, body, key)
    await call.service.kinds.check([(new.kind, new.queue)])
    return await call.queue.submit_new(new)


def location(call: Call[Any, Any], job_id: UUID) -> str:
    return call.url(f"/jobs/{job_id}")
