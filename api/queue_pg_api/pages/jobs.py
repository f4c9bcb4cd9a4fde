"""`/console/jobs`: the list of jobs."""

from __future__ import annotations

from queue_pg import arguments, store
from queue_pg.errors import InvalidJob
from queue_pg.looking import now
from queue_pg.models import JobState
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import invalid
from queue_pg_api.pages.lists import DEFAULT_LIMIT, MAX_OFFERED, ListPage, asked, pages
from queue_pg_api.pages.page import Context, Region, Visit
from queue_pg_api.schemas import JobFilter

__all__ = ["DEFAULT_LIMIT", "page"]

FILTERS = (
    "state",
    "queue",
    "kind",
    "tag",
    "key",
    "batch",
    "parent",
    "rerun_of",
    "error_code",
    "created_after",
    "created_before",
)


def _checked(visit: Visit) -> JobFilter:
    wanted = check_model(JobFilter, asked(visit, FILTERS))
    try:
        arguments.check_filters(
            queue=wanted.queue, kind=wanted.kind, tag=wanted.tag, unique_key=wanted.key, error_code=wanted.error_code
        )
        arguments.before(wanted.cursor)
    except InvalidJob as error:
        raise invalid(error.field, error.reason) from None
    return wanted


async def table(visit: Visit) -> Context:
    wanted = _checked(visit)
    async with visit.figures.looking() as conn:
        jobs = await store.list_jobs(
            conn,
            limit=wanted.limit + 1,
            org=visit.queue.org,
            state=wanted.state,
            queue=wanted.queue,
            kind=wanted.kind,
            tag=wanted.tag,
            batch_id=wanted.batch,
            parent_id=wanted.parent,
            unique_key=wanted.key,
            rerun_of=wanted.rerun_of,
            error_code=wanted.error_code,
            created_after=wanted.created_after,
            created_before=wanted.created_before,
            before=arguments.before(wanted.cursor),
        )
        shown = arguments.page(jobs, wanted.limit)
        return {
            "jobs": shown.jobs,
            "now": await now(conn),
            **pages(visit, FILTERS, wanted.limit, shown.next_cursor),
        }


async def offer(visit: Visit) -> Context:
    overview = await visit.figures.overview()
    async with visit.figures.looking() as conn:
        kinds = await store.kinds(conn)
    return {
        "states": list(JobState),
        "queues": sorted({each.queue for each in overview.queues})[:MAX_OFFERED],
        "kinds": [each.kind for each in kinds][:MAX_OFFERED],
    }


page = ListPage(
    name="jobs",
    title="Jobs",
    template="jobs.html",
    filters=FILTERS,
    offer=offer,
    regions=[Region(name="jobs", label="Jobs", load=table, topics=("jobs",))],
)
