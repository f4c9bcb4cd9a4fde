"""/queues, /workers and /stats: what is waiting where, and who works."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from starlette.responses import Response

from queue_pg import store
from queue_pg.models import QueueStats
from queue_pg_api.action_schemas import ScaleAnswer, ScaleQuery
from queue_pg_api.answers import QueueAnswer, QueuesAnswer, StatsAnswer, WorkersAnswer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import invalid, json_response, not_found
from queue_pg_api.rendering import queue_json, worker_json
from queue_pg_api.schemas import DrainBody, NoBody, NoQuery, PauseBody, ResumeBody

endpoints = Endpoints("Queues")

COUNTED_STATES = ("scheduled", "waiting", "queued", "running", "completed", "failed", "cancelled")
MAX_NAME_LENGTH = 200

QueueCall = (
    Call[NoQuery, NoBody]
    | Call[NoQuery, PauseBody]
    | Call[NoQuery, ResumeBody]
    | Call[NoQuery, DrainBody]
    | Call[ScaleQuery, NoBody]
)


@endpoints.get("/queues", answers={200: QueuesAnswer}, refuses=(422, 503))
async def list_queues(call: Call[NoQuery, NoBody]) -> Response:
    """List the queues with their jobs by state."""
    return json_response({"queues": [queue_json(each) for each in await call.queue.stats()]})


@endpoints.post("/queues/{queue:path}/pause", answers={200: QueueAnswer}, refuses=(403, 404, 422, 503))
async def pause_queue(call: Call[NoQuery, PauseBody]) -> Response:
    """Stop claims from a queue, until a moment or until resumed. What runs goes on."""
    name = _queue_name(call)
    if call.body.until is not None and call.body.until <= datetime.now(UTC):
        raise invalid("until", "is not in the future; to end a pause, resume the queue")
    await call.queue.pause(name, call.body.until)
    return json_response(queue_json(await _stats_of(call, name)))


@endpoints.post("/queues/{queue:path}/drain", answers={200: QueueAnswer}, refuses=(403, 404, 422, 503))
async def drain_queue(call: Call[NoQuery, DrainBody]) -> Response:
    """Have a queue take no new jobs until it is resumed; those it has are done.

    Submissions to it are refused (409, `queue_draining`). It ends a pause, and a pause ends it.
    """
    name = _queue_name(call)
    await call.queue.drain(name)
    return json_response(queue_json(await _stats_of(call, name)))


@endpoints.post("/queues/{queue:path}/resume", answers={200: QueueAnswer}, refuses=(403, 404, 422, 503))
async def resume_queue(call: Call[NoQuery, ResumeBody]) -> Response:
    """End the pause of a queue, or have a draining one take jobs again; an active one stays as it is."""
    name = _queue_name(call)
    await call.queue.resume(name)
    return json_response(queue_json(await _stats_of(call, name)))


@endpoints.get("/queues/{queue:path}", answers={200: QueueAnswer}, refuses=(404, 422, 503))
async def get_queue(call: Call[NoQuery, NoBody]) -> Response:
    """Read one queue."""
    return json_response(queue_json(await _stats_of(call, _queue_name(call))))


@endpoints.get("/scale/{queue:path}", answers={200: ScaleAnswer}, refuses=(404, 422, 503))
async def get_scale(call: Call[ScaleQuery, NoBody]) -> Response:
    """Say how many workers a queue needs; KEDA's metrics-api scaler reads `desired_workers`.

    A queue without jobs is answered too.
    """
    query = call.query
    if query.min > query.max:
        raise invalid("min", "is more than max")
    found = await call.queue.scale(
        _queue_name(call),
        slots=query.slots,
        jobs_per_worker=query.jobs_per_worker,
        target_wait=query.target_wait,
        job_seconds=query.job_seconds,
        min_workers=query.min,
        max_workers=query.max,
    )
    return json_response(asdict(found))


@endpoints.get("/workers", answers={200: WorkersAnswer}, refuses=(422, 503))
async def list_workers(call: Call[NoQuery, NoBody]) -> Response:
    """List the worker processes; those that ended without a word are gone after a while."""
    return json_response({"workers": [worker_json(each) for each in await call.queue.workers()]})


@endpoints.get("/stats", answers={200: StatsAnswer}, refuses=(422, 503))
async def get_stats(call: Call[NoQuery, NoBody]) -> Response:
    """Count jobs by state, over all queues and in each; the live workers; who keeps dead rows in place."""
    queues = await call.queue.stats()
    totals: dict[str, int] = {state: sum(getattr(each, state) for each in queues) for state in COUNTED_STATES}
    workers = sum(worker.live for worker in await call.queue.workers())
    async with call.queue.connection() as connection:
        horizon = await store.horizon(connection)
    return json_response(
        {
            **totals,
            "processing": totals["running"],
            "total": sum(totals.values()),
            "workers": workers,
            "horizon": None if horizon is None else asdict(horizon),
            "queues": [queue_json(each) for each in queues],
        }
    )


def _queue_name(call: QueueCall) -> str:
    name = str(call.request.path_params["queue"])
    # What cannot be a queue's name names no queue; Postgres would refuse NUL, and the driver a lone surrogate.
    if not 1 <= len(name) <= MAX_NAME_LENGTH or "\x00" in name or not name.isprintable():
        raise not_found("No such queue.", code="queue_not_found")
    return name


async def _stats_of(call: QueueCall, name: str) -> QueueStats:
    for each in await call.queue.stats():
        if each.queue == name:
            return each
    raise not_found(f"No queue {name!r}: no job was ever submitted to it.", code="queue_not_found")
