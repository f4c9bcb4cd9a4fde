"""Pull workers in any language: claim over HTTP, then all that a handler can do, with the lease token.

What they say (events, logs, progress) is in events.py, their files in artifacts.py, cancelling in jobs.py.
"""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from queue_pg.errors import LeaseLost
from queue_pg_api.answers import ClaimAnswer, FinishAnswer, HeartbeatAnswer, SavedStepAnswer, StepAnswer
from queue_pg_api.claim_room import Wanted
from queue_pg_api.endpoints import CLIENT_GONE, Call, Endpoints
from queue_pg_api.errors import invalid, json_response, raw_json_response
from queue_pg_api.longpoll import watching
from queue_pg_api.pull_schemas import (
    ClaimBody,
    CompleteBody,
    FailBody,
    HeartbeatBody,
    LeaseBody,
    PlanBody,
    SaveStepBody,
    SleepBody,
    SnoozeBody,
    WaitForEventBody,
)
from queue_pg_api.rendering import claimed_json, step_json, stored_error, timestamp
from queue_pg_api.schemas import NoQuery

TAG = "Workers"
# Apart, because /jobs/claim must be tried before /jobs/{id}.
claims = Endpoints(TAG)
endpoints = Endpoints(TAG)

WRITE_REFUSALS = (403, 404, 409, 413, 415, 422, 503)


@claims.post("/jobs/claim", answers={200: ClaimAnswer}, refuses=(403, 415, 422, 503))
async def claim_jobs(call: Call[NoQuery, ClaimBody]) -> Response:
    """Claim jobs to run.

    With `wait`, the answer comes with the first job, or empty after that many seconds. Each job is leased until
    `lease_expires_at`: heartbeat before, or another worker gets it. Naming `kinds` makes them known, so that
    submissions of them are accepted.
    """
    wanted = Wanted(
        org=call.org,
        worker=call.body.worker,
        queues=tuple(call.body.queues),
        kinds=None if call.body.kinds is None else tuple(call.body.kinds),
        max_jobs=call.body.max,
        lease_seconds=call.body.lease_seconds,
    )
    async with watching(call.request) as gone:
        jobs = await call.service.claim(wanted, wait_seconds=call.body.wait, gone=gone)
        if gone.is_set():
            return Response(status_code=CLIENT_GONE)
    return raw_json_response('{"jobs":[' + ",".join(claimed_json(job) for job in jobs) + "]}")


@endpoints.post("/jobs/{id}/heartbeat", answers={200: HeartbeatAnswer}, refuses=WRITE_REFUSALS)
async def heartbeat_job(call: Call[NoQuery, HeartbeatBody]) -> Response:
    """Keep the lease for another while."""
    job_id = call.job_id
    renewed = await call.queue.heartbeat([job_id], [call.body.lease_token], lease_seconds=call.body.lease_seconds)
    if not renewed:
        # Tells a job that nobody knows (404) from one that somebody else has (409).
        raise LeaseLost(job_id, (await call.queue.get(job_id)).state)
    return json_response({"id": str(job_id), "lease_expires_at": timestamp(renewed[0].lease_expires_at)})


@endpoints.post("/jobs/{id}/complete", answers={200: FinishAnswer}, refuses=WRITE_REFUSALS)
async def complete_job(call: Call[NoQuery, CompleteBody]) -> Response:
    """Store the result and end the job."""
    job_id = call.job_id
    state = await call.queue.complete(job_id, call.body.lease_token, call.body.result)
    return json_response({"id": str(job_id), "state": state})


@endpoints.post("/jobs/{id}/fail", answers={200: FinishAnswer}, refuses=WRITE_REFUSALS)
async def fail_job(call: Call[NoQuery, FailBody]) -> Response:
    """End the attempt as failed; it is retried while attempts are left, unless `retry` is false."""
    job_id = call.job_id
    delay = None if call.body.delay_seconds is None else timedelta(seconds=call.body.delay_seconds)
    state = await call.queue.fail(
        job_id, call.body.lease_token, stored_error(call.body.error), retry=call.body.retry, delay=delay
    )
    return json_response({"id": str(job_id), "state": state})


@endpoints.post("/jobs/{id}/snooze", answers={200: FinishAnswer}, refuses=WRITE_REFUSALS)
async def snooze_job(call: Call[NoQuery, SnoozeBody]) -> Response:
    """Give the job back to run again after a while; burns no attempt."""
    job_id, body = call.job_id, call.body
    state = await call.queue.snooze(job_id, body.lease_token, body.delay_seconds)
    return json_response({"id": str(job_id), "state": state})


@endpoints.post("/jobs/{id}/release", answers={200: FinishAnswer}, refuses=WRITE_REFUSALS)
async def release_job(call: Call[NoQuery, LeaseBody]) -> Response:
    """Give the job back to its queue now, as at shutdown; burns no attempt."""
    job_id = call.job_id
    return json_response({"id": str(job_id), "state": await call.queue.release(job_id, call.body.lease_token)})


@endpoints.post("/jobs/{id}/plan", answers={200: FinishAnswer}, refuses=WRITE_REFUSALS)
async def plan_job(call: Call[NoQuery, PlanBody]) -> Response:
    """End the attempt with a plan: the job waits for these subtasks.

    It is completed with the list of their results. Each is a job with the payload
    `{"task_id", "subtask_id", "description", "priority"}`. The first that fails for good fails the job.
    """
    job_id, body = call.job_id, call.body
    state = await call.queue.plan(
        job_id,
        body.lease_token,
        body.subtasks,
        queue=body.queue,
        kind=body.kind,
        max_attempts=body.max_attempts,
        timeout=body.timeout_seconds,
    )
    return json_response({"id": str(job_id), "state": state})


# ---- steps ------------------------------------------------------------------------------------------------------


@endpoints.post("/jobs/{id}/steps", answers={200: SavedStepAnswer}, refuses=WRITE_REFUSALS)
async def save_step(call: Call[NoQuery, SaveStepBody]) -> Response:
    """Keep the result of a finished step; `GET /jobs/{id}/steps` has it in every later attempt.

    The same once more with the same lease changes nothing. A name that another step has is refused.
    """
    job_id, body = call.job_id, call.body
    await call.queue.save_step(job_id, body.lease_token, body.name, body.result)
    return json_response({"id": str(job_id), "name": body.name})


@endpoints.post("/jobs/{id}/sleep", answers={200: StepAnswer}, refuses=WRITE_REFUSALS)
async def begin_sleep(call: Call[NoQuery, SleepBody]) -> Response:
    """Begin a sleep, or look at it; while `finished_at` is null it is not over: then suspend the job.

    How long it lasts is what the first call said, counted from there.
    """
    body = call.body
    if (body.delay_seconds is None) == (body.until is None):
        raise invalid("delay_seconds", "give either delay_seconds or until")
    step = await call.queue.sleep(call.job_id, body.lease_token, body.name, body.delay_seconds, until=body.until)
    return json_response(step_json(step))


@endpoints.post("/jobs/{id}/wait-for-event", answers={200: StepAnswer}, refuses=WRITE_REFUSALS)
async def wait_for_event(call: Call[NoQuery, WaitForEventBody]) -> Response:
    """Look whether an event has come; while `finished_at` is null it has not: then suspend the job.

    `result` is the payload of the signal, unless it has `timed_out`. The timeout is what the first call said.
    """
    body = call.body
    step = await call.queue.wait_for_event(call.job_id, body.lease_token, body.name, body.timeout_seconds)
    return json_response(step_json(step))


@endpoints.post("/jobs/{id}/suspend", answers={200: FinishAnswer}, refuses=WRITE_REFUSALS)
async def suspend_job(call: Call[NoQuery, LeaseBody]) -> Response:
    """Give the job back until the sleep or event that it has reached is over; burns no attempt.

    `queued` when it is over by now: it is claimed again, from its start.
    """
    job_id = call.job_id
    return json_response({"id": str(job_id), "state": await call.queue.suspend(job_id, call.body.lease_token)})
