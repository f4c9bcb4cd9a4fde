"""`/console/limits`: how much of what may be in flight, and the switch of each limit."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from starlette.responses import Response

from queue_pg import limit_store
from queue_pg.limiting import PERIODS, SCOPES
from queue_pg.looking import now
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import invalid, not_found
from queue_pg_api.pages.forms import check_fields, whole
from queue_pg_api.pages.lists import DEFAULT_LIMIT, ListPage, asked, pages
from queue_pg_api.pages.page import Context, Region, Visit
from queue_pg_api.pages.queues import PAUSES
from queue_pg_api.routes.limits import LimitBody, LimitList

FILTERS = ("scope",)
# Of the form that sets one; its scope and name are those of every form here.
FIELDS = ("scope", "name", "max_running", "rate", "per", "burst")


async def table(visit: Visit) -> Context:
    wanted = check_model(LimitList, asked(visit, FILTERS))
    after = None
    if wanted.cursor is not None:
        scope, _, name = wanted.cursor.partition(":")
        after = (scope, name, visit.org)
    async with visit.figures.looking() as conn:
        found = await limit_store.limits(conn, org=visit.org, scope=wanted.scope, after=after, limit=wanted.limit + 1)
        at = await now(conn)
    shown = found[: wanted.limit]
    cursor = f"{shown[-1].scope}:{shown[-1].name}" if len(found) > wanted.limit else None
    return {"limits": shown, "now": at, "pauses": PAUSES, **pages(visit, FILTERS, wanted.limit, cursor)}


async def offer(visit: Visit) -> Context:
    """Return the form that sets a limit; a link may fill it in with the name of one."""
    overview = await visit.figures.overview()
    scope, _, name = visit.request.query_params.get("set", "").partition(":")
    known = None
    if scope in SCOPES and 1 <= len(name) <= 255 and "\x00" not in name:
        async with visit.figures.looking() as conn:
            known = next(iter(await limit_store.limits(conn, org=visit.org, scope=scope, name=name, limit=1)), None)
    return {
        "scopes": SCOPES,
        "periods": PERIODS,
        "queues": sorted({each.queue for each in overview.queues})[:DEFAULT_LIMIT],
        "form": visit.form(
            "limit",
            scope=scope or "queue",
            name=name,
            max_running=known and known.max_running,
            rate=known and known.rate,
            per=(known and known.per) or "minute",
            burst=known and known.burst,
        ),
    }


async def act(visit: Visit) -> Response:
    """Set, pause, resume or remove a limit, and come back to the list as it was filtered."""
    word = str(visit.request.path_params["act"])

    async def do(form: dict[str, str]) -> str:
        scope, name = form.get("scope", ""), form.get("name", "")
        match word:
            case "set":
                await _set(visit, form)
            case "pause":
                await visit.queue.pause_limit(scope, name, await _until(visit, form.get("minutes", "")))
            case "resume":
                await visit.queue.resume_limit(scope, name)
            case _:
                await visit.queue.remove_limit(scope, name)
        return visit.here("limits")

    if word not in {"set", "pause", "resume", "remove"}:
        raise not_found("There is no such page.")
    return await page.take(visit, "limit" if word == "set" else None, do)


async def _set(visit: Visit, form: dict[str, str]) -> None:
    check_fields(form, FIELDS)
    body: dict[str, Any] = {
        field: number for field in ("max_running", "rate", "burst") if (number := whole(form, field, 1, 1_000_000))
    }
    if not {"max_running", "rate"} & body.keys():
        raise invalid("max_running", "is empty, and so is rate; say what the limit allows")
    if "per" in form:
        body["per"] = form["per"]
    wanted = check_model(LimitBody, body)
    await visit.queue.set_limit(
        form.get("scope", ""),
        form.get("name", "").strip(),
        max_running=wanted.max_running,
        rate=wanted.rate,
        per=wanted.per,
        burst=wanted.burst,
    )


async def _until(visit: Visit, minutes: str) -> Any:
    if minutes not in PAUSES:
        raise invalid("minutes", f"should be one of {', '.join(name for name in PAUSES if name)}, or empty")
    if not minutes:
        return None
    # By the database's clock, which decides when it ends.
    async with visit.figures.looking() as conn:
        return await now(conn) + timedelta(minutes=int(minutes))


page = ListPage(
    name="limits",
    title="Limits",
    template="limits.html",
    filters=FILTERS,
    offer=offer,
    # What runs under a limit changes with the jobs.
    regions=[Region(name="limits", label="Limits", load=table, topics=("jobs", "limits"))],
)
