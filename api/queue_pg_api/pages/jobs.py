"""`/console/jobs`: the list. Its filters are the query string, so that an address is a view."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from queue_pg import arguments, store
from queue_pg.errors import InvalidJob
from queue_pg.looking import now
from queue_pg.models import JobState
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import ApiError, invalid
from queue_pg_api.pages.page import Context, Page, Region, Visit
from queue_pg_api.schemas import JobFilter

FILTERS = ("state", "queue", "kind", "tag", "key", "batch", "parent")
DEFAULT_LIMIT = 50
# Enough to offer; nobody reads on in a list of names.
MAX_OFFERED = 100


def filters(visit: Visit) -> dict[str, str]:
    """Return what the query string asks for; a field of the form that is left empty asks for nothing."""
    given: dict[str, str] = {}
    for name, value in visit.request.query_params.multi_items():
        if name in {"part", "cursor", "limit"} or not value.strip():
            continue
        if name not in FILTERS:
            raise invalid(name, f"is no filter; there are {', '.join(FILTERS)}")
        if name in given:
            raise invalid(name, "is given more than once")
        if "\x00" in value:
            raise invalid(name, "holds a NUL character, which Postgres cannot store")
        given[name] = value.strip()
    return given


def _checked(visit: Visit) -> JobFilter:
    query = visit.request.query_params
    values: dict[str, Any] = {**filters(visit)}
    values |= {name: query[name] for name in ("cursor", "limit") if query.get(name)}
    wanted = check_model(JobFilter, {"limit": DEFAULT_LIMIT, **values})
    try:
        arguments.check_filters(queue=wanted.queue, kind=wanted.kind, tag=wanted.tag, unique_key=wanted.key)
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
            before=arguments.before(wanted.cursor),
        )
        page_of_jobs = arguments.page(jobs, wanted.limit)
        given = filters(visit)
        limit = {} if wanted.limit == DEFAULT_LIMIT else {"limit": wanted.limit}
        older = {**given, **limit, "cursor": page_of_jobs.next_cursor} if page_of_jobs.next_cursor else None
        return {
            "jobs": page_of_jobs.jobs,
            "now": await now(conn),
            "filters": given,
            "older": older,
            "newest": {**given, **limit} if wanted.cursor else None,
        }


class JobsPage(Page):
    """The list, and its form with what it may be asked for."""

    async def __call__(self, visit: Visit) -> Response:
        if "part" in visit.request.query_params:
            return await Page.__call__(self, visit)
        overview = await visit.figures.overview()
        async with visit.figures.looking() as conn:
            kinds = await store.kinds(conn)
        context: dict[str, Any] = {
            "states": list(JobState),
            "queues": sorted({each.queue for each in overview.queues})[:MAX_OFFERED],
            "kinds": [each.kind for each in kinds][:MAX_OFFERED],
        }
        try:
            return await self.show(visit, filters=filters(visit), fault=None, **context)
        except ApiError as error:
            if error.status != 422:
                raise
            # What was asked for stays in the form, so that it can be put right.
            given = {name: visit.request.query_params.get(name, "")[:300] for name in FILTERS}
            return visit.render(
                self.template, 422, page=self, parts={"jobs": ""}, filters=given, fault=error.detail, **context
            )


page = JobsPage(
    name="jobs",
    title="Jobs",
    template="jobs.html",
    regions=[Region(name="jobs", label="Jobs", load=table, topics=("jobs",))],
)
