"""Points inside a worker that tests wait for instead of sleeping; without a listener they cost a dict look-up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

Point = Literal[
    "started",  # the worker is registered and claims
    "claimed",  # value: number of jobs of a claim that returned some
    "idle",  # a claim returned less than asked for; value: seconds until the next one, should no hint come
    "handler_started",  # value: job id
    "handler_interrupted",  # value: (job id, reason)
    "slot_freed",  # value: job id
    "finished",  # value: (job id, accepted, state)
    "heartbeat",  # value: number of leases extended
    "outage",  # value: what is cut off
    "database_error",  # value: what failed; each time, where an outage is told once
    "recovered",  # value: what is connected again
    "stopping",
]


class Signals:
    """Emitted from the loop and from the heartbeat thread, heard on the loop of the listener."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Callable[[Any], None]]] = {}

    def heard(self, point: Point) -> bool:
        """Tell whether anybody listens; for points that are passed so often that making the value would cost."""
        return point in self._listeners

    def emit(self, point: Point, value: Any = None) -> None:
        if point not in self._listeners:
            return
        with self._lock:
            listeners = list(self._listeners[point])
        for listener in listeners:
            listener(value)

    def tap(self, point: Point, listener: Callable[[Any], None]) -> None:
        """Call `listener` with each value of a point, from whatever thread."""
        with self._lock:
            self._listeners.setdefault(point, []).append(listener)

    @contextmanager
    def listen(self, point: Point) -> Generator[asyncio.Queue[Any]]:
        """Collect the values of a point while the block lasts."""
        loop = asyncio.get_running_loop()
        values: asyncio.Queue[Any] = asyncio.Queue()

        def deliver(value: Any) -> None:
            loop.call_soon_threadsafe(values.put_nowait, value)

        with self._lock:
            self._listeners.setdefault(point, []).append(deliver)
        try:
            yield values
        finally:
            with self._lock:
                self._listeners[point].remove(deliver)
