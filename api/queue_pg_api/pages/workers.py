"""`/console/workers`: who works, and when each was heard of last."""

from __future__ import annotations

from queue_pg import store
from queue_pg.looking import now
from queue_pg_api.pages.page import Context, Page, Region, Visit


async def table(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        return {"workers": await store.workers(conn), "now": await now(conn)}


page = Page(
    name="workers",
    title="Workers",
    template="workers.html",
    regions=[Region(name="workers", label="Workers", load=table, topics=("workers",))],
)
