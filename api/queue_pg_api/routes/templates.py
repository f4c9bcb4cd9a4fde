"""/templates: job templates, and jobs made from them."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from queue_pg.errors import TemplateNotFound
from queue_pg_api.answers import JobAnswer, TemplateAnswer, TemplatesAnswer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import json_response
from queue_pg_api.rendering import template_json
from queue_pg_api.schemas import NoBody, NoQuery
from queue_pg_api.submissions import idempotency_key, submit_by_template
from queue_pg_api.template_schemas import SubmitTemplateBody, TemplateBody, TemplateFilter, TemplateVersion

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
        limit_key=wanted.limit_key,
        cost=wanted.cost,
        cache=wanted.cache,
        cache_for=wanted.cache_for_seconds,
        cache_version=wanted.cache_version,
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
    return await submit_by_template(call, _name(call), call.body, idempotency_key(call.request))


def _name(call: Call[Any, Any]) -> str:
    name = str(call.request.path_params["name"])
    # What cannot be a template's name names none; Postgres would refuse NUL, and the driver a lone surrogate.
    if not name.isprintable() or len(name) > 100:
        raise TemplateNotFound(name[:60].encode("ascii", "replace").decode())
    return name
