"""What every way of submitting over HTTP does: keys from headers, known kinds, where the job can be read."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from queue_pg.graph import is_part
from queue_pg.logs import with_request_id
from queue_pg.models import Job, JobState, NewJob
from queue_pg.tracing import submitting
from queue_pg_api.bodies import check_model
from queue_pg_api.endpoints import Call
from queue_pg_api.errors import invalid, json_response, raw_json_response
from queue_pg_api.rendering import job_json, new_job_json
from queue_pg_api.schemas import SubmitBody
from queue_pg_api.template_schemas import SubmitByTemplateBody, SubmitTemplateBody

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


def to_new_job(body: SubmitBody, key: str | None, trace: str | None, batch_id: UUID | None = None) -> NewJob:
    """Build the job to submit; a key in header and body must be the same one, and a batch in path and body.

    `trace` is the request's traceparent.
    """
    if body.run_at is not None and body.scheduled_for is not None:
        raise invalid("scheduled_for", "is another name of run_at; give one of them")
    if (body.run_at or body.scheduled_for) is not None and body.delay_seconds is not None:
        raise invalid("delay_seconds", f"excludes {'run_at' if body.run_at else 'scheduled_for'}; give one of them")
    if key is not None and body.unique_key is not None and key != body.unique_key:
        raise invalid("unique_key", f"differs from the {KEY_HEADER} header; give one of them")
    job = body.to_new_job(unique_key=key, traceparent=trace)
    if batch_id is not None:
        if job.batch_id not in (None, batch_id):
            raise invalid("batch_id", "differs from the batch of the path; leave it out")
        job.batch_id = batch_id
    job.metadata = with_request_id(job.metadata)
    return job


async def submit_one(call: Call[Any, Any], body: SubmitBody, key: str | None, batch_id: UUID | None = None) -> Response:
    """Store a job and answer with it."""
    new = to_new_job(body, key, traceparent(call.request), batch_id)
    await call.service.kinds.check([(new.kind, new.queue)])
    # A batch may be closed; that must not refuse the others of a group. Nor must they wait for a transaction that has
    # submitted the same cached work.
    if new.unique_key is None and new.batch_id is None and not is_part(new) and not new.caches:
        with submitting(new) as carrying:
            checked = call.service.check(carrying)
            stored = await call.service.gathering.submit(checked)
        return raw_json_response(new_job_json(checked, stored), 201, headers={"location": location(call, stored.id)})
    job, created = await call.queue.submit_new(new)
    return answer_stored(call, job, created, cache_status=cache_status(job) if new.caches and created else None)


def fields_of(value: object) -> dict[str, object]:
    """Return the fields of a body that is an object; anything else has none."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


async def submit_object(call: Call[Any, Any], value: object, key: str | None, batch_id: UUID | None = None) -> Response:
    """Store the job of a body that is one object: as it is, or made from a template that it names."""
    given = fields_of(value)
    if "template" in given:
        for name in ("kind", "payload"):
            if name in given:
                raise invalid(name, "excludes template, which has one; give variables")
        body = check_model(SubmitByTemplateBody, given)
        return await submit_by_template(call, body.template, body, key, batch_id)
    for name in ("variables", "version"):
        if name in given:
            raise invalid(name, "is for template; name one, or leave it out")
    return await submit_one(call, check_model(SubmitBody, value), key, batch_id)


async def submit_by_template(
    call: Call[Any, Any], name: str, body: SubmitTemplateBody, key: str | None, batch_id: UUID | None = None
) -> Response:
    """Store a job made from a template and answer with it."""
    if body.run_at is not None and body.delay_seconds is not None:
        raise invalid("delay_seconds", "excludes run_at; give one of them")
    if key is not None and body.unique_key is not None and key != body.unique_key:
        raise invalid("unique_key", f"differs from the {KEY_HEADER} header; give one of them")
    if batch_id is not None and body.batch_id not in (None, batch_id):
        raise invalid("batch_id", "differs from the batch of the path; leave it out")
    submitted, caches = await call.queue.submit_from_template(
        name,
        body.variables,
        version=body.version,
        queue=body.queue,
        priority=body.priority,
        run_at=body.run_at,
        delay=body.delay_seconds,
        max_attempts=body.max_attempts,
        timeout=body.timeout_seconds,
        expires_at=body.expires_at,
        unique_key=body.unique_key if body.unique_key is not None else key,
        tags=body.tags,
        metadata=with_request_id(body.metadata or {}),
        traceparent=body.traceparent or traceparent(call.request),
        batch_id=body.batch_id or batch_id,
        limit_key=body.limit_key,
        cost=body.cost,
        cache=body.cache,
        cache_for=body.cache_for_seconds,
        cache_version=body.cache_version,
    )
    job = await call.queue.get(submitted.id)
    status = cache_status(job) if caches and submitted.created else None
    return answer_stored(call, job, submitted.created, cache_status=status)


def cache_status(job: Job) -> str:
    """Return what the cache did for a job, as RFC 9211 says it."""
    if job.cached_from is not None:
        return "queue-pg; hit"
    return "queue-pg; fwd=miss; collapsed" if job.state is JobState.WAITING else "queue-pg; fwd=miss"


def answer_stored(call: Call[Any, Any], job: Job, created: bool, *, cache_status: str | None = None) -> Response:
    """Answer with a job that is stored: 201 when it is new, else 200."""
    headers = {"location": location(call, job.id)}
    if not created:
        headers["idempotency-replayed"] = "true"
    if cache_status is not None:
        headers["cache-status"] = cache_status
    return json_response(job_json(job), 201 if created else 200, headers=headers)


def location(call: Call[Any, Any], job_id: UUID) -> str:
    return call.url(f"/jobs/{job_id}")
