"""/jobs/{id}/steps, /signals and /rerun: what a job has done, what it waits for, and running it again to compare."""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from queue_pg_api.answers import JobAnswer, SignalAnswer, StepsAnswer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import invalid, json_response
from queue_pg_api.rendering import job_json, step_json
from queue_pg_api.schemas import NoBody, NoQuery, RerunBody, SignalBody
from queue_pg_api.submissions import location

endpoints = Endpoints("Jobs")


@endpoints.get("/jobs/{id}/steps", answers={200: StepsAnswer}, refuses=(404, 422, 503))
async def list_steps(call: Call[NoQuery, NoBody]) -> Response:
    """List the steps of a job: what its handler has finished, and what it waits for."""
    return json_response({"steps": [step_json(step) for step in await call.queue.steps(call.job_id)]})


@endpoints.post(
    "/jobs/{id}/signals/{name:path}",
    answers={201: SignalAnswer, 200: SignalAnswer},
    refuses=(403, 404, 409, 413, 415, 422, 503),
)
async def signal_job(call: Call[NoQuery, SignalBody]) -> Response:
    """Tell a job that an event has come.

    A job that waits for it runs now; one that does not yet finds it when it does. Of one name the first signal counts:
    201; any later one changes nothing: 200.
    """
    job_id, name = call.job_id, str(call.request.path_params["name"])
    created = await call.queue.signal(job_id, name, call.body.payload)
    return json_response({"id": str(job_id), "name": name, "created": created}, 201 if created else 200)


@endpoints.post("/jobs/{id}/rerun", answers={201: JobAnswer}, refuses=(403, 404, 413, 415, 422, 503))
async def rerun_job(call: Call[NoQuery, RerunBody]) -> Response:
    """Run a job again as a new one, linked by `rerun_of`, perhaps with another payload or model.

    The origin, live or ended, stays as it is. What is not given is as in the origin; its unique key, deadline, parent
    and batch are not taken over.
    """
    body = call.body
    if body.run_at is not None and body.delay_seconds is not None:
        raise invalid("delay_seconds", "excludes run_at; give one of them")
    job = await call.queue.rerun(
        call.job_id,
        payload=body.payload,
        payload_patch=body.payload_patch,
        model=body.model,
        queue=body.queue,
        priority=body.priority,
        run_at=body.run_at,
        delay=None if body.delay_seconds is None else timedelta(seconds=body.delay_seconds),
        max_attempts=body.max_attempts,
        timeout=None if body.timeout_seconds is None else timedelta(seconds=body.timeout_seconds),
        tags=body.tags,
        metadata=body.metadata,
    )
    return json_response(job_json(job), 201, headers={"location": location(call, job.id)})
