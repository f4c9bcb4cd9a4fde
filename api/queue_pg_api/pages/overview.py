"""`/`: how the whole is doing."""

from __future__ import annotations

from queue_pg import store
from queue_pg.looking import now
from queue_pg.models import JobState
from queue_pg_api.pages.page import Context, Page, Region, Visit

NEWEST = 8


async def totals(visit: Visit) -> Context:
    overview = await visit.figures.overview()
    async with visit.figures.looking() as conn:
        workers = await store.workers(conn)
    return {"overview": overview, "live_workers": sum(worker.live for worker in workers)}


async def failures(visit: Visit) -> Context:
    return await _newest(visit, JobState.FAILED)


async def newest(visit: Visit) -> Context:
    return await _newest(visit, None)


async def _newest(visit: Visit, state: JobState | None) -> Context:
    async with visit.figures.looking() as conn:
        jobs = await store.list_jobs(conn, limit=NEWEST, org=visit.queue.org, state=state)
        return {"jobs": jobs, "now": await now(conn)}


page = Page(
    name="overview",
    title="Overview",
    template="overview.html",
    regions=[
        Region(name="totals", label="Jobs by state", load=totals, topics=("queues", "workers")),
        Region(name="failures", label="Newest failures", load=failures, topics=("jobs",)),
        Region(name="newest", label="Newest jobs", load=newest, topics=("jobs",)),
    ],
)
