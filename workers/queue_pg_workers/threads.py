"""Threads for handlers that block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from queue_pg.surroundings import REAL, Inbox, Surroundings


class HandlerThreads:
    """A pool whose threads are daemons: a handler that never returns must not keep the process from ending.

    (`ThreadPoolExecutor` joins its threads at exit.) It starts a thread only when none is free; the worker never
    runs more handlers than it has slots, which bounds them.
    """

    def __init__(self, *, name: str, surroundings: Surroundings = REAL) -> None:
        self._name = name
        self._surroundings = surroundings
        self._work: Inbox[tuple[Future[Any], Callable[[], Any]] | None] = surroundings.inbox()
        self._lock = threading.Lock()
        self._free = 0
        self._threads = 0

    def submit(self, fn: Callable[[], Any]) -> Future[Any]:
        """Run `fn`, which must not raise, in a thread."""
        future: Future[Any] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
            else:
                self._threads += 1
                self._surroundings.thread(self._run, name=f"{self._name}-{self._threads}").start()
        self._work.put((future, fn))
        return future

    def close(self) -> None:
        """Let free threads end; busy ones end with their handler or with the process."""
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, fn = item
            del item
            try:
                result = fn()
            except BaseException as error:
                with self._lock:
                    self._free += 1
                future.set_exception(error)
            else:
                with self._lock:
                    self._free += 1
                future.set_result(result)
                del result
            del future, fn
