"""Which kinds are known, and whether a submission of another one is a typo.

Known kinds are rows of `queue_pg.kinds`: workers register theirs, pull workers by naming them when they claim. An
unknown kind is refused when it looks like a known one, or when a live worker serves its queue, because then we know
who would have to run it; otherwise it is accepted, its worker may come later.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Collection, Iterable
from typing import Literal

from queue_pg import store
from queue_pg.client import Queue
from queue_pg.errors import UnknownKind
from queue_pg.submission import encode_kinds

# A kind registered in another process may be refused for this long at most; refusals always look again first.
REFRESH_SECONDS = 1.0


class Kinds:
    """The known kinds, remembered: a submission of a known kind costs no query."""

    def __init__(self, queue: Queue, policy: Literal["auto", "refuse", "accept"]) -> None:
        self._queue = queue
        self._policy = policy
        self._known: frozenset[str] = frozenset()
        self._served_queues: frozenset[str] = frozenset()
        # Unknown, and accepted by what was read last.
        self._accepted: set[tuple[str, str]] = set()
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def check(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Raise UnknownKind for the first (kind, queue) that must not be accepted."""
        if self._policy == "accept":
            return
        unknown = {(kind, queue) for kind, queue in wanted if kind not in self._known}
        if not unknown or (unknown <= self._accepted and time.monotonic() - self._read_at < REFRESH_SECONDS):
            return
        await self._refresh()
        for kind, queue in sorted(unknown):
            if kind in self._known:
                continue
            suggestions = difflib.get_close_matches(kind, sorted(self._known), n=3, cutoff=0.7)
            if suggestions or self._policy == "refuse" or queue in self._served_queues:
                raise UnknownKind(kind, suggestions)
        self._accepted |= unknown

    async def learn(self, kinds: Collection[str]) -> None:
        """Register kinds that a pull worker says it runs; known ones keep their schema and retry policy."""
        new = set(kinds) - self._known
        if not new:
            return
        await self._refresh()
        new -= self._known
        if new:
            async with self._queue.connection() as connection:
                await store.register_kinds(connection, encode_kinds([{"kind": kind} for kind in sorted(new)]))
            self._known |= new
            self._accepted.clear()

    async def _refresh(self) -> None:
        async with self._lock:
            # Whoever waited for the lock finds fresh answers.
            if time.monotonic() - self._read_at < REFRESH_SECONDS:
                return
            self._known = frozenset(each.kind for each in await self._queue.kinds())
            workers = await self._queue.workers()
            self._served_queues = frozenset(
                name for worker in workers if worker.live and not worker.stopping for name in worker.queues
            )
            self._accepted.clear()
            self._read_at = time.monotonic()
