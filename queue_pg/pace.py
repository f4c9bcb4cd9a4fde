"""How often the leader of maintenance looks, and how far back: pure decisions, without clock or database."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from queue_pg.models import MaintenanceRound

BATCH: Final = 1_000
MAX_SLEEP_SECONDS: Final = 1.0
MIN_SLEEP_SECONDS: Final = 0.01
_SLOWEST_SECONDS: Final = 2.0
_SLOWEST_FULL_SECONDS: Final = 30.0
# A rest is this many times the look before it: whatever looks cost, within these bounds they take 5 % of the time.
_REST: Final = 30
_FULL_REST: Final = 60


class Pace:
    """Most looks are full. Where that is slow, because somebody holds dead rows in place (docs/operations.md), looks at
    what fell due since the last one come between.

    `begin` each look, `end` it with its answer, then sleep for `pause_seconds`, of which not even a hint may
    shorten the first `rest_seconds`. Times are those of a monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self.pause_seconds = 0.0
        self.rest_seconds = 0.0
        self._since: datetime | None = None
        self._full = True
        self._full_at = 0.0
        self._quick_seconds = 0.0

    def begin(self, now: float) -> datetime | None:
        """Return the `since` to look with; None looks at everything."""
        self._full = self._since is None or now >= self._full_at
        return None if self._full else self._since

    def end(self, found: MaintenanceRound, now: float) -> None:
        """Learn from the answer of `queue_pg.lead_maintenance`."""
        step = found.step
        if step is None:
            self._since = None
            self.pause_seconds = self.rest_seconds = found.next_look_seconds
            return
        if self._full:
            self._full_at = now + min(found.took_seconds * _FULL_REST, _SLOWEST_FULL_SECONDS)
        else:
            self._quick_seconds = found.took_seconds
        if BATCH in (step.reaped, step.promoted, step.expired):
            # There is more, and it fell due no later than this.
            self._since = None if self._full else self._since
            self.pause_seconds = self.rest_seconds = 0.0
            return
        if not step.busy:
            self._since = found.at
        # Never longer than this even when nothing is known to fall due: no hint tells of a short lease just taken.
        pause = MAX_SLEEP_SECONDS
        if step.next_due_seconds is not None:
            # A moment later, or the look would come a moment too early.
            pause = min(step.next_due_seconds + 0.001, pause)
        if step.busy:
            # Somebody else is at it; what is due now is in its hands.
            pause = max(pause, MAX_SLEEP_SECONDS / 4)
        self.rest_seconds = min(max(self._quick_seconds * _REST, MIN_SLEEP_SECONDS), _SLOWEST_SECONDS)
        self.pause_seconds = max(pause, self.rest_seconds)
