"""Following a job's events over HTTP: server-sent events, and what WebSockets share with them.

One page is held for a client: when it has taken that, the Queue's feed is asked for more. One that takes nothing for
SEND_SECONDS is cut off; it may go on from the last event it has seen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from queue_pg.errors import DatabaseUnavailable, QueuePgError
from queue_pg.feed import Following
from queue_pg.models import EventsRead, StoredEvent
from queue_pg_api.errors import translate
from queue_pg_api.rendering import event_json

KEEP_ALIVE_SECONDS = 15.0
SEND_SECONDS = 30.0
GONE_SECONDS = 1.0
# Where server.py leaves what breaks the connection of a request: nothing else ends one that does not read.
ABORT_KEY: Final = "queue_pg_abort"


class TooSlowError(Exception):
    """The client has not taken what it was sent."""


async def pages(
    first: EventsRead, following: Following, stopping: asyncio.Event
) -> AsyncGenerator[list[StoredEvent] | None]:
    """Give the events page by page, None when there was nothing for a while; end with the job, or when stopping."""
    if first.events:
        yield first.events
    stopped = asyncio.ensure_future(stopping.wait())
    stopped.add_done_callback(lambda _: following.interrupt())
    try:
        while not stopping.is_set():
            page = await following.more(KEEP_ALIVE_SECONDS)
            if page == [] or (page is None and stopping.is_set()):
                return
            yield page
    finally:
        stopped.cancel()


async def in_time(sending: Awaitable[None]) -> None:
    """Wait until the client has taken what it is sent. Raises TooSlowError."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await sending
    except TimeoutError:
        raise TooSlowError from None


def abort(scope: Scope) -> None:
    """Break the connection of a request, if the server has left the means."""
    breaking: Callable[[], None] | None = scope.get("state", {}).get(ABORT_KEY)
    if breaking is not None:
        breaking()


class EventStream(Response):
    """Sends a job's events as `text/event-stream` until the job's last one."""

    media_type = "text/event-stream"

    def __init__(self, first: EventsRead, following: Following, stopping: asyncio.Event) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._following = following
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def send_chunk(chunk: bytes, more: bool = True) -> None:
            await in_time(send({"type": "http.response.body", "body": chunk, "more_body": more}))

        with self._following:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            sending = asyncio.create_task(self._send_all(send_chunk))
            gone = asyncio.create_task(until_gone())
            try:
                await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, gone):
                    task.cancel()
                await asyncio.wait([sending, gone])
            if not sending.cancelled():
                with suppress(TooSlowError):
                    sending.result()
                    return
                abort(scope)
                # For the server to notice; it would log the missing end as a fault of ours.
                with suppress(TimeoutError):
                    async with asyncio.timeout(GONE_SECONDS):
                        await until_gone()

    async def _send_all(self, send_chunk: Callable[..., Awaitable[None]]) -> None:
        last = b""
        try:
            async with aclosing(pages(self._first, self._following, self._stopping)) as found:
                async for page in found:
                    await send_chunk(b"".join(map(_sse, page)) if page else b": keep-alive\n\n")
            if self._stopping.is_set():
                last = b": the server is stopping, connect again\n\n"
            else:
                said = json.dumps({"state": self._following.state, "last_seq": self._following.after})
                last = f"event: end\ndata: {said}\n\n".encode()
        except DatabaseUnavailable:
            last = b": the database is away, connect again\n\n"
        except QueuePgError as error:
            refusal = translate(error)
            said = json.dumps({"detail": refusal.detail, "code": refusal.code})
            last = f"event: error\ndata: {said}\n\n".encode()
        await send_chunk(last, more=False)


def _sse(event: StoredEvent) -> bytes:
    # JSON as Postgres writes it has no line breaks.
    return f"id: {event.seq}\nevent: {event.type}\ndata: {event_json(event)}\n\n".encode()


def ended(read: EventsRead, after: int) -> bool:
    """Tell whether a reader that has seen `after` has seen all there will ever be."""
    return read.state.finished and after >= read.last_seq
