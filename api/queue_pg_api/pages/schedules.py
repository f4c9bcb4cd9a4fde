"""`/console/schedules`: work that starts by the clock, one by one and all of them."""

from __future__ import annotations

from starlette.responses import Response

from queue_pg.look_plans import look_schedule, look_schedules
from queue_pg.looking import now
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import not_found
from queue_pg_api.pages.forms import read_form
from queue_pg_api.pages.lists import ListPage, asked, pages
from queue_pg_api.pages.page import Context, Page, Region, Visit
from queue_pg_api.schedule_schemas import ScheduleList


async def table(visit: Visit) -> Context:
    wanted = check_model(ScheduleList, asked(visit, ()))
    async with visit.figures.looking() as conn:
        found = await look_schedules(conn, org=visit.org, limit=wanted.limit + 1, after=wanted.cursor)
        at = await now(conn)
    shown = found[: wanted.limit]
    cursor = shown[-1].name if len(found) > wanted.limit else None
    return {"schedules": shown, "now": at, **pages(visit, (), wanted.limit, cursor)}


async def one(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        return {"schedule": await look_schedule(conn, name_of(visit), org=visit.org)}


def name_of(visit: Visit) -> str:
    """Return the name in the path; what cannot be a schedule's names none."""
    name = str(visit.request.path_params["name"])
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise not_found("There is no such schedule.")
    return name


async def act(visit: Visit) -> Response:
    """Pause, resume, run or delete a schedule, and go back to where the form was."""
    name, word = name_of(visit), str(visit.request.path_params["act"])
    form = await read_form(visit.request)
    back = visit.here("schedules") if form.get("back") == "list" else visit.url("schedule", name=name)
    match word:
        case "pause":
            await visit.queue.pause_schedule(name)
        case "resume":
            await visit.queue.resume_schedule(name)
        case "run":
            back = visit.url("job", id=await visit.queue.run_schedule_now(name))
        case "delete":
            await visit.queue.unschedule(name)
            back = visit.url("schedules")
        case _:
            raise not_found("There is no such page.")
    visit.figures.changed()
    return visit.redirect(back)


page = ListPage(
    name="schedules",
    title="Schedules",
    template="schedules.html",
    regions=[Region(name="schedules", label="Schedules", load=table, topics=("schedules",))],
)

detail = Page(
    name="schedule",
    title="Schedule",
    template="schedule.html",
    section="schedules",
    regions=[Region(name="schedule", label="Schedule", load=one, topics=("schedules",))],
)
