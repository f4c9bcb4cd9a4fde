"""WebSockets: /jobs/{id}/ws follows one job's events, /ws/jobs the transitions of many jobs from now on.

What is wrong is told as an HTTP answer before the connection is opened. Browsers let pages of any site open WebSockets,
so one from another origin is refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from queue_pg.errors import DatabaseUnavailable, QueuePgError
from queue_pg_api.access import acting_org, refuse_foreign_page
from queue_pg_api.bodies import read_query
from queue_pg_api.endpoints import parse_job_id
from queue_pg_api.errors import ApiError, error_response, invalid, translate
from queue_pg_api.event_schemas import SocketQuery, TopicsQuery
from queue_pg_api.following import TooSlowError, abort, ended, in_time, pages
from queue_pg_api.observing import MAX_TOPICS, Observer, parse_topics
from queue_pg_api.rendering import event_json
from queue_pg_api.service import Service

logger = logging.getLogger(__name__)

GOING_AWAY = 1001
TRY_AGAIN = 1013
TOO_SLOW = 4008
CLOSE_SECONDS = 2.0


def socket_routes(service: Service) -> list[WebSocketRoute]:
    return [
        WebSocketRoute("/jobs/{id}/ws", _guarded(service, follow_job)),
        WebSocketRoute("/ws/jobs", _guarded(service, observe_jobs)),
    ]


def _guarded(
    service: Service, handle: Callable[[WebSocket, Service], Awaitable[None]]
) -> Callable[[WebSocket], Awaitable[None]]:
    async def serve(socket: WebSocket) -> None:
        try:
            refuse_foreign_page(socket)
            await handle(socket, service)
        except WebSocketDisconnect:
            return
        except TooSlowError:
            # It does not read, so it would not read a goodbye either.
            abort(socket.scope)
        except Exception as error:
            await _refuse(socket, error)

    return serve


async def _refuse(socket: WebSocket, error: Exception) -> None:
    if socket.client_state.name == "CONNECTING":
        await socket.send_denial_response(error_response(error))
        return
    if isinstance(error, DatabaseUnavailable):
        await _close(socket, TRY_AGAIN, "the database is away, connect again")
    elif isinstance(error, QueuePgError):
        await _close(socket, 4000 + translate(error).status, translate(error).code)
    else:
        logger.exception("Unexpected error in a WebSocket", exc_info=error)
        await _close(socket, 1011, "internal_error")


async def follow_job(socket: WebSocket, service: Service) -> None:
    """Send a job's events as JSON, from `after` on; closed with 1000 and the job's state after its last one."""
    job_id = parse_job_id(socket.path_params["id"])
    after = read_query(socket, SocketQuery).after
    queue = service.queue_of(acting_org(socket, service))
    first = await queue.events_read(job_id, after=after)
    await socket.accept()
    if ended(first, after):
        await _close(socket, 1000, first.state.value)
        return
    with queue.follow(job_id, after=first.events[-1].seq if first.events else after) as following:

        async def send_all() -> None:
            async with aclosing(pages(first, following, service.stopping)) as found:
                async for page in found:
                    for event in page or ():
                        await _send(socket, event_json(event))

        await _until_gone(socket, send_all())
        if service.stopping.is_set():
            await _close(socket, GOING_AWAY, "the server is stopping, connect again")
        else:
            await _close(socket, 1000, following.state)


async def observe_jobs(socket: WebSocket, service: Service) -> None:
    """Send transitions of jobs as they happen; `{"subscribe": [...]}` and `{"unsubscribe": [...]}` change topics."""
    given = read_query(socket, TopicsQuery).topics
    topics = parse_topics(given.split(",") if given is not None else ["jobs"])
    org = acting_org(socket, service)
    async with service.observing.observer(org, topics) as observer:
        await socket.accept()
        await socket.send_text(_subscribed(observer))

        async def send_all() -> None:
            while (message := await observer.next()) is not None:
                await _send(socket, message)

        await _until_gone(socket, send_all(), service.stopping, hear=lambda text: _change(observer, text))
        if service.stopping.is_set():
            await _close(socket, GOING_AWAY, "the server is stopping, connect again")
        else:
            await _close(socket, TOO_SLOW, "too slow: transitions have come faster than they were taken")


def _change(observer: Observer, text: str) -> str:
    """Take in what a client says; return the answer."""
    try:
        decoded: object = json.loads(text)
        said = cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}
        if not said or not set(said) <= {"subscribe", "unsubscribe"}:
            raise invalid("message", 'should be {"subscribe": [topics]} or {"unsubscribe": [topics]}')
        wanted = {name: _topics_of(said, name) for name in ("subscribe", "unsubscribe")}
        topics = {**observer.topics, **wanted["subscribe"]}
        topics = {topic: name for topic, name in topics.items() if topic not in wanted["unsubscribe"]}
        if len(topics) > MAX_TOPICS:
            raise invalid("topics", f"are more than {MAX_TOPICS}")
        observer.topics = topics
        return _subscribed(observer)
    except ApiError as error:
        return json.dumps({"type": "error", "detail": error.detail, "code": error.code})
    except (ValueError, RecursionError):
        return json.dumps({"type": "error", "detail": "message: is not JSON", "code": "invalid_request"})


def _topics_of(said: dict[str, Any], name: str) -> dict[tuple[str, str], str]:
    given: object = said.get(name, [])
    topics = cast("list[object]", given) if isinstance(given, list) else [None]
    texts = [each for each in topics if isinstance(each, str)]
    if len(texts) != len(topics):
        raise invalid(name, "should be a list of topics")
    return parse_topics(texts)


def _subscribed(observer: Observer) -> str:
    return json.dumps({"type": "subscribed", "topics": sorted(observer.topics.values())})


async def _send(socket: WebSocket, text: str) -> None:
    """Send a message. Raises TooSlowError, WebSocketDisconnect."""
    try:
        await in_time(socket.send_text(text))
    except RuntimeError:
        # The server has closed the connection by itself, as after a message that is too large.
        raise WebSocketDisconnect(1006) from None


async def _until_gone(
    socket: WebSocket,
    work: Any,
    *until: asyncio.Event,
    hear: Callable[[str], str] | None = None,
) -> None:
    """Work until it is done, an event is set, or the client has gone (WebSocketDisconnect); pass on what it says."""

    async def listen() -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            if hear is not None:
                await _send(socket, hear(message.get("text") or ""))

    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(work), asyncio.ensure_future(listen())]
    tasks += [asyncio.ensure_future(event.wait()) for event in until]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code, reason)
    except (TimeoutError, RuntimeError):
        abort(socket.scope)
