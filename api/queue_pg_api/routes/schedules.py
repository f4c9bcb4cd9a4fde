"""/schedules: work that starts by the clock."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from queue_pg.schedules import NewSchedule
from queue_pg_api.answers import JobAnswer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import json_response
from queue_pg_api.rendering import job_json, timestamp
from queue_pg_api.schedule_schemas import (
    NewScheduleBody,
    PreviewAnswer,
    PreviewBody,
    ScheduleAnswer,
    ScheduleBody,
    ScheduleList,
    SchedulePage,
    schedule_json,
)
from queue_pg_api.schemas import NoBody, NoQuery, ResumeBody
from queue_pg_api.submissions import location

endpoints = Endpoints("Schedules")


@endpoints.get("/schedules", answers={200: SchedulePage}, refuses=(422, 503))
async def list_schedules(call: Call[ScheduleList, NoBody]) -> Response:
    """List the schedules by name, each with its next fires."""
    limit = call.query.limit
    found = await call.queue.schedules(limit=limit, after=call.query.cursor)
    # A full page may be the last one: the next is empty then.
    cursor = found[-1].name if len(found) == limit else None
    return json_response({"schedules": [schedule_json(each) for each in found], "next_cursor": cursor})


@endpoints.post("/schedules", answers={201: ScheduleAnswer}, refuses=(403, 409, 413, 422, 503))
async def make_schedule(call: Call[NoQuery, NewScheduleBody]) -> Response:
    """Make a schedule. 409 when there is one of its name; PUT changes it."""
    return await _put(call, call.body.new_schedule(call.body.name), create_only=True)


@endpoints.post("/schedules/preview", answers={200: PreviewAnswer}, refuses=(403, 422, 503))
async def preview_schedule(call: Call[NoQuery, PreviewBody]) -> Response:
    """Tell when a schedule would fire, without making it."""
    body = call.body
    fires = await call.queue.preview_schedule(body.timing(), after=body.after, most=body.count)
    return json_response({"next_fires": [timestamp(fire) for fire in fires]})


@endpoints.get("/schedules/{name}", answers={200: ScheduleAnswer}, refuses=(404, 422, 503))
async def get_schedule(call: Call[NoQuery, NoBody]) -> Response:
    """Read a schedule with its next fires."""
    return json_response(schedule_json(await call.queue.get_schedule(_name(call))))


@endpoints.put("/schedules/{name}", answers={200: ScheduleAnswer, 201: ScheduleAnswer}, refuses=(403, 413, 422, 503))
async def put_schedule(call: Call[NoQuery, ScheduleBody]) -> Response:
    """Make a schedule (201), or change the one of that name into this (200).

    What is absent gets its default, except that a pause stays. The same again changes nothing.
    """
    return await _put(call, call.body.new_schedule(_name(call)), create_only=False)


@endpoints.delete("/schedules/{name}", answers={204: None}, refuses=(403, 404, 422, 503))
async def remove_schedule(call: Call[NoQuery, NoBody]) -> Response:
    """Remove a schedule; jobs it has made stay."""
    await call.queue.unschedule(_name(call))
    return Response(status_code=204)


@endpoints.post("/schedules/{name}/pause", answers={200: ScheduleAnswer}, refuses=(403, 404, 422, 503))
async def pause_schedule(call: Call[NoQuery, ResumeBody]) -> Response:
    """Stop a schedule until resumed."""
    return json_response(schedule_json(await call.queue.pause_schedule(_name(call))))


@endpoints.post("/schedules/{name}/resume", answers={200: ScheduleAnswer}, refuses=(403, 404, 422, 503))
async def resume_schedule(call: Call[NoQuery, ResumeBody]) -> Response:
    """Let a paused schedule fire again, from now on; the pause is not made up for."""
    return json_response(schedule_json(await call.queue.resume_schedule(_name(call))))


@endpoints.post("/schedules/{name}/run", answers={201: JobAnswer}, refuses=(403, 404, 422, 503))
async def run_schedule(call: Call[NoQuery, ResumeBody]) -> Response:
    """Make an extra job at once, paused or not; the fires stay as they are."""
    job = await call.queue.get(await call.queue.run_schedule_now(_name(call)))
    return json_response(job_json(job), 201, headers={"location": location(call, job.id)})


async def _put(call: Call[Any, Any], new: NewSchedule, *, create_only: bool) -> Response:
    await call.service.kinds.check([(new.job.kind, new.job.queue)])
    schedule, created = await call.queue.put_schedule(new, create_only=create_only)
    place = call.url(f"/schedules/{quote(schedule.name, safe='')}")
    return json_response(schedule_json(schedule), 201 if created else 200, headers={"location": place})


def _name(call: Call[Any, Any]) -> str:
    return str(call.request.path_params["name"])
