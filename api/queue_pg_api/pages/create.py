"""`/console/new`: submit a job by a form, with a prompt or with any payload, now or later."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from queue_pg import store
from queue_pg.errors import QueuePgError, SubmitError
from queue_pg.models import KindInfo
from queue_pg.payloads import parse_json
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import ApiError, invalid, translate
from queue_pg_api.pages.forms import check_fields, read_form, words
from queue_pg_api.pages.page import Page, Visit
from queue_pg_api.rendering import json_or_mark
from queue_pg_api.schemas import PRIORITY_NAMES, SubmitBody
from queue_pg_api.submissions import to_new_job

FIELDS = (
    "mode", "prompt", "model", "kind", "payload", "queue", "priority", "when", "delay", "unit", "at", "run_at", "tags",
    "max_attempts", "unique_key",
)  # fmt: skip
UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
MAX_OFFERED = 100
MAX_SCHEMA = 4_096
DEFAULTS = {"mode": "prompt", "queue": "default", "priority": "normal", "when": "now", "unit": "min"}


def to_submission(form: dict[str, str], max_payload_bytes: int) -> SubmitBody:
    """Make what the API takes of what the form says. Raises ApiError naming the field."""
    check_fields(form, FIELDS)
    body: dict[str, Any] = {name: form[name] for name in ("queue", "priority", "unique_key") if name in form}
    body |= job_of(form, max_payload_bytes)
    if "tags" in form:
        body["tags"] = words(form["tags"])
    if "max_attempts" in form:
        body["max_attempts"] = _number(form, "max_attempts")
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
        new = to_new_job(to_submission(form, visit.queue.max_payload_bytes), None, None)
        await visit.service.kinds.check([(new.kind, new.queue)])
        job, _ = await visit.queue.submit_new(new)
    except (ApiError, SubmitError) as error:
        refusal = translate(error) if isinstance(error, QueuePgError) else error
        if refusal.status != 422:
            raise
        return await _form(visit, form, refusal)
    visit.figures.changed()
    return visit.redirect(visit.url("job", id=job.id))


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
        values={**dict.fromkeys(FIELDS, ""), **DEFAULTS, **given},
        fault=None if refusal is None else refusal.detail,
        fault_field=None
        if refusal is None
        else str(refusal.about.get("field", "")).partition(".")[0].partition("[")[0],
        kinds=kinds[:MAX_OFFERED],
        known=known,
        schema="" if known is None or known.schema is None else json.dumps(json_or_mark(known.schema))[:MAX_SCHEMA],
        queues=sorted({each.queue for each in overview.queues})[:MAX_OFFERED],
        priorities=list(PRIORITY_NAMES),
    )


page = NewJobPage(name="new", title="New job", template="new.html")
