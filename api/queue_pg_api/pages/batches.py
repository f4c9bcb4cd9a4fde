"""`/console/batches`: many jobs followed, cancelled and retried as one."""

from __future__ import annotations

from uuid import UUID

from starlette.responses import Response

from queue_pg import arguments, batch_store, store
from queue_pg.batch_model import BatchState
from queue_pg.errors import BatchNotFound, InvalidJob
from queue_pg.looking import now
from queue_pg.models import JobState
from queue_pg_api.batch_schemas import BatchFilter
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import invalid, not_found
from queue_pg_api.pages.forms import whole
from queue_pg_api.pages.lists import ListPage, asked, pages
from queue_pg_api.pages.page import Context, Page, Region, Visit

FILTERS = ("state", "name")
NEWEST = 10
# Of a form that cancels or retries a batch; a million jobs take longer, and the page then says so.
ACTION_SECONDS = 10.0
# What a page can say when it was come back to: a word in the address, and its sentence.
NOTES = {"more": "Not all jobs had their turn in time. Do it again to go on."}


async def table(visit: Visit) -> Context:
    wanted = check_model(BatchFilter, asked(visit, FILTERS))
    try:
        arguments.check_filters(name=wanted.name)
        before = arguments.before(wanted.cursor)
    except InvalidJob as error:
        raise invalid(error.field, error.reason) from None
    async with visit.figures.looking() as conn:
        found = await batch_store.list_batches(
            conn, limit=wanted.limit + 1, org=visit.queue.org, state=wanted.state, name=wanted.name, before=before
        )
        at = await now(conn)
    shown = found[: wanted.limit]
    cursor = arguments.cursor_of(shown[-1].id) if len(found) > wanted.limit else None
    return {"batches": shown, "now": at, **pages(visit, FILTERS, wanted.limit, cursor)}


async def offer(_: Visit) -> Context:
    return {"states": list(BatchState)}


def batch_id(visit: Visit) -> UUID:
    text = str(visit.request.path_params["id"])
    try:
        if len(text) != 36:
            raise ValueError(text)
        return UUID(text)
    except ValueError:
        raise BatchNotFound(text[:60].encode("ascii", "replace").decode()) from None


async def progress(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        # Not by state: that would count every job that is still to be done, at each look.
        found = await batch_store.get_batch(conn, batch_id(visit), org=visit.queue.org, with_states=False)
        at = await now(conn)
    if found is None:
        raise BatchNotFound(batch_id(visit))
    return {
        "batch": found,
        "now": at,
        "note": NOTES.get(visit.request.query_params.get("note", "")),
        "retry": visit.form("retry", max_attempts=""),
    }


async def failures(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        jobs = await store.list_jobs(
            conn, limit=NEWEST, org=visit.queue.org, state=JobState.FAILED, batch_id=batch_id(visit)
        )
        return {"jobs": jobs, "now": await now(conn), "all": {"batch": batch_id(visit), "state": "failed"}}


async def act(visit: Visit) -> Response:
    """Close, cancel or retry a batch, and come back to it."""
    known, word = batch_id(visit), str(visit.request.path_params["act"])

    async def do(form: dict[str, str]) -> str:
        done = True
        if word == "close":
            await visit.queue.close_batch(known)
        elif word == "cancel":
            reason = form.get("reason", "Cancelled in the console.")[:2_000]
            done = (await visit.queue.cancel_batch(known, reason, max_seconds=ACTION_SECONDS)).done
        else:
            action = await visit.queue.retry_failed(
                known,
                max_attempts=whole(form, "max_attempts", 1, 1_000),
                and_cancelled="and_cancelled" in form,
                max_seconds=ACTION_SECONDS,
            )
            done = action.done
        return visit.url("batch", {} if done else {"note": "more"}, id=known)

    if word not in {"close", "cancel", "retry"}:
        raise not_found("There is no such page.")
    return await detail.take(visit, "retry" if word == "retry" else None, do)


page = ListPage(
    name="batches",
    title="Batches",
    template="batches.html",
    filters=FILTERS,
    offer=offer,
    regions=[Region(name="batches", label="Batches", load=table, topics=("jobs", "batches"))],
)

detail = Page(
    name="batch",
    title="Batch",
    template="batch.html",
    section="batches",
    regions=[
        Region(name="batch", label="Progress", load=progress, topics=("batch:{id}",)),
        Region(name="batch_failures", label="Newest failures", load=failures, topics=("batch:{id}",)),
    ],
)
