"""`/console/new`: submit a job by a form, with a prompt, a description or any payload, now or later."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from starlette.responses import Response

from queue_pg import store
from queue_pg.errors import QueuePgError, SubmitError
from queue_pg.looking import now
from queue_pg.models import KindInfo
from queue_pg.payloads import parse_json
from queue_pg.task_model import NewTask
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import ApiError, invalid, translate
from queue_pg_api.pages.forms import FormState, check_fields, read_form, words
from queue_pg_api.pages.page import Page, Visit
from queue_pg_api.rendering import json_or_mark
from queue_pg_api.schemas import MAX_DELAY_SECONDS, PRIORITY_NAMES, SubmitBody, TaskBody
from queue_pg_api.submissions import to_new_job

FIELDS = (
    "mode", "prompt", "model", "description", "planner", "kind", "payload", "name", "queue", "priority", "when",
    "delay", "unit", "at", "run_at", "tags", "max_attempts", "unique_key",
)  # fmt: skip
UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
MAX_OFFERED = 100
MAX_SCHEMA = 4_096
DEFAULTS = {"mode": "prompt", "queue": "default", "priority": "normal", "when": "now", "unit": "min"}


def to_submission(form: dict[str, str], max_payload_bytes: int) -> SubmitBody:
    """Make what the API takes of what the form says. Raises ApiError naming the field."""
    body: dict[str, Any] = {name: form[name] for name in ("queue", "priority", "unique_key") if name in form}
    body |= {**job_of(form, max_payload_bytes), **_terms(form)}
    if "name" in form:
        body["metadata"] = {"task": {"name": form["name"].strip()}}
    match form.get("when", "now"):
        case "now":
            pass
        case "in":
            body["delay_seconds"] = _number(form, "delay") * UNITS.get(form.get("unit", "min"), 60)
        case "at":
            body["run_at"] = moment_of(form)
        case _:
            raise invalid("when", "should be now, in or at")
    return check_model(SubmitBody, body)


def to_task(form: dict[str, str], at: datetime) -> TaskBody:
    """Make a task to be planned of what the form says; `at` is the time now. Raises ApiError naming the field."""
    if not form.get("description", "").strip():
        raise invalid("description", "is empty; say what is to be done")
    names = ("description", "planner", "name", "queue", "priority", "unique_key")
    body: dict[str, Any] = {**{name: form[name] for name in names if name in form}, **_terms(form)}
    match form.get("when", "now"):
        case "now":
            pass
        case "in":
            seconds = _number(form, "delay") * UNITS.get(form.get("unit", "min"), 60)
            if seconds > MAX_DELAY_SECONDS:
                raise invalid("delay", "is longer than a hundred years")
            body["scheduled_for"] = (at + timedelta(seconds=seconds)).isoformat()
        case "at":
            body["scheduled_for"] = moment_of(form)
        case _:
            raise invalid("when", "should be now, in or at")
    return check_model(TaskBody, body)


def _terms(form: dict[str, str]) -> dict[str, Any]:
    terms: dict[str, Any] = {}
    if "tags" in form:
        terms["tags"] = words(form["tags"])
    if "max_attempts" in form:
        terms["max_attempts"] = _number(form, "max_attempts")
    return terms


def job_of(form: dict[str, str], max_payload_bytes: int) -> dict[str, Any]:
    """Return kind and payload as the form says them: a prompt for a chat model, or any."""
    if form.get("mode", "prompt") == "prompt":
        if not form.get("prompt", "").strip():
            raise invalid("prompt", "is empty; say what the model is to do")
        payload = {"prompt": form["prompt"]}
        if "model" in form:
            payload["model"] = form["model"].strip()
        return {"kind": "chat", "payload": payload}
    if "kind" not in form:
        raise invalid("kind", "is empty; say which handler is to run the job")
    text = form.get("payload", "{}").encode("utf-8")
    return {"kind": form["kind"].strip(), "payload": parse_json(text, field="payload", max_bytes=max_payload_bytes)}


def moment_of(form: dict[str, str]) -> str:
    """Return the time in the field `at`: with scripts as `run_at`, which knows the visitor's zone, else as UTC."""
    if "at" not in form:
        raise invalid("at", "is empty; say at what time")
    return form.get("run_at") or form["at"] + (":00Z" if len(form["at"]) == 16 else "Z")


def _number(form: dict[str, str], field: str) -> int:
    text = form.get(field, "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise invalid(field, "should be a whole number")
    return int(text)


async def submit(visit: Visit) -> Response:
    """Store the job and go to its page; what is refused comes back in the form, with the reason."""
    form = await read_form(visit.request)
    try:
        check_fields(form, FIELDS)
        job_id = await (_submit_task if form.get("mode") == "description" else _submit_job)(visit, form)
    except (ApiError, SubmitError) as error:
        refusal = translate(error) if isinstance(error, QueuePgError) else error
        if refusal.status != 422:
            raise
        return await _form(visit, form, refusal)
    visit.figures.changed()
    return visit.redirect(visit.url("job", id=job_id))


async def _submit_job(visit: Visit, form: dict[str, str]) -> UUID:
    new = to_new_job(to_submission(form, visit.queue.max_payload_bytes), None, None)
    await visit.service.kinds.check([(new.kind, new.queue)])
    job, _ = await visit.queue.submit_new(new)
    return job.id


async def _submit_task(visit: Visit, form: dict[str, str]) -> UUID:
    async with visit.figures.looking() as conn:
        body = to_task(form, await now(conn))
    settings = visit.service.settings
    given: dict[str, Any] = body.model_dump(exclude={"timeout_seconds"})
    given |= {"planner": body.planner or settings.planner, "subtask_queue": settings.subtask_queue}
    return (await visit.queue.submit_task(NewTask(**given))).id


class NewJobPage(Page):
    """The form; the query string may fill it in, so that a link can offer a job."""

    async def __call__(self, visit: Visit) -> Response:
        given = {name: value for name, value in visit.request.query_params.items() if name in FIELDS}
        if "kind" in given and "mode" not in given:
            given["mode"] = "payload"
        return await _form(visit, given, None)


async def _form(visit: Visit, given: dict[str, str], refusal: ApiError | None) -> Response:
    overview = await visit.figures.overview()
    async with visit.figures.looking() as conn:
        kinds: list[KindInfo] = await store.kinds(conn)
    known = next((kind for kind in kinds if kind.kind == given.get("kind")), None)
    return visit.render(
        page.template,
        200 if refusal is None else refusal.status,
        page=page,
        parts={},
        form=FormState(
            {**dict.fromkeys(FIELDS, ""), **DEFAULTS, **given},
            None if refusal is None else refusal.detail,
            "" if refusal is None else str(refusal.about.get("field", "")).partition(".")[0].partition("[")[0],
        ),
        kinds=kinds[:MAX_OFFERED],
        known=known,
        schema="" if known is None or known.schema is None else json.dumps(json_or_mark(known.schema))[:MAX_SCHEMA],
        queues=sorted({each.queue for each in overview.queues})[:MAX_OFFERED],
        priorities=list(PRIORITY_NAMES),
    )


page = NewJobPage(name="new", title="New job", template="new.html")
