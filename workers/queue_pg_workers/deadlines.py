"""The timeouts of all running handlers, by one timer."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from queue_pg_workers.leases import Interruption, Leases

# Between two looks at all handlers, however many deadlines there are.
MIN_PAUSE_SECONDS: Final = 0.005


class Deadlines:
    """Interrupts each running handler at its `times_out_at`.

    A timer for each would cost more than most handlers take; nearly all end long before. The one timer is set for the
    earliest deadline, and when it goes off looks at those that have not ended.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._loop = asyncio.get_running_loop()
        self._next = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, earliest: float) -> None:
        """Take in that handlers have started of which the first times out at `earliest` (the loop's time)."""
        if earliest < self._next:
            self._set(earliest)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, at: float) -> None:
        self.close()
        self._next = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        self._next, self._timer = math.inf, None
        left: list[float] = []
        for held in self._leases.all():
            # Also those that the loop has not come to yet.
            if held.outcome is None and held.interruption is None:
                if held.times_out_at <= now:
                    held.interrupt(Interruption.TIMEOUT)
                else:
                    left.append(held.times_out_at)
        if left:
            self._set(max(min(left), now + MIN_PAUSE_SECONDS))
