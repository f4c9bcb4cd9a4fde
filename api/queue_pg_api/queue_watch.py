"""Notifications about the queues that claims of this process wait for.

A claim that waits has armed its queues (functions/armed.sql): inserting into them sends a notification. One that comes
when nobody waits here any more is answered by disarming, so that applications do not pay for it again; whoever waits
elsewhere has been woken by it too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress

from queue_pg.errors import QueuePgError
from queue_pg.wakeup import WAKE, Subscription, Wakeups

logger = logging.getLogger(__name__)

DISARM_SPACING_SECONDS = 0.05
# Queues that nobody waits for any more, kept until the next notification about them.
MAX_LINGERING = 1_000

Wake = Callable[[], None]


class QueueWatch:
    """Wakes those who wait for a queue; used from one event loop."""

    def __init__(self, wakeups: Wakeups, disarm: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._wakeups = wakeups
        self._disarm = disarm
        self._waiting: dict[str, list[Wake]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._to_disarm: set[str] = set()
        self._disarming: asyncio.Task[None] | None = None

    @property
    def listening(self) -> bool:
        """Whether notifications arrive at present."""
        return self._wakeups.listening

    @contextmanager
    def watching(self, queues: Iterable[str], wake: Wake) -> Generator[None]:
        """Call `wake` whenever something may have become claimable in one of the queues."""
        names = set(queues)
        for name in names:
            self._waiting.setdefault(name, []).append(wake)
            if name not in self._subscriptions:
                self._subscriptions[name] = self._subscribe(name)
        try:
            yield
        finally:
            for name in names:
                self._waiting[name].remove(wake)
                if not self._waiting[name]:
                    del self._waiting[name]
                    if len(self._subscriptions) - len(self._waiting) > MAX_LINGERING:
                        self._let_go(name)

    async def close(self) -> None:
        """Stop listening. What is armed stays so: others may be waiting for it."""
        for subscription in self._subscriptions.values():
            subscription.close()
        self._subscriptions.clear()
        if self._disarming is not None:
            self._disarming.cancel()
            await asyncio.wait([self._disarming])

    def _subscribe(self, name: str) -> Subscription:
        loop = asyncio.get_running_loop()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._notified, name)

        return self._wakeups.subscribe(WAKE, name, callback=notify)

    def _notified(self, name: str) -> None:
        waiting = self._waiting.get(name)
        if waiting is None:
            self._let_go(name)
            return
        for wake in list(waiting):
            wake()

    def _let_go(self, name: str) -> None:
        subscription = self._subscriptions.pop(name, None)
        if subscription is None:
            return
        subscription.close()
        self._to_disarm.add(name)
        if self._disarming is None:
            self._disarming = asyncio.create_task(self._disarm_all())

    async def _disarm_all(self) -> None:
        try:
            while self._to_disarm:
                # Who has begun to wait meanwhile has armed the queue anew.
                names = [name for name in self._to_disarm if name not in self._subscriptions]
                self._to_disarm.clear()
                if names:
                    await self._disarm(names)
                await asyncio.sleep(DISARM_SPACING_SECONDS)
        except QueuePgError as error:
            logger.debug("Could not disarm: %s", error.code)
        finally:
            self._disarming = None
