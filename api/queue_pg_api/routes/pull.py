"""Pull workers in any language: claim over HTTP, then heartbeat, complete or fail with the lease token."""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from queue_pg.errors import LeaseLost
from queue_pg_api.answers import ClaimAnswer, FinishAnswer, HeartbeatAnswer
from queue_pg_api.claim_room import Wanted
from queue_pg_api.endpoints import CLIENT_GONE, Call, Endpoints
from queue_pg_api.errors import json_response, raw_json_response
from queue_pg_api.longpoll import watching
from queue_pg_api.rendering import claimed_json, stored_error, timestamp
from queue_pg_api.schemas import ClaimBody, CompleteBody, FailBody, HeartbeatBody, NoQuery

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
