"""What the code takes from the machine that it runs on: time, chance, threads and connections.

Whatever waits, draws lots or connects, beside what the event loop does for it, asks a `Surroundings` to. It is REAL
unless whoever makes a Queue or a Worker says otherwise: tests/simulation runs many of both in one thread, by a clock of
its own, on lines that break when it wants them to.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from psycopg import AsyncConnection, Connection

from queue_pg import connections, patience
from queue_pg.connections import LibraryAsyncConnection, LibraryConnection
from queue_pg.hearing import Bell

T = TypeVar("T")


class Thread(Protocol):
    """What is used of threading.Thread."""

    def start(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class Event(Protocol):
    """What is used of threading.Event."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Inbox(Protocol[T]):
    """What is used of queue.SimpleQueue."""

    def put(self, item: T) -> None: ...
    def get(self) -> T: ...


class Timer(Protocol):
    """What is used of threading.Timer."""

    def start(self) -> None: ...
    def cancel(self) -> None: ...


class Surroundings:
    """The machine as it is."""

    def monotonic(self) -> float:
        return time.monotonic()

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)

    # --- threads ------------------------------------------------------------------------------------------------------

    def thread(self, target: Callable[[], object], *, name: str) -> Thread:
        """Make a thread that does not keep the process from ending."""
        return threading.Thread(target=target, name=name, daemon=True)

    def timer(self, seconds: float, function: Callable[[], object]) -> Timer:
        """Make a thread that calls `function` so long after its start, unless it is cancelled before."""
        timer = threading.Timer(seconds, function)
        timer.daemon = True
        return timer

    def event(self) -> Event:
        return threading.Event()

    def inbox(self) -> Inbox[Any]:
        return queue.SimpleQueue()

    def bell(self) -> Bell:
        return Bell()

    # --- connections --------------------------------------------------------------------------------------------------

    def connect(self, dsn: str, *, application: str) -> LibraryConnection:
        return connections.connect(dsn, application=application)

    async def connect_async(self, dsn: str, *, application: str) -> LibraryAsyncConnection:
        return await connections.connect_async(dsn, application=application)

    def sever(self, connection: Connection[Any] | AsyncConnection[Any]) -> None:
        """Break a connection from outside, so that whoever waits for its answer gets an OperationalError at once."""
        patience.sever(connection)


REAL: Final = Surroundings()
