"""`/console/jobs/{id}`: one job, and what can be done with it.

Each region loads what it shows and no more: while the job runs its payload, which may be big, is not read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from starlette.responses import Response

from queue_pg import store
from queue_pg.looking import EventLook, JobLook, SaidLook, look_events, look_job, look_said
from queue_pg.models import JobState
from queue_pg_api.errors import invalid
from queue_pg_api.pages.forms import read_form
from queue_pg_api.pages.page import Context, Page, Region, Visit

PREVIEW_CHARACTERS = 4_096
MAX_EVENTS = 200
MAX_SAID = 300
RETRIABLE = frozenset({JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One line of the timeline."""

    key: str
    at: datetime
    what: str
    detail: str = ""
    attempt: str | None = None
    worker: str | None = None
    code: str | None = None
    message: str | None = None
    ahead: bool = False


async def _look(visit: Visit, *documents: str) -> JobLook:
    async with visit.figures.looking() as conn:
        return await look_job(
            conn, visit.job_id, org=visit.queue.org, documents=documents, characters=PREVIEW_CHARACTERS
        )


async def headline(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        look = await look_job(conn, visit.job_id, org=visit.queue.org)
        job = look.job
        why = [] if job.finished else await store.why_waiting(conn, job.id, org=visit.queue.org)
    return {"job": job, "look": look, "now": look.now, "why": why, "retriable": job.state in RETRIABLE}


async def timeline(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        look = await look_job(conn, visit.job_id, org=visit.queue.org)
        events = await look_events(conn, look.job.id, org=visit.queue.org, limit=MAX_EVENTS)
    return {"moments": moments(look, events), "now": look.now, "cut": len(events) == MAX_EVENTS, "job": look.job}


async def result(visit: Visit) -> Context:
    look = await _look(visit, "result", "error")
    return {"job": look.job, "previews": look.previews, "documents": ("result", "error")}


async def output(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        look = await look_job(conn, visit.job_id, org=visit.queue.org)
        said = await look_said(conn, look.job.id, org=visit.queue.org, limit=MAX_SAID)
    return {"job": look.job, "said": joined(said), "cut": len(said) == MAX_SAID}


def joined(said: Sequence[SaidLook]) -> list[SaidLook]:
    """Put chunks of output that follow each other together: they were cut anywhere."""
    found: list[SaidLook] = []
    for each in said:
        text = _text(each)
        if found and each.type == "chunk" == found[-1].type:
            found[-1] = replace(found[-1], text=_text(found[-1]) + text)
        else:
            found.append(replace(each, text=text))
    return found


def _text(said: SaidLook) -> str:
    return said.text or ""


async def payload(visit: Visit) -> Context:
    look = await _look(visit, "payload", "metadata")
    return {"job": look.job, "previews": look.previews, "documents": ("payload", "metadata")}


async def details(visit: Visit) -> Context:
    look = await _look(visit)
    return {"job": look.job, "now": look.now}


def moments(look: JobLook, events: Sequence[EventLook]) -> list[Moment]:
    """Put what the job's row says and what is stored of it into one list by time.

    The straight way (submitted, started, completed) may leave no events; those that are stored come from there.
    """
    job = look.job
    stored = {(event.type, event.attempt) for event in events}
    types = {event.type for event in events}
    found = [
        Moment(
            key=f"event-{event.seq}",
            at=event.at,
            what=event.type.replace("_", " "),
            attempt=event.attempt,
            worker=event.worker_id,
            code=event.error_code,
            message=event.error_message,
        )
        for event in events
    ]
    if "submitted" not in types:
        found.append(Moment(key="submitted", at=job.created_at, what="submitted", detail=f"to queue {job.queue}"))
    if job.started_at is not None and ("started", str(job.attempt)) not in stored:
        found.append(
            Moment(
                key=f"started-{job.lease_token}",
                at=job.started_at,
                what="started",
                attempt=str(job.attempt),
                worker=job.worker_id,
            )
        )
    if job.finished_at is not None and not types & {job.state.value, "expired"}:
        found.append(
            Moment(
                key="ended",
                at=job.finished_at,
                what=job.state.value,
                attempt=str(job.attempt),
                code=look.error_code,
                message=look.error_message,
            )
        )
    if job.state is JobState.SCHEDULED:
        found.append(Moment(key="due", at=job.run_at, what="due", ahead=job.run_at > look.now))
    # Sorting keeps the order of what happened at the same moment, and submissions come first.
    return sorted(found, key=lambda each: (each.at, each.key != "submitted", each.key == "ended"))


async def cancel(visit: Visit) -> Response:
    form = await read_form(visit.request)
    await visit.queue.cancel(visit.job_id, form.get("reason", "Cancelled in the console.")[:2_000])
    return _back(visit)


async def retry(visit: Visit) -> Response:
    form = await read_form(visit.request)
    text = form.get("max_attempts")
    if text is not None and not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 1_000):
        raise invalid("max_attempts", "should be a number from 1 to 1,000")
    await visit.queue.retry(visit.job_id, None if text is None else int(text))
    return _back(visit)


def _back(visit: Visit) -> Response:
    visit.figures.changed()
    return visit.redirect(visit.url("job", id=visit.job_id))


TOPICS = ("job:{id}",)

page = Page(
    name="job",
    title="Job",
    template="job.html",
    regions=[
        # What it waits for changes with the queues and the workers.
        Region(name="headline", label="State", load=headline, topics=(*TOPICS, "queues", "workers")),
        Region(name="timeline", label="Timeline", load=timeline, topics=TOPICS),
        Region(name="output", label="Output and logs", load=output, topics=TOPICS),
        Region(name="result", label="Result", load=result, topics=TOPICS),
        Region(name="payload", label="Payload", load=payload),
        Region(name="details", label="Details", load=details, topics=TOPICS),
    ],
)
