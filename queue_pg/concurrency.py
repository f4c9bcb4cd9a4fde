"""The primitives that the library's async code and its generated blocking twin need in two shapes.

tools/async_to_sync.py swaps each `Async...` name below for its `Sync...` counterpart. Both kinds of `Signal` may be
set from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class AsyncSignal:
    """An event for one waiter at a time, settable from any thread; waiting clears it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and every waiter with it
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_seconds: float | None) -> bool:
        """Return True when set within the time, and clear it."""
        if not self._event.is_set():
            waiting = asyncio.ensure_future(self._event.wait())
            try:
                await asyncio.wait([waiting], timeout=timeout_seconds)
            finally:
                waiting.cancel()
        was_set = self._event.is_set()
        self._event.clear()
        return was_set


class SyncSignal:
    """An event for one waiter at a time, settable from any thread; waiting clears it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def wait(self, timeout_seconds: float | None) -> bool:
        """Return True when set within the time, and clear it."""
        was_set = self._event.wait(timeout_seconds)
        self._event.clear()
        return was_set


class AsyncSlots:
    """A number of slots, handed out in the order of asking."""

    def __init__(self, slots: int) -> None:
        self._semaphore = asyncio.Semaphore(slots)

    async def acquire(self, timeout_seconds: float) -> bool:
        """Return whether a slot was had in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._semaphore.acquire()
        except TimeoutError:
            return False

    def release(self) -> None:
        self._semaphore.release()


class SyncSlots:
    """A number of slots."""

    def __init__(self, slots: int) -> None:
        self._semaphore = threading.Semaphore(slots)

    def acquire(self, timeout_seconds: float) -> bool:
        """Return whether a slot was had in time."""
        return self._semaphore.acquire(timeout=timeout_seconds)

    def release(self) -> None:
        self._semaphore.release()


class AsyncBackground:
    """A task that is kept and joined."""

    def __init__(self, function: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._task = asyncio.create_task(function(), name=name)

    @property
    def running(self) -> bool:
        return not self._task.done()

    async def join(self) -> None:
        await asyncio.wait([self._task])


class SyncBackground:
    """A daemon thread: it must not keep a program alive whose main thread has ended."""

    def __init__(self, function: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=function, name=name, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()
