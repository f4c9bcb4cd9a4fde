"""The Queue that `Task.submit` goes by when none was named: the one of `use_queue`, else one from the settings."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from queue_pg.client import Queue
from queue_pg.client_sync import SyncQueue

_lock: Final = threading.Lock()
_chosen: list[Queue | SyncQueue] = []
_sync: list[SyncQueue] = []


@dataclass(slots=True)
class _Opening:
    """The queue of one event loop. Two tasks may want it at once, hence the lock."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    queue: Queue | None = None
    keeper: AsyncGenerator[None] | None = None


_opened: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Opening]] = WeakKeyDictionary()


def use_queue(queue: Queue | SyncQueue | None) -> None:
    """Submit tasks by `queue` from now on; a Queue for `submit`, a SyncQueue for `submit_sync`. None: forget both."""
    with _lock:
        _chosen[:] = [other for other in _chosen if queue is not None and type(other) is not type(queue)]
        if queue is not None:
            _chosen.append(queue)


async def for_async() -> Queue:
    """Return the Queue of `use_queue`, else one of this event loop, which is closed when the loop ends."""
    for queue in _chosen:
        if isinstance(queue, Queue):
            return queue
    opening = _opened.setdefault(asyncio.get_running_loop(), _Opening())
    async with opening.lock:
        if opening.queue is None:
            queue = Queue()
            opening.keeper = _close_with_loop(queue)
            await anext(opening.keeper)
            opening.queue = queue
        return opening.queue


async def _close_with_loop(queue: Queue) -> AsyncGenerator[None]:
    """Hold a queue open until the loop ends: asyncio closes pending async generators then, and nobody else knows."""
    await queue.open()
    try:
        yield
    finally:
        await queue.close()


def for_sync() -> SyncQueue:
    """Return the SyncQueue of `use_queue`, else one that is closed when the program ends."""
    with _lock:
        for queue in (*_chosen, *_sync):
            if isinstance(queue, SyncQueue):
                return queue
        opened = SyncQueue()
        opened.open()
        _sync.append(opened)
        atexit.register(opened.close)
        return opened
