"""What can be done with one job: cancel, retry, signal, chain and run again."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from queue_pg.looking import look_job
from queue_pg.payloads import parse_json
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import invalid
from queue_pg_api.pages.forms import check_fields, whole
from queue_pg_api.pages.job import PREVIEW_CHARACTERS, editable, page
from queue_pg_api.pages.page import Visit
from queue_pg_api.schemas import ChainBody, RerunBody
from queue_pg_api.submissions import to_new_job

MAX_SIGNAL_BYTES = 1024 * 1024
# What the buttons of an event say; the third one sends what is written.
ANSWERS = {"approve": {"approved": True}, "reject": {"approved": False}}


async def cancel(visit: Visit) -> Response:
    async def do(form: dict[str, str]) -> str:
        await visit.queue.cancel(visit.job_id, form.get("reason", "Cancelled in the console.")[:2_000])
        return visit.url("job", id=visit.job_id)

    return await page.take(visit, None, do)


async def retry(visit: Visit) -> Response:
    async def do(form: dict[str, str]) -> str:
        await visit.queue.retry(visit.job_id, whole(form, "max_attempts", 1, 1_000), fresh="fresh" in form)
        return visit.url("job", id=visit.job_id)

    return await page.take(visit, "retry", do)


async def signal(visit: Visit) -> Response:
    """Tell the job that an event has come, with an answer or a payload of one's own."""

    async def do(form: dict[str, str]) -> str:
        name, answer = form.get("name", "").strip(), form.get("answer", "payload")
        if not 1 <= len(name) <= 200:
            raise invalid("name", "should have 1 to 200 characters: what the handler waits for")
        payload: Any = ANSWERS.get(answer)
        if answer not in {*ANSWERS, "payload"}:
            raise invalid("answer", "should be approve, reject or payload")
        if answer == "payload" and "payload" in form:
            payload = parse_json(form["payload"].encode(), field="payload", max_bytes=MAX_SIGNAL_BYTES)
        await visit.queue.signal(visit.job_id, name, payload)
        return visit.url("job", id=visit.job_id)

    return await page.take(visit, "signal", do)


async def chain(visit: Visit) -> Response:
    """Submit a prompt that takes what this job has made, and go to the new job."""

    async def do(form: dict[str, str]) -> str:
        check_fields(form, ("prompt", "model", "queue", "on_unsuccessful"))
        if not form.get("prompt", "").strip():
            raise invalid("prompt", "is empty; say what the model is to do")
        payload = {"prompt": form["prompt"]}
        if "model" in form:
            payload["model"] = form["model"].strip()
        wanted: dict[str, Any] = {name: form[name] for name in ("queue", "on_unsuccessful") if name in form}
        wanted |= {"kind": "chat", "payload": payload}
        body = check_model(ChainBody, wanted)
        new = to_new_job(body, None, None)
        await visit.service.kinds.check([(new.kind, new.queue)])
        job, _ = await visit.queue.chain_new(visit.job_id, new, on_unsuccessful=body.on_unsuccessful)
        return visit.url("job", id=job.id)

    return await page.take(visit, "chain", do)


async def rerun(visit: Visit) -> Response:
    """Run the job again as a new one, perhaps with another model or payload, and go to that."""

    async def do(form: dict[str, str]) -> str:
        check_fields(form, ("model", "payload", "queue"))
        body: dict[str, Any] = {name: form[name].strip() for name in ("model", "queue") if name in form}
        # The field begins with the payload; what was not changed is not sent through Python and back.
        if "payload" in form and form["payload"] != await _payload(visit):
            limit = visit.queue.max_payload_bytes
            body["payload"] = parse_json(form["payload"].encode(), field="payload", max_bytes=limit)
        wanted = check_model(RerunBody, body)
        job = await visit.queue.rerun(visit.job_id, payload=wanted.payload, model=wanted.model, queue=wanted.queue)
        return visit.url("job", id=job.id)

    return await page.take(visit, "rerun", do)


async def _payload(visit: Visit) -> str | None:
    async with visit.figures.looking() as conn:
        look = await look_job(
            conn, visit.job_id, org=visit.queue.org, documents=("payload",), characters=PREVIEW_CHARACTERS
        )
    return editable(look)
