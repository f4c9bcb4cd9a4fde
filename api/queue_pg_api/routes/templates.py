"""/templates: job templates, and jobs made from them."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from queue_pg.errors import TemplateNotFound
from queue_pg_api.answers import JobAnswer, TemplateAnswer, TemplatesAnswer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import invalid, json_response
from queue_pg_api.rendering import job_json, template_json
from queue_pg_api.schemas import (
    NoBody,
    NoQuery,
    SubmitTemplateBody,
    TemplateBody,
    TemplateFilter,
    TemplateVersion,
)
from queue_pg_api.submissions import KEY_HEADER, idempotency_key, location, traceparent

endpoints = Endpoints("Templates")


@endpoints.post("/templates", answers={201: TemplateAnswer}, refuses=(403, 408, 413, 415, 422, 503))
async def put_template(call: Call[NoQuery, TemplateBody]) -> Response:
    """Store a job template: its next version, or the newest if that is the same already."""
    wanted = call.body
    await call.service.kinds.check([(wanted.kind, wanted.queue)])
    made = await call.queue.put_template(
        wanted.name,
        wanted.kind,
        wanted.payload,
        variables=wanted.variables,
        queue=wanted.queue,
        priority=wanted.priority,
        max_attempts=wanted.max_attempts,
        timeout=wanted.timeout_seconds,
        description=wanted.description,
    )
    where = call.url(f"/templates/{made.name}?version={made.version}")
    return json_response(template_json(made), 201, headers={"location": where})


@endpoints.get("/templates", answers={200: TemplatesAnswer}, refuses=(422, 503))
async def list_templates(call: Call[TemplateFilter, NoBody]) -> Response:
    """List templates by name, in their newest versions."""
    found = await call.queue.list_templates(limit=call.query.limit, after=call.query.after)
    return json_response({"templates": [template_json(each) for each in found]})


@endpoints.get("/templates/{name}", answers={200: TemplateAnswer}, refuses=(404, 422, 503))
async def get_template(call: Call[TemplateVersion, NoBody]) -> Response:
    """Read a template, in its newest version unless told otherwise."""
    return json_response(template_json(await call.queue.get_template(_name(call), call.query.version)))


@endpoints.post(
    "/templates/{name}/submit",
    answers={201: JobAnswer, 200: JobAnswer},
    refuses=(403, 404, 408, 409, 413, 415, 422, 503),
)
async def submit_template(call: Call[NoQuery, SubmitTemplateBody]) -> Response:
    """Submit a job made from a template; a variable that is wrong or missing is named: `variables.topic`."""
    body, key, name = call.body, idempotency_key(call.request), _name(call)
    if body.run_at is not None and body.delay_seconds is not None:
        raise invalid("delay_seconds", "excludes run_at; give one of them")
    if key is not None and body.unique_key is not None and key != body.unique_key:
        raise invalid("unique_key", f"differs from the {KEY_HEADER} header; give one of them")
    submitted = await call.queue.submit_template(
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
        metadata=body.metadata,
        traceparent=body.traceparent or traceparent(call.request),
        batch_id=body.batch_id,
    )
    headers = {"location": location(call, submitted.id)}
    if not submitted.created:
        headers["idempotency-replayed"] = "true"
    job = await call.queue.get(submitted.id)
    return json_response(job_json(job), 201 if submitted.created else 200, headers=headers)


def _name(call: Call[Any, Any]) -> str:
    name = str(call.request.path_params["name"])
    # What cannot be a template's name names none; Postgres would refuse NUL, and the driver a lone surrogate.
    if not name.isprintable() or len(name) > 100:
        raise TemplateNotFound(name[:60].encode("ascii", "replace").decode())
    return name
