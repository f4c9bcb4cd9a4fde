"""`/console/tasks`: work by what it is about, planned or not. Any job is a task, and its page is the job's."""

from __future__ import annotations

from starlette.responses import Response

from queue_pg import arguments
from queue_pg.errors import InvalidJob, JobNotFound
from queue_pg.look_tasks import look_tasks
from queue_pg.looking import now
from queue_pg.models import JobState
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import invalid
from queue_pg_api.pages.lists import ListPage, asked, pages
from queue_pg_api.pages.page import Context, Region, Visit
from queue_pg_api.schemas import TaskFilter

FILTERS = ("state",)


async def table(visit: Visit) -> Context:
    wanted = check_model(TaskFilter, asked(visit, FILTERS))
    try:
        before = arguments.before(wanted.cursor)
    except InvalidJob as error:
        raise invalid(error.field, error.reason) from None
    async with visit.figures.looking() as conn:
        found = await look_tasks(conn, org=visit.org, limit=wanted.limit + 1, state=wanted.state, before=before)
        at = await now(conn)
    shown = found[: wanted.limit]
    cursor = arguments.cursor_of(shown[-1].id) if len(found) > wanted.limit else None
    return {"tasks": shown, "now": at, **pages(visit, FILTERS, wanted.limit, cursor)}


async def offer(_: Visit) -> Context:
    return {"states": list(JobState)}


async def one(visit: Visit) -> Response:
    """Go to the page of a task, whose id may be that of a subtask: <task>-<n>."""
    task_id = str(visit.request.path_params["id"])
    try:
        found = await visit.queue.get_task(task_id)
    except InvalidJob:  # no text that Postgres can hold
        raise JobNotFound(task_id[:60].encode("ascii", "replace").decode()) from None
    return visit.redirect(visit.url("job", id=found.id))


page = ListPage(
    name="tasks",
    title="Tasks",
    template="tasks.html",
    filters=FILTERS,
    offer=offer,
    regions=[Region(name="tasks", label="Tasks", load=table, topics=("jobs",))],
)
