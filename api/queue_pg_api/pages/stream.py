"""`/console/events`: server-sent events that say which topics have changed. What has changed is fetched by GET."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from uuid import UUID

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from queue_pg_api.errors import RETRY_AFTER_SECONDS, invalid
from queue_pg_api.pages.page import HEADERS, Visit
from queue_pg_api.pages.pulse import MAX_VIEWERS, Pulse, TooManyViewers, Viewer, wait_any

MAX_TOPICS = 20
TOPICS = frozenset({"jobs", "queues", "workers", "schedules", "batches", "limits"})
# Of one job or batch, by its id.
TOPICS_OF_ONE = ("job", "family", "batch")
# So that neither a proxy nor we keep a connection whose other end has gone.
ALIVE_SECONDS = 15.0
READY_SECONDS = 10.0


def topics_of(visit: Visit) -> frozenset[str]:
    """Return the topics that the query asks for."""
    found = visit.request.query_params.getlist("topic")
    if not 1 <= len(found) <= MAX_TOPICS:
        raise invalid("topic", f"should be given 1 to {MAX_TOPICS} times")
    return frozenset(_checked(topic) for topic in found)


def _checked(topic: str) -> str:
    name, _, one_id = topic.partition(":")
    if name in TOPICS_OF_ONE and len(one_id) == 36:
        try:
            return f"{name}:{UUID(one_id)}"
        except ValueError:
            pass
    if topic not in TOPICS:
        of_one = ", ".join(f"{name}:<id>" for name in TOPICS_OF_ONE)
        raise invalid("topic", f"should be one of {', '.join(sorted(TOPICS))}, or {of_one}")
    return topic


async def events(visit: Visit) -> Response:
    """Open a stream; where there are too many, the page polls instead."""
    topics = topics_of(visit)
    try:
        return EventStream(visit.figures.pulse, topics, visit.service.stopping)
    except TooManyViewers:
        headers = {**HEADERS, "retry-after": str(RETRY_AFTER_SECONDS * 10)}
        return Response(f"{MAX_VIEWERS} pages are live already.", 503, headers=headers, media_type="text/plain")


class EventStream(StreamingResponse):
    """The stream of one viewer, who gives the place back however it ends."""

    def __init__(self, pulse: Pulse, topics: frozenset[str], stopping: asyncio.Event) -> None:
        self._pulse = pulse
        self._viewer = pulse.enter(topics)
        super().__init__(_written(self._viewer, stopping), headers=HEADERS, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pulse.leave(self._viewer)


async def _written(viewer: Viewer, stopping: asyncio.Event) -> AsyncGenerator[str]:
    # At once, so that the browser sees the stream open; it comes back this soon after an end.
    yield "retry: 2000\n\n"
    await wait_any(READY_SECONDS, viewer.ready, stopping)
    # The page may be older than the first look: it fetches everything once.
    yield "event: ready\ndata: {}\n\n"
    while not stopping.is_set():
        changed = await viewer.wait(ALIVE_SECONDS, stopping)
        yield f"data: {json.dumps({'topics': changed})}\n\n" if changed else ": alive\n\n"
