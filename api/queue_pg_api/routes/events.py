"""/jobs/{id}/events, /attempts, /logs and /progress: what happened to a job and what its handler says."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from queue_pg.models import EventsRead
from queue_pg_api.answers import AppendAnswer, AttemptsAnswer, EventsAnswer, LogsAnswer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import invalid, json_response, raw_json_response
from queue_pg_api.event_schemas import AppendBody, AttemptsQuery, EventsQuery, LogBody, LogsQuery, ProgressBody
from queue_pg_api.following import EventStream, ended
from queue_pg_api.longpoll import first_of, watching
from queue_pg_api.rendering import attempt_json, event_json, log_line_json
from queue_pg_api.schemas import NoBody, NoQuery

endpoints = Endpoints("Events")

WRITE_REFUSALS = (403, 404, 409, 413, 415, 422, 503)
MAX_NUMBER = 2**31 - 1


@endpoints.get("/jobs/{id}/events", answers={200: EventsAnswer, 204: None}, refuses=(404, 422, 503), event_stream=True)
async def follow_events(call: Call[EventsQuery, NoBody]) -> Response:
    """Follow what happens to a job, from its first event to its last.

    Server-sent events, each with its number as `id`, so that a client that connects again goes on where it was
    (`Last-Event-ID`, or `after`); then `event: end`, and 204 to whoever asks for more. With `Accept: application/json`
    a page of what is there, with `wait` as soon as there is something.
    """
    job_id, after = call.job_id, _after(call)
    wants_json = _wants_json(call.request)
    read = await call.queue.events_read(job_id, after=after, limit=call.query.limit)
    if wants_json:
        if not read.events and call.query.wait > 0 and not ended(read, after):
            async with watching(call.request) as gone:
                with call.queue.follow(job_id, after=after) as following:
                    await first_of(following.more(call.query.wait), gone, call.service.stopping)
            read = await call.queue.events_read(job_id, after=after, limit=call.query.limit)
        return _page(read)
    if ended(read, after):
        # EventSource connects again after every end, unless it is told this.
        return Response(status_code=204)
    last = read.events[-1].seq if read.events else after
    if call.request.method == "HEAD":
        return Response(media_type=EventStream.media_type)
    return EventStream(read, call.queue.follow(job_id, after=last), call.service.stopping)


@endpoints.post("/jobs/{id}/events", answers={200: AppendAnswer}, refuses=WRITE_REFUSALS)
async def append_events(call: Call[NoQuery, AppendBody]) -> Response:
    """Append events to a claimed job: types of your own, or `log`, `progress` and `chunk`."""
    events = [(event.type, event.data) for event in call.body.events]
    return _appended(call, await call.queue.append_events(call.job_id, call.body.lease_token, events))


@endpoints.post("/jobs/{id}/progress", answers={200: AppendAnswer}, refuses=WRITE_REFUSALS)
async def report_progress(call: Call[NoQuery, ProgressBody]) -> Response:
    """Tell how far a claimed job is: a fraction from 0 to 1, or an object."""
    return _appended(call, await call.queue.progress(call.job_id, call.body.lease_token, call.body.progress))


@endpoints.get("/jobs/{id}/attempts", answers={200: AttemptsAnswer}, refuses=(404, 422, 503))
async def list_attempts(call: Call[AttemptsQuery, NoBody]) -> Response:
    """List the attempts of a job, oldest first: who ran each, for how long, and how it ended."""
    page = await call.queue.attempts(call.job_id, after=call.query.after, limit=call.query.limit)
    return json_response(
        {
            "attempts": [attempt_json(attempt) for attempt in page.attempts],
            "forgotten_to": page.forgotten_to,
            "next_after": page.next_after,
        }
    )


@endpoints.get("/jobs/{id}/logs", answers={200: LogsAnswer}, refuses=(404, 422, 503))
async def read_logs(call: Call[LogsQuery, NoBody]) -> Response:
    """Read a job's log from a number on, of one stream or of all."""
    wanted = call.query
    page = await call.queue.logs(call.job_id, from_seq=wanted.from_seq, limit=wanted.limit, stream=wanted.stream)
    return json_response({"logs": [log_line_json(line) for line in page.lines], "next_seq": page.next_seq})


@endpoints.post("/jobs/{id}/logs", answers={200: AppendAnswer}, refuses=WRITE_REFUSALS)
async def append_logs(call: Call[NoQuery, LogBody]) -> Response:
    """Add lines to the log of a claimed job."""
    events = [("log", {"stream": call.body.stream, "line": line}) for line in call.body.lines]
    return _appended(call, await call.queue.append_events(call.job_id, call.body.lease_token, events))


def _appended(
    call: Call[NoQuery, AppendBody] | Call[NoQuery, ProgressBody] | Call[NoQuery, LogBody], seq: int
) -> Response:
    return json_response({"id": str(call.job_id), "last_seq": seq})


def _page(read: EventsRead) -> Response:
    events = ",".join(event_json(event) for event in read.events)
    return raw_json_response(f'{{"events":[{events}],"state":"{read.state.value}","last_seq":{read.last_seq}}}')


def _after(call: Call[EventsQuery, NoBody]) -> int:
    # A client that connects again sends its first URL and this header: the header is where it is.
    header = call.request.headers.get("last-event-id", "").strip()
    if not header:
        return call.query.after
    if not (header.isascii() and header.isdigit() and len(header) <= 10 and int(header) <= MAX_NUMBER):
        raise invalid("Last-Event-ID", "should be the number of an event")
    return int(header)


def _wants_json(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/event-stream" not in accepted
