"""/batches: make them, add jobs, follow, close, cancel and retry them as a whole."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast
from uuid import UUID

from starlette.responses import Response

from queue_pg.batch_model import Batch, BatchAction
from queue_pg.callbacks import WEBHOOK
from queue_pg.errors import BatchNotFound, InvalidJob, WaitTimeout
from queue_pg.models import NewJob
from queue_pg_api.answers import BatchActionAnswer, BatchAnswer, BatchesAnswer, JobAnswer
from queue_pg_api.batch_schemas import BatchBody, BatchFilter, BatchWait, CallbackBody, CloseBody, RetryFailedBody
from queue_pg_api.bodies import is_ndjson, parse_body, read_body
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import ApiError, json_response
from queue_pg_api.longpoll import first_of, watching
from queue_pg_api.rendering import batch_json
from queue_pg_api.routes.bulk import submit_array, submit_lines
from queue_pg_api.routes.jobs import SUBMISSION
from queue_pg_api.schemas import CancelBody, NoBody, NoQuery, SubmitBody
from queue_pg_api.submissions import idempotency_key, submit_object
from queue_pg_api.template_schemas import SubmitByTemplateBody

endpoints = Endpoints("Batches")

# Of a request that cancels or retries a batch; a million jobs take longer.
ACTION_SECONDS = 20.0


@endpoints.post("/batches", answers={201: BatchAnswer}, refuses=(403, 408, 413, 415, 422, 503))
async def create_batch(call: Call[NoQuery, BatchBody]) -> Response:
    """Make an open batch. Jobs are added with `POST /batches/{id}/jobs` or their `batch_id`."""
    wanted = call.body
    callbacks = (wanted.on_complete, wanted.on_failed, wanted.on_all, wanted.on_first_failed)
    # Every worker has the kind `webhook`.
    named = [(each.kind, each.queue) for each in callbacks if each is not None and each.kind != WEBHOOK]
    await call.service.kinds.check(named)
    made = await call.queue.create_batch(
        wanted.name,
        on_complete=_callback(wanted.on_complete),
        on_failed=_callback(wanted.on_failed),
        on_all=_callback(wanted.on_all),
        on_first_failed=_callback(wanted.on_first_failed),
        metadata=wanted.metadata,
    )
    return json_response(batch_json(made), 201, headers={"location": call.url(f"/batches/{made.id}")})


@endpoints.get("/batches", answers={200: BatchesAnswer}, refuses=(422, 503))
async def list_batches(call: Call[BatchFilter, NoBody]) -> Response:
    """List batches, newest first. Their jobs: `GET /jobs?batch=`."""
    wanted = call.query
    page = await call.queue.list_batches(state=wanted.state, name=wanted.name, limit=wanted.limit, cursor=wanted.cursor)
    return json_response({"batches": [batch_json(each) for each in page.batches], "next_cursor": page.next_cursor})


@endpoints.get("/batches/{id}", answers={200: BatchAnswer}, refuses=(404, 422, 503))
async def get_batch(call: Call[BatchWait, NoBody]) -> Response:
    """Read a batch with its counts; with `wait`, when it has ended or as it is after that many seconds."""
    queue, batch_id = call.queue, _batch_id(call)
    if call.query.wait > 0:
        ended: Batch | None = None
        async with watching(call.request) as gone:
            with suppress(WaitTimeout):
                ended = await first_of(queue.wait_batch(batch_id, call.query.wait), gone, call.service.stopping)
        if ended is not None:
            return json_response(batch_json(ended))
    return json_response(batch_json(await queue.get_batch(batch_id)))


@endpoints.post(
    "/batches/{id}/jobs",
    raw_models=(SubmitBody, SubmitByTemplateBody),
    raw_body=SUBMISSION,
    answers={201: JobAnswer, 200: JobAnswer},
    refuses=(403, 404, 408, 409, 413, 415, 422, 503),
)
async def add_jobs(call: Call[NoQuery, NoBody]) -> Response:
    """Add one job or many to an open batch, with bodies and answers as of `POST /jobs`.

    409 when it is closed.
    """
    key, batch_id = idempotency_key(call.request), _batch_id(call)
    try:
        if is_ndjson(call.request):
            return await submit_lines(call, key, batch_id)
        value = parse_body(await read_body(call.request))
        if isinstance(value, list):
            return await submit_array(call, cast("list[object]", value), key, batch_id)
        return await submit_object(call, value, key, batch_id)
    except InvalidJob as error:
        if error.field == "batch_id":
            raise BatchNotFound(batch_id) from None
        raise
    except ApiError as error:
        # The database's refusal; what is wrong in the body has another code.
        if error.code == InvalidJob.code and error.about.get("field") == "batch_id":
            raise BatchNotFound(batch_id) from None
        raise


@endpoints.post("/batches/{id}/close", answers={200: BatchAnswer}, refuses=(403, 404, 422, 503))
async def close_batch(call: Call[NoQuery, CloseBody]) -> Response:
    """Say that no more jobs will be added, so that it can end; twice is fine. Waits for those being added."""
    return json_response(batch_json(await call.queue.close_batch(_batch_id(call))))


@endpoints.post("/batches/{id}/cancel", answers={200: BatchActionAnswer}, refuses=(403, 404, 409, 422, 503))
async def cancel_batch(call: Call[NoQuery, CancelBody]) -> Response:
    """Close a batch and cancel its unfinished jobs, running ones too. Send it again while `done` is false."""
    action = await call.queue.cancel_batch(_batch_id(call), call.body.reason, max_seconds=ACTION_SECONDS)
    return json_response(_action_json(action))


@endpoints.post("/batches/{id}/retry-failed", answers={200: BatchActionAnswer}, refuses=(403, 404, 422, 503))
async def retry_failed(call: Call[NoQuery, RetryFailedBody]) -> Response:
    """Put its failed jobs back into their queues.

    It ends, and calls back, once more. Call again while `done` is false.
    """
    action = await call.queue.retry_failed(
        _batch_id(call),
        max_attempts=call.body.max_attempts,
        and_cancelled=call.body.and_cancelled,
        max_seconds=ACTION_SECONDS,
    )
    return json_response(_action_json(action))


def _callback(body: CallbackBody | None) -> NewJob | None:
    return None if body is None else body.to_new_job()


def _batch_id(call: Call[Any, Any]) -> UUID:
    text = str(call.request.path_params["id"])
    try:
        if len(text) not in {32, 36}:
            raise ValueError(text)
        return UUID(text)
    except ValueError:
        raise BatchNotFound(text[:60].encode("ascii", "replace").decode()) from None


def _action_json(action: BatchAction) -> dict[str, Any]:
    return {"jobs": action.jobs, "done": action.done, "batch": batch_json(action.batch)}
