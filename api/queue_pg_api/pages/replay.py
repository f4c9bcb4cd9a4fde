"""`/console/replay`: how many ended jobs a filter names, for which errors, and the button that retries them all."""

from __future__ import annotations

from collections import Counter

from starlette.responses import Response

from queue_pg import action_store, arguments, store
from queue_pg.action_model import JobFilter
from queue_pg.errors import InvalidJob
from queue_pg.models import JobState
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import invalid
from queue_pg_api.pages import jobs
from queue_pg_api.pages.forms import check_fields, whole
from queue_pg_api.pages.lists import asked, filters
from queue_pg_api.pages.page import Context, Page, Region, Visit
from queue_pg_api.schemas import JobFilter as ListFilter

REPLAYED = (JobState.FAILED, JobState.CANCELLED)
# Of a form that retries many; the page then says that there is more.
ACTION_SECONDS = 10.0
# Bites of fifty thousand jobs that are looked at to count what matches, and jobs whose errors are told apart.
MOST_BITES = 4
NEWEST = 1_000
MOST_CODES = 20
NOTES = {"more": "Not all jobs had their turn in time. Do it again to go on.", "done": "They are back in their queues."}


def _wanted(visit: Visit) -> tuple[ListFilter, JobFilter]:
    wanted = check_model(ListFilter, {"state": JobState.FAILED, **asked(visit, jobs.FILTERS)})
    if wanted.state not in REPLAYED:
        raise invalid("state", "should be failed or cancelled")
    try:
        arguments.check_filters(
            queue=wanted.queue, kind=wanted.kind, tag=wanted.tag, unique_key=wanted.key, error_code=wanted.error_code
        )
    except InvalidJob as error:
        raise invalid(error.field, error.reason) from None
    return wanted, JobFilter(
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
    )


async def counted(visit: Visit) -> Context:
    shown, wanted = _wanted(visit)
    matched = 0
    after = as_of = None
    async with visit.figures.looking() as conn:
        for _ in range(MOST_BITES):
            bite = await action_store.act_on_jobs(
                conn,
                "retry",
                wanted.to_json(),
                org=visit.queue.org,
                reason=None,
                priority=None,
                max_attempts=None,
                fresh=False,
                dry_run=True,
                max_jobs=1,
                after=after,
                as_of=as_of,
            )
            matched += bite.matched
            after, as_of = bite.last_id, bite.as_of
            if after is None:
                break
        newest = await store.list_jobs(
            conn,
            limit=NEWEST,
            org=visit.queue.org,
            state=shown.state,
            queue=shown.queue,
            kind=shown.kind,
            tag=shown.tag,
            batch_id=shown.batch,
            parent_id=shown.parent,
            unique_key=shown.key,
            rerun_of=shown.rerun_of,
            error_code=shown.error_code,
            created_after=shown.created_after,
            created_before=shown.created_before,
        )
    codes = Counter(str((job.error or {}).get("code", "error")) for job in newest)
    return {
        "matched": matched,
        "more": after is not None,
        "state": str(shown.state),
        "codes": codes.most_common(MOST_CODES),
        "looked_at": len(newest),
        "filters": {"state": str(shown.state), **filters(visit, jobs.FILTERS)},
        "note": NOTES.get(visit.request.query_params.get("set", "")),
    }


async def act(visit: Visit) -> Response:
    """Retry all that match, and come back."""
    _, wanted = _wanted(visit)

    async def do(form: dict[str, str]) -> str:
        check_fields(form, ("max_attempts",))
        result = await visit.queue.act_on_jobs(
            "retry",
            wanted,
            max_attempts=whole(form, "max_attempts", 1, 1_000),
            max_seconds=ACTION_SECONDS,
        )
        given = filters(visit, jobs.FILTERS)
        return visit.url("replay", {**given, "set": "done" if result.done else "more"})

    return await page.take(visit, "replay", do)


page = Page(
    name="replay",
    title="Retry all that match",
    template="replay.html",
    section="jobs",
    regions=[Region(name="replay", label="What matches", load=counted)],
)
