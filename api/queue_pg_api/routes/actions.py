"""POST /jobs/actions, for all jobs that a filter names, and DELETE /jobs/{id}."""

from __future__ import annotations

from dataclasses import asdict

from starlette.responses import Response

from queue_pg.action_model import ActionResult
from queue_pg.errors import InvalidJob
from queue_pg_api.action_schemas import ActionAnswer, ActionBody, DeleteQuery
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import json_response
from queue_pg_api.schemas import NoBody, NoQuery

endpoints = Endpoints("Jobs")

# Of one request; a million jobs take longer.
ACTION_SECONDS = 20.0
# What the library calls otherwise.
NAMES = {"batch_id": "batch", "parent_id": "parent", "unique_key": "key"}


@endpoints.post("/jobs/actions", answers={200: ActionAnswer}, refuses=(403, 408, 413, 415, 422, 503))
async def act_on_jobs(call: Call[NoQuery, ActionBody]) -> Response:
    """Cancel, retry, reprioritize or delete all jobs that a filter names, a thousand in a transaction.

    Jobs submitted after it began are left alone. Send it again with `cursor` while `done` is false; `dry_run` counts.
    An empty filter is refused: `{"all": true}` says every job.
    """
    body = call.body
    if body.filter.org is not None and body.filter.org != call.org:
        nothing = ActionResult(
            action=body.action, dry_run=body.dry_run, matched=0, changed=0, skipped={}, done=True, cursor=None
        )
        return json_response(asdict(nothing))
    try:
        result = await call.queue.act_on_jobs(
            body.action,
            body.filter.to_filter(),
            reason=body.reason,
            priority=body.priority,
            max_attempts=body.max_attempts,
            fresh=body.fresh,
            dry_run=body.dry_run,
            cursor=body.cursor,
            max_seconds=ACTION_SECONDS,
        )
    except InvalidJob as error:
        first, _, name = error.field.partition(".")
        if name in NAMES:
            raise InvalidJob(f"{first}.{NAMES[name]}", error.reason) from None
        raise
    return json_response(asdict(result))


@endpoints.delete("/jobs/{id}", answers={204: None}, refuses=(403, 404, 409, 422, 503))
async def delete_job(call: Call[DeleteQuery, NoBody]) -> Response:
    """Delete a job that has ended, with its events, logs, steps and artifacts.

    409 for an unfinished one, unless `cancel` is true, and for one that a waiting child has as a parent.
    """
    await call.queue.delete(call.job_id, cancel=call.query.cancel)
    return Response(status_code=204)
