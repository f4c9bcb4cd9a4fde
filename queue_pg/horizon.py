"""Who keeps dead rows from being removed, in words, and when to say so (docs/operations.md)."""

from __future__ import annotations

import logging
from typing import Final

from queue_pg.models import Horizon

# Below these a holder is everyday business, or costs nothing.
TOLD_SECONDS: Final = 30.0
TOLD_DEAD_ROWS: Final = 1_000
REPEATED_SECONDS: Final = 300.0
_SHOWN_QUERY: Final = 120

_log = logging.getLogger(__name__)


def describe(holder: Horizon) -> str:
    """Return one sentence about the holder."""
    age = f"{holder.age_transactions:,} transactions"
    if holder.age_seconds is not None:
        age = f"{holder.age_seconds:,.0f} s and {age}"
    cost = f"keeps up to {holder.dead_rows:,} dead rows of the queue from being removed ({_size(holder.jobs_bytes)})"
    return f"{_who(holder)}, {age} old, {cost}."


def advice(holder: Horizon) -> str:
    """Return what to do about the holder."""
    match holder.kind:
        case "prepared":
            return f"Finish it: commit prepared or rollback prepared '{holder.name}'."
        case "slot":
            return f"Bring its consumer back, or: select pg_drop_replication_slot('{holder.name}')."
        case "standby":
            return "End the long query there, or set hot_standby_feedback = off on that standby."
        case _:
            ending = f"End it: select pg_terminate_backend({holder.pid}). Then set idle_in_transaction_session_timeout."
            hidden = "" if holder.visible else " To see what it does, grant pg_read_all_stats to this role."
            return ending + hidden


def matters(holder: Horizon, age_seconds: float) -> bool:
    """Tell whether a holder of this age is worth a warning."""
    return age_seconds >= TOLD_SECONDS and holder.dead_rows >= TOLD_DEAD_ROWS


def _who(holder: Horizon) -> str:
    if holder.kind == "prepared":
        return f"The prepared transaction {holder.name!r} of {holder.username} in database {holder.database}"
    if holder.kind == "slot":
        return f"The replication slot {holder.name!r} ({holder.state})"
    if holder.kind == "standby":
        return f"The standby {holder.name!r} with hot_standby_feedback (pid {holder.pid})"
    about = ", ".join(part for part in (holder.name, f"user {holder.username}", holder.state) if part)
    query = f": {holder.query[:_SHOWN_QUERY]!r}" if holder.query else ""
    return f"The transaction of pid {holder.pid} ({about}){query}"


def _size(size: int) -> str:
    return f"its table has {size / 1024 / 1024:,.0f} MiB"


class HorizonWatch:
    """Warns of a holder when it begins to cost something, every few minutes while it does, and says when it is over."""

    def __init__(self) -> None:
        self._holder: tuple[str, int | None, str | None] | None = None
        self._seen_at = 0.0
        self._told_at: float | None = None

    def look(self, holder: Horizon | None, now: float) -> None:
        """Take the present holder; `now` is a monotonic clock's time in seconds."""
        identity = None if holder is None else (holder.kind, holder.pid, holder.name)
        if identity != self._holder:
            self._holder, self._seen_at = identity, now
        # What has no age in seconds, or hides it, is as old as this watch knows.
        if holder is None or not matters(holder, holder.age_seconds or now - self._seen_at):
            if self._told_at is not None:
                self._told_at = None
                _log.info("Dead rows of the queue can be removed again.")
        elif self._told_at is None or now - self._told_at >= REPEATED_SECONDS:
            self._told_at = now
            _log.warning("%s %s", describe(holder), advice(holder))
