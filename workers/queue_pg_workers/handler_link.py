"""A handler's way to the database while it runs: one connection for all handlers of the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from queue_pg.sqlstates import translated
from queue_pg_workers.event_buffer import EventBuffer
from queue_pg_workers.link import Connection, Link

T = TypeVar("T")


class WorkerHandlerLink:
    """Runs the statements of handlers one after the other; see `queue_pg.tasks.HandlerLink`."""

    def __init__(self, link: Link, events: EventBuffer) -> None:
        self._link = link
        self.events = events
        self._loop = asyncio.get_running_loop()

    async def run(self, statement: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a statement for a handler on the worker's loop. Raises errors of queue_pg."""
        with translated():
            return await self._link.run(statement)

    def run_blocking(self, statement: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a statement for a handler in a thread. Raises errors of queue_pg."""
        return asyncio.run_coroutine_threadsafe(self.run(statement), self._loop).result()
