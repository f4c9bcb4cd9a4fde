"""When a worker with free slots looks for jobs, and whether it asks to be notified of the next one.

Like a network card under load: polled while busy, interrupting when idle. docs/workers.md has the states. Pure: it is
told what happened and says what to do next, so tests need neither a database nor time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

# The pauses between looks after one that found less than it had room for.
QUICK_SECONDS: Final = (0.002, 0.004, 0.008, 0.016)
# With many workers each looks less often, so that they look about as often as one alone all together.
QUICK_SECONDS_A_WORKER: Final = 0.001
# What arming misses (a job inserted before it and committed after, another worker's `disarm` that raced with it) is
# found by one more look after about this.
CONFIRM_SECONDS: Final = 0.0175
MAX_FALLBACK_SECONDS: Final = 5.0
# Looks in a row that found several jobs each: from then on jobs come more often than we look, no hint would be sooner,
# and there are so many that the hints would tax those who submit them.
SUSTAINED_FINDS: Final = 3
SEVERAL: Final = 2
# The same of looks that found any, with room for more: jobs that come one by one, but as fast as we look. It may be our
# notifications that keep them from coming faster, because commits that notify go one after the other.
SUSTAINED_SINGLES: Final = 8
# Empty looks in a row after which what was disarmed is armed again: bursts have pauses.
LULL_LOOKS: Final = 3

# Hints in vain, one upon the other: many jobs arrive that are not for us (a paused queue, a kind that is not ours),
# and each of their INSERTs pays for a NOTIFY. From so many on we disarm and are deaf for a while, doubling.
STORM_HINTS: Final = 5
STORM_SECONDS: Final = (0.1, 1.0)

_ARMED: Final = len(QUICK_SECONDS)
_CONFIRMED: Final = _ARMED + 1


class Looking:
    """One worker's looks. `fleet` is how many live workers serve its queues, itself included."""

    def __init__(self, *, poll_seconds: float, jitter: Callable[[float, float], float] = random.uniform) -> None:
        self.fleet = 1
        # Whether our last word to the others was to send no notifications, because we look by ourselves.
        self.has_disarmed = False
        self._poll_seconds = poll_seconds
        self._jitter = jitter
        self._arms = False
        # Looks that found nothing since the last one that found something; the first look of all may arm.
        self._empty = _ARMED - 1
        # Looks in a row that found several, and that found any and had room for more.
        self._finds = 0
        self._singles = 0
        self._full = False
        # Looks in a row that a hint had asked for and that found nothing.
        self._vain = 0
        self._hinted = False
        self._storm_seconds = STORM_SECONDS[0]

    @property
    def deaf(self) -> bool:
        """Whether hints are to be passed over during the pause that comes now."""
        return self._vain >= STORM_HINTS

    def arm(self, *, listening: bool) -> bool | None:
        """Return what the look that is due now tells `queue_pg.claim` as `arm`."""
        dense = self._finds >= SUSTAINED_FINDS or self._singles >= SUSTAINED_SINGLES
        disarms = listening and (dense or self._vain >= STORM_HINTS - 1)
        # What was disarmed is armed again at the first lull; what was not, is mostly armed anyway.
        self._arms = listening and not disarms and self._empty >= (LULL_LOOKS if self.has_disarmed else _ARMED) - 1
        self.has_disarmed = self.has_disarmed or disarms
        return False if disarms else self._arms or None

    def looked(self, found: int, *, room: int) -> None:
        """Take in that a look with room for so many jobs has found so many."""
        self._full = found >= room
        if found:
            self._finds = self._finds + 1 if found >= SEVERAL else 0
            self._singles += not self._full
            self._empty = 0
            self._calm()
        else:
            # Only a look that finds nothing arms.
            self.has_disarmed = self.has_disarmed and not self._arms
            self._finds = self._singles = 0
            self._empty = min(self._empty + 1, _CONFIRMED)
            self._vain += self._hinted

    def pause_seconds(self, *, listening: bool) -> float:
        """Return how long to wait for a hint before the next look."""
        if self._full:
            return 0.0
        if self.deaf:
            return self._storm_seconds * self._jitter(0.7, 1.0)
        if self._empty < _ARMED:
            pause = max(QUICK_SECONDS[self._empty], self.fleet * QUICK_SECONDS_A_WORKER)
        elif listening:
            pause = CONFIRM_SECONDS if self._empty == _ARMED else self._fallback_seconds()
        else:
            pause = self._poll_seconds
        # A little early and never the same, so that a fleet does not look in step.
        return pause * self._jitter(0.7, 1.0)

    def paused(self, *, hinted: bool) -> None:
        """Take in how the pause has ended: with a hint, or without one in its time."""
        self._hinted = hinted and not self.deaf
        if self.deaf:
            # Whether the storm goes on, the next looks tell.
            self._vain = STORM_HINTS - 2
            self._storm_seconds = min(2 * self._storm_seconds, STORM_SECONDS[1])
        elif not hinted:
            self._calm()
            return
        if self._empty >= _ARMED:
            # Should another worker have been faster, the next look arms again at once.
            self._empty = _ARMED - 1

    def _calm(self) -> None:
        self._vain, self._storm_seconds = 0, STORM_SECONDS[0]

    def _fallback_seconds(self) -> float:
        # As many looks in all as of four workers that poll, however large the fleet.
        return max(self._poll_seconds, min(self._poll_seconds * self.fleet / 4, MAX_FALLBACK_SECONDS))
