"""`/console/jobs/{id}`: one job, and what can be done with it.

Each region loads what it shows and no more: while the job runs its payload, which may be big, is not read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from starlette.responses import Response

from queue_pg import artifact_store, store
from queue_pg.look_tasks import look_task
from queue_pg.looking import (
    EventLook,
    JobLook,
    SaidLook,
    look_attempts,
    look_events,
    look_family,
    look_job,
    look_said,
    look_steps,
)
from queue_pg.models import JobState
from queue_pg_api.errors import invalid
from queue_pg_api.pages.family import draw
from queue_pg_api.pages.figures import MAX_EDGES
from queue_pg_api.pages.json_text import indented
from queue_pg_api.pages.page import Context, Page, Region, Visit
from queue_pg_api.pages.templating import visible

PREVIEW_CHARACTERS = 4_096
MAX_EVENTS = 200
MAX_SAID = 300
MAX_STEPS = 100
MAX_ARTIFACTS = 200
MAX_STREAM = 64
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
        retriable = job.state in RETRIABLE
        stepped = retriable and await look_steps(conn, job.id, org=visit.queue.org, limit=1, characters=0)
    return {
        "job": job,
        "look": look,
        "now": look.now,
        "why": why,
        "retriable": retriable,
        "stepped": stepped,
        "retry": visit.form("retry", max_attempts=""),
    }


async def timeline(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        look = await look_job(conn, visit.job_id, org=visit.queue.org)
        events = await look_events(conn, look.job.id, org=visit.queue.org, limit=MAX_EVENTS)
        cut = len(events) == MAX_EVENTS
        # Those of which the timeline shows the start.
        after = events[0].seq - 1 if cut else 0
        attempts = await look_attempts(conn, look.job.id, org=visit.queue.org, after=after, limit=MAX_EVENTS)
    return {
        "moments": moments(look, events),
        "attempts": attempts,
        "now": look.now,
        "cut": cut,
        "job": look.job,
    }


async def result(visit: Visit) -> Context:
    look = await _look(visit, "result", "error")
    return {"job": look.job, "previews": look.previews, "documents": ("result", "error")}


async def output(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        look = await look_job(conn, visit.job_id, org=visit.queue.org)
        stream = _stream(visit)
        said = await look_said(conn, look.job.id, org=visit.queue.org, limit=MAX_SAID, stream=stream)
    streams = {name for name in (stream, *(each.stream for each in said)) if name}
    return {
        "job": look.job,
        "said": joined(said),
        "cut": len(said) == MAX_SAID,
        "stream": stream,
        "streams": sorted(streams) if stream or len(streams) > 1 else [],
    }


def _stream(visit: Visit) -> str | None:
    """Return the one stream of log lines that is asked for, None for everything."""
    stream = visit.request.query_params.get("stream", "")
    if len(stream) > MAX_STREAM or "\x00" in stream:
        raise invalid("stream", f"should be the name of one, at most {MAX_STREAM} characters")
    return stream or None


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


async def steps(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        look = await look_job(conn, visit.job_id, org=visit.queue.org)
        found = await look_steps(conn, look.job.id, org=visit.queue.org, limit=MAX_STEPS)
    return {
        "job": look.job,
        "steps": found,
        "now": look.now,
        "cut": len(found) == MAX_STEPS,
        "signal": visit.form("signal", name="", payload=""),
    }


async def artifacts(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        found = await artifact_store.list_artifacts(conn, visit.job_id, org=visit.queue.org)
        look = await look_job(conn, visit.job_id, org=visit.queue.org)
    return {"job": look.job, "artifacts": found[:MAX_ARTIFACTS], "count": len(found), "now": look.now}


async def family(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        found = await look_family(conn, visit.job_id, org=visit.queue.org, limit=MAX_EDGES)
    own = visit.job_id
    # A plan's subtasks are told of by the region of the task.
    planned = own in found.relatives and found.relatives[own].kind == "plan"
    parents = [edge for edge in found.edges if edge.child == own]
    return {
        "own": own,
        "parents": [edge for edge in parents if not (planned and edge.name.startswith("subtask-"))],
        "children": [edge for edge in found.edges if edge.parent == own],
        "relatives": found.relatives,
        "picture": draw(found),
        "cut": len(found.edges) >= MAX_EDGES,
        # The others change without this job.
        "more_topics": ("family:{id}",) if found.edges else (),
    }


async def task(visit: Visit) -> Context:
    async with visit.figures.looking() as conn:
        found = await look_task(conn, visit.job_id, org=visit.org)
    return {
        "task": found,
        "ended": sum(each.state is None or each.state.finished for each in found.subtasks),
        "more_topics": ("family:{id}",) if found.subtasks else (),
    }


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


def editable(look: JobLook) -> str | None:
    """Return the payload as a field can hold it; None: it is too long, or holds what a field would not show."""
    preview = look.previews["payload"]
    text = indented(preview.text)
    return text if preview.whole and visible(text) == text else None


class JobPage(Page):
    """A job, with the forms that make another one of it. They are no region: no refresh comes near them."""

    async def show(self, visit: Visit, status: int = 200, **context: Any) -> Response:
        look = await _look(visit, "payload")
        payload = editable(look)
        return await Page.show(
            self,
            visit,
            status,
            job=look.job,
            chain=visit.form("chain", prompt=CHAINED, model="", queue=look.job.queue, on_unsuccessful="cancel"),
            rerun=visit.form("rerun", model="", queue=look.job.queue, payload=payload),
            editable=payload is not None,
            **context,
        )


# Chat jobs answer with a text; what others leave is written as JSON.
CHAINED = "{{ parents.parent.output.text }}"

TOPICS = ("job:{id}",)

page = JobPage(
    name="job",
    title="Job",
    template="job.html",
    section="jobs",
    regions=[
        # What it waits for changes with the queues and the workers.
        Region(name="headline", label="State", load=headline, topics=(*TOPICS, "queues", "workers")),
        Region(name="task", label="Task", load=task, topics=TOPICS),
        Region(name="timeline", label="Timeline", load=timeline, topics=TOPICS),
        Region(name="steps", label="Steps", load=steps, topics=TOPICS),
        Region(name="family", label="Parents and children", load=family, topics=TOPICS),
        Region(name="output", label="Output and logs", load=output, topics=TOPICS),
        Region(name="artifacts", label="Artifacts", load=artifacts, topics=TOPICS),
        Region(name="result", label="Result", load=result, topics=TOPICS),
        Region(name="payload", label="Payload", load=payload),
        Region(name="details", label="Details", load=details, topics=TOPICS),
    ],
)
