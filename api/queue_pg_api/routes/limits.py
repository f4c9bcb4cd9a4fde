"""/limits: how much of what may be in flight."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field
from starlette.responses import Response

from queue_pg.limiting import LEAST_WEIGHT, MOST, MOST_WEIGHT
from queue_pg.models import Limit
from queue_pg_api.answers import Answer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import invalid, json_response
from queue_pg_api.rendering import timestamp
from queue_pg_api.schemas import Body, NoBody, NoQuery, PauseBody, Query, ResumeBody

endpoints = Endpoints("Limits")

MOST_AGEING = 365 * 86_400
Amount = Annotated[int, Field(ge=1, le=MOST)]


class LimitBody(Body):
    """What a limit allows, and its share: at least one of `max_running`, `rate`, `weight` and `ageing_seconds`."""

    max_running: Amount | None = Field(None, description="Most attempts at once.")
    rate: Amount | None = Field(None, description="Most units of cost that start in each `per`.")
    per: Literal["second", "minute", "hour", "day"] = "second"
    burst: Amount | None = Field(None, description="Units that may start at once after a quiet time. Default: `rate`.")
    weight: Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)] | None = Field(
        None, description="Its share beside others, in units of cost. Default: 1."
    )
    ageing_seconds: Annotated[float, Field(ge=0.1, le=MOST_AGEING)] | None = Field(
        None, description="Of a queue: from this wait on jobs of every priority have a part in one turn of eight."
    )


class LimitList(Query):
    """Which limits to list, by scope and name."""

    scope: Literal["queue", "key"] | None = None
    limit: Annotated[int, Field(ge=1, le=1_000)] = 100
    cursor: Annotated[str, Field(pattern="^(queue|key):", min_length=5, max_length=259)] | None = Field(
        None, description="`next_cursor` of the page before."
    )


class LimitAnswer(Answer):
    """A limit and what runs under it now."""

    scope: Literal["queue", "key"]
    name: str
    org: str
    status: Literal["open", "full", "rate", "paused"]
    running: int
    max_running: int | None
    rate: int | None
    per: Literal["second", "minute", "hour", "day"] | None
    burst: int | None
    units_left: int | None = Field(description="Units of cost that may start now.")
    paused: bool
    paused_until: datetime | None = Field(description="Null for a paused one: until it is resumed.")
    opens_at: datetime | None = Field(description="When it lets a job start again, for its rate or its pause.")
    weight: float | None = Field(description="Null: 1.")
    ageing_seconds: float | None
    template: str | None = Field(description="The template it was made from at its key's first use.")


class LimitsAnswer(Answer):
    limits: list[LimitAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null: this is the last.")


@endpoints.get("/limits", answers={200: LimitsAnswer}, refuses=(422, 503))
async def list_limits(call: Call[LimitList, NoBody]) -> Response:
    """List the limits by scope and name."""
    query = call.query
    after = None
    if query.cursor is not None:
        scope, _, name = query.cursor.partition(":")
        after = scope, name
    found = await call.queue.limits(scope=query.scope, limit=query.limit, after=after)
    # A full page may be the last one: the next is empty then.
    cursor = f"{found[-1].scope}:{found[-1].name}" if len(found) == query.limit else None
    return json_response({"limits": [limit_json(each) for each in found], "next_cursor": cursor})


@endpoints.post("/limits/{scope}/{key:path}/pause", answers={200: LimitAnswer}, refuses=(403, 422, 503))
async def pause_limit(call: Call[NoQuery, PauseBody]) -> Response:
    """Stop claims under a limit, until a moment or until resumed. What runs goes on."""
    until = call.body.until
    if until is not None and until <= datetime.now(UTC):
        raise invalid("until", "is not in the future; to end a pause, resume the limit")
    return json_response(limit_json(await call.queue.pause_limit(*_named(call), until)))


@endpoints.post("/limits/{scope}/{key:path}/resume", answers={200: LimitAnswer}, refuses=(403, 404, 422, 503))
async def resume_limit(call: Call[NoQuery, ResumeBody]) -> Response:
    """Allow claims under a paused limit again."""
    return json_response(limit_json(await call.queue.resume_limit(*_named(call))))


@endpoints.get("/limits/{scope}/{key:path}", answers={200: LimitAnswer}, refuses=(404, 422, 503))
async def get_limit(call: Call[NoQuery, NoBody]) -> Response:
    """Read a limit with what runs under it."""
    return json_response(limit_json(await call.queue.get_limit(*_named(call))))


@endpoints.put("/limits/{scope}/{key:path}", answers={200: LimitAnswer}, refuses=(403, 422, 503))
async def put_limit(call: Call[NoQuery, LimitBody]) -> Response:
    """Make a limit, or replace what it allows; what runs goes on, and a pause stays.

    `scope` is `queue`, and `key` a queue; or `key`, and `key` what jobs have as their `limit_key`. A key that ends with
    `*` is a template for all keys that begin so.
    """
    body = call.body
    made = await call.queue.set_limit(
        *_named(call),
        max_running=body.max_running,
        rate=body.rate,
        per=body.per,
        burst=body.burst,
        weight=body.weight,
        ageing=body.ageing_seconds,
    )
    place = call.url(f"/limits/{made.scope}/{quote(made.name, safe='')}")
    return json_response(limit_json(made), headers={"location": place})


@endpoints.delete("/limits/{scope}/{key:path}", answers={204: None}, refuses=(403, 404, 422, 503))
async def remove_limit(call: Call[NoQuery, NoBody]) -> Response:
    """End a limit; a template takes along all that were made from it."""
    await call.queue.remove_limit(*_named(call))
    return Response(status_code=204)


def limit_json(found: Limit) -> dict[str, Any]:
    """Render a limit."""
    return {
        "scope": found.scope,
        "name": found.name,
        "org": found.org,
        "status": found.status,
        "running": found.running,
        "max_running": found.max_running,
        "rate": found.rate,
        "per": found.per,
        "burst": found.burst,
        "units_left": found.units_left,
        "paused": found.paused,
        "paused_until": timestamp(found.paused_until),
        "opens_at": timestamp(found.opens_at),
        "weight": found.weight,
        "ageing_seconds": found.ageing_seconds,
        "template": found.template,
    }


def _named(call: Call[Any, Any]) -> tuple[str, str]:
    return str(call.request.path_params["scope"]), str(call.request.path_params["key"])
