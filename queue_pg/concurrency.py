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
    """An event for one waiter at a time, settable from any thread; waiting clears it.

    On a bare future: a follower waits at every page, and asyncio's own wait with a time-out is a task each time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._waiter: asyncio.Future[None] | None = None
        self._is_set = False
        self._on_its_way = False

    def set(self) -> None:
        if threading.get_ident() == self._thread:
            self._set()
        elif not self._on_its_way:
            # Waking the loop takes a write to a pipe; one that has not arrived yet serves for all.
            self._on_its_way = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and every waiter with it
                self._loop.call_soon_threadsafe(self._set)

    async def wait(self, timeout_seconds: float | None) -> bool:
        """Return True when set within the time, and clear it."""
        if not self._is_set:
            waiter = self._waiter = self._loop.create_future()
            timer = None if timeout_seconds is None else self._loop.call_later(timeout_seconds, _resolve, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        was_set, self._is_set = self._is_set, False
        return was_set

    def _set(self) -> None:
        # Before anything is looked at: what is set from here on tells anew.
        self._on_its_way = False
        self._is_set = True
        if self._waiter is not None:
            with contextlib.suppress(RuntimeError):  # as above
                _resolve(self._waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


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
