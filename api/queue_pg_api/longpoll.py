"""Waiting inside a request: it ends at once when the client goes or the process stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request

T = TypeVar("T")


@asynccontextmanager
async def watching(request: Request) -> AsyncGenerator[asyncio.Event]:
    """Give an event that is set when the client has closed the connection. The body must have been read before."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    task = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        task.cancel()
        await asyncio.wait([task])


async def first_of(work: Coroutine[Any, Any, T], *events: asyncio.Event) -> T | None:
    """Return what `work` returns, or None when one of the events is set before; `work` is cancelled then."""
    task = asyncio.create_task(work)
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, *waits):
            each.cancel()
        await asyncio.wait([task, *waits])
        if not task.cancelled():
            task.exception()  # seen: a failure after the wait has ended concerns nobody
