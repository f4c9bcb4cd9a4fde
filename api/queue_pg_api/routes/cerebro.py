"""The routes of Cerebro: chat jobs for workers that pull over HTTP, in its words.

A facade over the same rows: its jobs are of kind `chat` in a queue of their own, `cerebro`, unless the request names
another one. Each can be read under /jobs too, and run by queue-pg's own workers when they serve that queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from starlette.responses import Response

from queue_pg.errors import InvalidTransition, LeaseLost
from queue_pg.logs import with_request_id
from queue_pg.models import ClaimedJob, Job, JobState, NewJob
from queue_pg.payloads import decode_json
from queue_pg_api.answers import CerebroJob, CerebroResult, CerebroSubmitted
from queue_pg_api.cerebro_schemas import CerebroCompleteBody, CerebroGetBody, CerebroSubmitBody
from queue_pg_api.claim_room import Wanted
from queue_pg_api.endpoints import CLIENT_GONE, Call, Endpoints, parse_job_id
from queue_pg_api.errors import invalid, json_response
from queue_pg_api.longpoll import watching
from queue_pg_api.rendering import cerebro_result, cerebro_status, stored_error, timestamp
from queue_pg_api.schemas import PRIORITY_NAMES, ErrorDetails, NoBody, NoQuery
from queue_pg_api.submissions import idempotency_key, location, traceparent

endpoints = Endpoints("Cerebro")

KIND = "chat"
# Leases given by /get_job are told from others by this: only their holders may complete without a token.
WORKER_PREFIX = "get_job:"


@endpoints.post(
    "/submit_job", answers={201: CerebroSubmitted, 200: CerebroSubmitted}, refuses=(403, 413, 415, 422, 503)
)
async def submit_job(call: Call[NoQuery, CerebroSubmitBody]) -> Response:
    """Submit a chat job."""
    new = NewJob(
        kind=KIND,
        payload={"messages": [message.model_dump(exclude_unset=True) for message in call.body.messages]},
        queue=call.body.queue,
        priority=_priority(call.body.metadata),
        unique_key=idempotency_key(call.request),
        metadata=with_request_id(call.body.metadata),
        traceparent=traceparent(call.request),
    )
    job, created = await call.queue.submit_new(new)
    headers = {"location": location(call, job.id)}
    if not created:
        headers["idempotency-replayed"] = "true"
    content = {"job_id": str(job.id), "id": str(job.id), "status": cerebro_status(job.state).value}
    return json_response(content, 201 if created else 200, headers=headers)


@endpoints.post("/get_job", answers={200: CerebroJob, 204: None}, refuses=(403, 415, 422, 503))
async def get_next_job(call: Call[NoQuery, CerebroGetBody]) -> Response:
    """Take the next chat job.

    Waits for one as long as the setting BLOCK_TIMEOUT says, then answers 204. The job is leased for JOB_TIMEOUT; it
    goes back to the queue when it is not completed by then, unless /jobs/{id}/heartbeat keeps the lease.
    """
    settings = call.service.settings
    client = call.request.client
    wanted = Wanted(
        org=call.org,
        worker=(WORKER_PREFIX + (call.body.worker or (client.host if client else "unknown")))[:200],
        queues=(call.body.queue,),
        kinds=(KIND,),
        max_jobs=1,
        lease_seconds=settings.job_timeout_seconds,
    )
    async with watching(call.request) as gone:
        jobs = await call.service.claim(wanted, wait_seconds=settings.block_timeout_seconds, gone=gone)
        if gone.is_set():
            return Response(status_code=CLIENT_GONE)
    return json_response(_taken(jobs[0])) if jobs else Response(status_code=204)


@endpoints.post("/complete_job", answers={200: CerebroResult}, refuses=(403, 404, 409, 413, 415, 422, 503))
async def complete_taken_job(call: Call[NoQuery, CerebroCompleteBody]) -> Response:
    """Store the result of a job from /get_job, or that it failed.

    `status: "failed"` or an `error` makes it fail for good. Without `lease_token` it counts only while the lease that
    /get_job gave is current; afterwards the answer is 409, and sending it again never helps.
    """
    body = call.body
    if body.error is not None and body.status == "completed":
        raise invalid("error", 'contradicts status "completed"')
    job_id = parse_job_id(body.job_id)
    token = body.lease_token if body.lease_token is not None else await _current_token(call, job_id)
    queue = call.queue
    if body.error is not None or body.status == "failed":
        error = stored_error(body.error or ErrorDetails(message="The worker gave no reason."))
        # Cerebro's lifecycle ends at `failed`; what it never promised, a second attempt, would surprise its clients.
        await queue.fail(job_id, token, error, retry=False)
    else:
        await queue.complete(job_id, token, body.result)
    return json_response(cerebro_result(await queue.get(job_id)))


@endpoints.get("/get_result/{id}", answers={200: CerebroResult}, refuses=(404, 422, 503))
async def get_result(call: Call[NoQuery, NoBody]) -> Response:
    """Read status and result, in Cerebro's words: queued, processing, completed, failed."""
    return json_response(cerebro_result(await call.queue.get(call.job_id)))


def _priority(metadata: Mapping[str, Any]) -> int:
    """Read `metadata.priority`: a name, an integer, or nothing."""
    value = metadata.get("priority")
    if value is None:
        return 0
    if isinstance(value, str) and value.lower() in PRIORITY_NAMES:
        return PRIORITY_NAMES[value.lower()]
    if isinstance(value, int) and not isinstance(value, bool) and -32_768 <= value <= 32_767:
        return value
    names = ", ".join(PRIORITY_NAMES)
    raise invalid("metadata.priority", f"should be an integer from -32768 to 32767, or one of {names}")


def _taken(job: ClaimedJob) -> dict[str, Any]:
    payload = decode_json(job.payload)
    return {
        "job_id": str(job.id),
        "id": str(job.id),
        "messages": _messages(payload),
        "metadata": decode_json(job.metadata),
        "payload": payload,
        "attempt": job.attempt,
        "lease_token": job.lease_token,
        "lease_expires_at": timestamp(job.lease_expires_at),
    }


def _messages(payload: Any) -> list[Any]:
    """Return the messages of any chat job; one that was submitted elsewhere may have a plain `prompt`."""
    fields = cast("dict[str, Any]", payload) if isinstance(payload, dict) else {}
    messages: list[Any] | None = fields["messages"] if isinstance(fields.get("messages"), list) else None
    if messages is not None:
        return messages
    if isinstance(fields.get("prompt"), str):
        return [{"role": "user", "content": fields["prompt"]}]
    return []


async def _current_token(call: Call[NoQuery, CerebroCompleteBody], job_id: UUID) -> int:
    """Return the token of the lease that /get_job gave, while it is current; LeaseLost otherwise.

    Without a token two pulling workers can't be told apart; but a worker of another kind that has the job by now, or
    an expired lease that the reaper has not met yet, are seen. Whatever happens after this read is fenced by the token.
    """
    queue = call.queue
    job: Job = await queue.get(job_id)
    if job.state in {JobState.QUEUED, JobState.SCHEDULED, JobState.WAITING} and job.lease_token == 0:
        raise InvalidTransition(job_id, "complete", job.state)
    if job.state is not JobState.RUNNING or not (job.worker_id or "").startswith(WORKER_PREFIX):
        raise LeaseLost(job_id, job.state)
    # The database's clock decides whether the lease has expired.
    if any(why.reason == "lease_expired" for why in await queue.why_waiting(job_id)):
        raise LeaseLost(job_id, job.state)
    return job.lease_token
