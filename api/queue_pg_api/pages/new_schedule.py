"""`/console/new/schedule`: make a schedule by a form, seeing when it would fire."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from queue_pg import schedule_store, store
from queue_pg.errors import QueuePgError
from queue_pg.looking import now
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import ApiError, invalid, translate
from queue_pg_api.pages.create import UNITS, job_of, moment_of
from queue_pg_api.pages.forms import check_fields, whole, words
from queue_pg_api.pages.lists import MAX_OFFERED
from queue_pg_api.pages.page import Context, Page, Region, Visit
from queue_pg_api.schedule_schemas import NewScheduleBody, PreviewBody
from queue_pg_api.schemas import PRIORITY_NAMES

TIMING = ("timing", "cron", "time_zone", "every", "unit", "at", "run_at")
FIELDS = (
    "name", *TIMING, "missed", "jitter_seconds", "mode", "prompt", "model", "kind", "payload", "queue", "priority",
    "tags", "max_attempts",
)  # fmt: skip
DEFAULTS = {
    "timing": "cron", "time_zone": "UTC", "unit": "min", "missed": "once", "mode": "prompt", "queue": "default",
    "priority": "normal",
}  # fmt: skip
FIRES = 5


def timing_of(form: dict[str, str]) -> dict[str, Any]:
    """Return of the API's fields those that say when."""
    match form.get("timing", "cron"):
        case "cron":
            if not form.get("cron", "").strip():
                raise invalid("cron", "is empty; say when, as in 0 9 * * mon-fri")
            return {"cron": form["cron"].strip(), "time_zone": form.get("time_zone", "UTC").strip()}
        case "every":
            number = whole(form, "every", 1)
            if number is None:
                raise invalid("every", "is empty; say how often")
            return {"every_seconds": number * UNITS.get(form.get("unit", "min"), 60)}
        case "at":
            return {"at": moment_of(form)}
        case _:
            raise invalid("timing", "should be cron, every or at")


def to_schedule(form: dict[str, str], max_payload_bytes: int) -> NewScheduleBody:
    """Make what the API takes of what the form says. Raises ApiError naming the field."""
    check_fields(form, FIELDS)
    body: dict[str, Any] = {name: form[name] for name in ("queue", "priority", "missed") if name in form}
    body |= {**timing_of(form), **job_of(form, max_payload_bytes), "name": form.get("name", "").strip()}
    for name in ("jitter_seconds", "max_attempts"):
        if (number := whole(form, name)) is not None:
            body[name] = number
    if "tags" in form:
        body["tags"] = words(form["tags"])
    return check_model(NewScheduleBody, body)


async def submit(visit: Visit) -> Response:
    async def make(form: dict[str, str]) -> str:
        body = to_schedule(form, visit.queue.max_payload_bytes)
        await visit.service.kinds.check([(body.kind, body.queue)])
        made, _ = await visit.queue.put_schedule(body.new_schedule(body.name), create_only=True)
        return visit.url("schedule", name=made.name)

    return await page.take(visit, "schedule", make)


async def preview(visit: Visit) -> Context:
    """Tell when a schedule of what is filled in would fire, or what is wrong with that."""
    given = _given(visit)
    form = {name: given[name] for name in TIMING if given.get(name)}
    if not {"cron", "every", "at"} & form.keys():
        return {"fires": None, "fault": None, "now": None}
    try:
        body = check_model(PreviewBody, timing_of(form))
        async with visit.figures.looking() as conn:
            at = await now(conn)
            fires = await schedule_store.preview_schedule(conn, body.timing().params(), after=None, most=FIRES)
    except (ApiError, QueuePgError) as error:
        refusal = translate(error) if isinstance(error, QueuePgError) else error
        if refusal.status != 422:
            raise
        return {"fires": None, "fault": refusal.detail, "now": None}
    return {"fires": fires, "fault": None, "now": at, "zone": body.time_zone}


def _given(visit: Visit) -> dict[str, str]:
    if visit.refused is not None:
        return dict(visit.refused.values)
    query = visit.request.query_params
    return {name: value for name, value in query.items() if name in FIELDS and "\x00" not in value}


class NewSchedulePage(Page):
    """The form; the query string may fill it in, which is also how it is previewed without scripts."""

    async def show(self, visit: Visit, status: int = 200, **context: Any) -> Response:
        given = _given(visit)
        if "kind" in given and "mode" not in given:
            given["mode"] = "payload"
        overview = await visit.figures.overview()
        async with visit.figures.looking() as conn:
            kinds = await store.kinds(conn)
        return await Page.show(
            self,
            visit,
            status,
            form=visit.form("schedule", **{**dict.fromkeys(FIELDS, ""), **DEFAULTS, **given}),
            kinds=kinds[:MAX_OFFERED],
            queues=sorted({each.queue for each in overview.queues})[:MAX_OFFERED],
            priorities=list(PRIORITY_NAMES),
            **context,
        )


page = NewSchedulePage(
    name="new_schedule",
    title="New schedule",
    template="new_schedule.html",
    section="schedules",
    regions=[Region(name="preview", label="Next fires", load=preview)],
)
