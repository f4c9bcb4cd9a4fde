"""Living through a database that is away: how long to wait, and how little to say about it."""

from __future__ import annotations

import logging

from queue_pg.surroundings import REAL, Surroundings
from queue_pg_workers.signals import Signals

FIRST_DELAY_SECONDS = 0.1
MAX_DELAY_SECONDS = 5.0


class Outage:
    """Counts failures in a row. Logs the first one and the recovery, not each retry."""

    def __init__(self, what: str, *, log: logging.Logger, signals: Signals, surroundings: Surroundings = REAL) -> None:
        self._what = what
        self._log = log
        self._signals = signals
        self._surroundings = surroundings
        self._failures = 0

    @property
    def lasting(self) -> bool:
        return self._failures > 0

    def failed(self, error: BaseException) -> float:
        """Return how many seconds to wait; random, so that a fleet does not come back as one."""
        if not self._failures:
            reason = " ".join(str(error).split()) or type(error).__name__
            self._log.warning("%s: the database cannot be used, trying again: %s", self._what, reason)
            self._signals.emit("outage", self._what)
        self._failures += 1
        self._signals.emit("database_error", self._what)
        longest = min(FIRST_DELAY_SECONDS * 2 ** min(self._failures, 10), MAX_DELAY_SECONDS)
        return self._surroundings.uniform(longest / 2, longest)

    def over(self) -> None:
        if self._failures:
            self._log.warning("%s: the database works again", self._what)
            self._failures = 0
            self._signals.emit("recovered", self._what)
