"""`/console/queues`: what waits where, and the switch of each queue."""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from queue_pg.looking import now
from queue_pg_api.errors import invalid
from queue_pg_api.pages.forms import read_form
from queue_pg_api.pages.page import Context, Page, Region, Visit

# What the form offers: minutes, and the words for it.
PAUSES = {"": "until resumed", "10": "10 minutes", "60": "1 hour", "1440": "1 day"}


async def table(visit: Visit) -> Context:
    overview = await visit.figures.overview()
    return {"queues": overview.queues, "now": overview.at, "pauses": PAUSES}


async def pause(visit: Visit) -> Response:
    form = await read_form(visit.request)
    minutes = form.get("minutes", "")
    if minutes not in PAUSES:
        raise invalid("minutes", f"should be one of {', '.join(name for name in PAUSES if name)}, or empty")
    until = None
    if minutes:
        # By the database's clock, which decides when it ends.
        async with visit.figures.looking() as conn:
            until = await now(conn) + timedelta(minutes=int(minutes))
    await visit.queue.pause(_name(form), until)
    return _back(visit)


async def resume(visit: Visit) -> Response:
    await visit.queue.resume(_name(await read_form(visit.request)))
    return _back(visit)


async def drain(visit: Visit) -> Response:
    await visit.queue.drain(_name(await read_form(visit.request)))
    return _back(visit)


def _name(form: dict[str, str]) -> str:
    name = form.get("queue", "")
    if not 1 <= len(name) <= 200:
        raise invalid("queue", "should have 1 to 200 characters")
    return name


def _back(visit: Visit) -> Response:
    visit.figures.changed()
    return visit.redirect(visit.url("queues"))


page = Page(
    name="queues",
    title="Queues",
    template="queues.html",
    regions=[Region(name="queues", label="Queues", load=table, topics=("queues",))],
)
