"""/jobs: submit, list, read, cancel, retry."""

from __future__ import annotations

from contextlib import suppress
from typing import cast

from starlette.responses import Response

from queue_pg.errors import WaitTimeout
from queue_pg.models import Job, JobState
from queue_pg_api.answers import JobAnswer, JobPage, RelatedJobAnswer
from queue_pg_api.bodies import is_ndjson, parse_body, read_body
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import json_response
from queue_pg_api.longpoll import first_of, watching
from queue_pg_api.rendering import dependencies_json, in_words, job_json, job_summary, waiting_json
from queue_pg_api.routes.bulk import submit_array, submit_lines
from queue_pg_api.schemas import (
    CancelJobBody,
    ChainBody,
    JobFilter,
    JobWait,
    NoBody,
    NoQuery,
    ReprioritizeBody,
    RetryBody,
    SubmitBody,
)
from queue_pg_api.submissions import answer_stored, idempotency_key, submit_object, to_new_job, traceparent
from queue_pg_api.template_schemas import SubmitByTemplateBody

endpoints = Endpoints("Jobs")

STARTED = frozenset({"running", "lease_expired", "finished"})

SUBMISSION = {
    "application/json": {
        "oneOf": [
            {"$ref": "#/components/schemas/SubmitBody"},
            {"$ref": "#/components/schemas/SubmitByTemplateBody"},
            {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/SubmitBody"}},
        ]
    },
    "application/x-ndjson": {"type": "string", "description": "One job object a line."},
}


@endpoints.post(
    "/jobs",
    raw_models=(SubmitBody, SubmitByTemplateBody),
    raw_body=SUBMISSION,
    answers={201: JobAnswer, 200: JobAnswer},
    refuses=(403, 404, 408, 409, 413, 415, 422, 503),
)
async def submit_jobs(call: Call[NoQuery, NoBody]) -> Response:
    """Submit a job, or many.

    One object answers with the job and its `Location`; one with `template` is made from that. An array answers
    `{"jobs": [{"id", "created"}]}`, NDJSON (`application/x-ndjson`, read as it arrives) `{"count", "created", "ids"}`:
    both are stored all or none, in one transaction. Jobs of an array may wait for each other, by `key` and
    `depends_on`. 201 when something new was stored; 200 and `Idempotency-Replayed: true` when every unique key already
    named a job. A refusal names the field, and of many jobs the `index` or `line`.
    """
    key = idempotency_key(call.request)
    if is_ndjson(call.request):
        return await submit_lines(call, key)
    value = parse_body(await read_body(call.request))
    if isinstance(value, list):
        return await submit_array(call, cast("list[object]", value), key)
    return await submit_object(call, value, key)


@endpoints.get("/jobs", answers={200: JobPage}, refuses=(422, 503))
async def list_jobs(call: Call[JobFilter, NoBody]) -> Response:
    """List jobs, newest first, without payload and result."""
    wanted = call.query
    if wanted.org is not None and wanted.org != call.org:
        return json_response({"jobs": [], "next_cursor": None})
    page = await call.queue.list(
        state=wanted.state,
        queue=wanted.queue,
        kind=wanted.kind,
        tag=wanted.tag,
        batch_id=wanted.batch,
        parent_id=wanted.parent,
        unique_key=wanted.key,
        rerun_of=wanted.rerun_of,
        error_code=wanted.error_code,
        created_after=wanted.created_after,
        created_before=wanted.created_before,
        limit=wanted.limit,
        cursor=wanted.cursor,
    )
    jobs = [{**job_summary(job), **in_words(job, wanted.vocab)} for job in page.jobs]
    return json_response({"jobs": jobs, "next_cursor": page.next_cursor})


@endpoints.get("/jobs/{id}", answers={200: RelatedJobAnswer}, refuses=(404, 422, 503))
async def get_job(call: Call[JobWait, NoBody]) -> Response:
    """Read a job; with `wait`, when it has ended or as it is after that many seconds.

    A job that has parents or children comes with up to 100 of each. `waiting` says why it does not run yet.
    """
    queue = call.queue
    job = await queue.get(call.job_id)
    if call.query.wait > 0 and not job.finished:
        ended: Job | None = None
        async with watching(call.request) as gone:
            with suppress(WaitTimeout):
                ended = await first_of(queue.wait(job.id, call.query.wait), gone, call.service.stopping)
        job = ended or await queue.get(job.id)
    content = {**job_json(job), **in_words(job, call.query.vocab)}
    reasons = [] if job.finished or job.state is JobState.RUNNING else await queue.why_waiting(job.id)
    # Meanwhile it may have been started or have ended.
    why = next((each for each in reasons if each.reason not in STARTED), None)
    content["waiting"] = None if why is None else waiting_json(why)
    found = await queue.dependencies(job.id)
    if found.parents_count or found.children_count:
        content["dependencies"] = dependencies_json(found)
    return json_response(content)


@endpoints.post(
    "/jobs/{id}/chain",
    answers={201: JobAnswer, 200: JobAnswer},
    refuses=(403, 404, 408, 413, 415, 422, 503),
)
async def chain_job(call: Call[NoQuery, ChainBody]) -> Response:
    """Submit a job that follows this one.

    It waits while this one lives, and its payload may take what this one has made, as in
    `{{ parents.parent.output.text }}`.
    """
    new = to_new_job(call.body, idempotency_key(call.request), traceparent(call.request))
    await call.service.kinds.check([(new.kind, new.queue)])
    chained = await call.queue.chain_new(
        call.job_id, new, name=call.body.name, on_unsuccessful=call.body.on_unsuccessful
    )
    return answer_stored(call, *chained)


@endpoints.post("/jobs/{id}/cancel", answers={200: JobAnswer}, refuses=(403, 404, 409, 422, 503))
async def cancel_job(call: Call[NoQuery, CancelJobBody]) -> Response:
    """Cancel an unfinished job, a running one too.

    Its worker loses the lease at once. Cancelling a cancelled job answers the same again. With `lease_token` it is the
    worker itself that ends its attempt so: refused like its other writes when the lease is lost.
    """
    if call.body.lease_token is not None:
        await call.queue.cancel_claimed(call.job_id, call.body.lease_token, call.body.reason)
        return json_response(job_json(await call.queue.get(call.job_id)))
    return json_response(job_json(await call.queue.cancel(call.job_id, call.body.reason)))


@endpoints.post("/jobs/{id}/retry", answers={200: JobAnswer}, refuses=(403, 404, 409, 422, 503))
async def retry_job(call: Call[NoQuery, RetryBody]) -> Response:
    """Put a failed or cancelled job back into its queue, its attempts counted anew.

    It goes on after the steps that it has finished, unless `fresh` is true.
    """
    body = call.body
    return json_response(job_json(await call.queue.retry(call.job_id, body.max_attempts, fresh=body.fresh)))


@endpoints.post("/jobs/{id}/reprioritize", answers={200: JobAnswer}, refuses=(403, 404, 409, 413, 415, 422, 503))
async def reprioritize_job(call: Call[NoQuery, ReprioritizeBody]) -> Response:
    """Give an unfinished job another priority, a number or a name; one that runs keeps it for its retry."""
    return json_response(job_json(await call.queue.reprioritize(call.job_id, call.body.priority)))
