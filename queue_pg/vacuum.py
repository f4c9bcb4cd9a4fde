"""Removing the dead rows of the live tables while there is much traffic (docs/design.md, Dead rows).

Autovacuum comes once a minute at best, in which 20,000 jobs a second leave 2.4 million dead rows behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from psycopg import AsyncConnection

from queue_pg import store
from queue_pg.models import DeadRows
from queue_pg.sqlstates import translated
from queue_pg.surroundings import REAL, Surroundings

# A table may have this many dead rows, and half as many as live ones, before it is vacuumed. Claims start behind dead
# entries anyway, and a vacuum that finds little costs as much as one that finds much.
DEAD_ROWS: Final = {"jobs": 200_000, "queue_counters": 5_000}
_LIVE_SHARE: Final = 0.5
LOOK_SECONDS: Final = 1.0
# What takes longer is left to autovacuum, which nobody waits for.
MAX_SECONDS: Final = 30.0
# A rest is this many times the vacuum before it: vacuums take 5 % of the time at most, and a rest ten minutes.
_REST: Final = 20
_HELD_SECONDS: Final = (2.0, 60.0)
_FORBIDDEN_SECONDS: Final = 600.0
# Before PostgreSQL 15 statistics go through a process that writes them down twice a second.
_STATISTICS_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class VacuumPace:
    """When to vacuum, and how long to rest: pure decisions. Times are those of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.look_at = 0.0
        self._held_seconds = _HELD_SECONDS[0]

    def due(self, found: Sequence[DeadRows], now: float) -> list[str]:
        """Return the tables to vacuum, mostly none. The next look is at `look_at`."""
        self.look_at = now + LOOK_SECONDS
        return [table.name for table in found if table.dead > DEAD_ROWS[table.name] + table.live * _LIVE_SHARE]

    def end(self, before: int, after: int, took_seconds: float, now: float) -> None:
        """Learn from a vacuum. One that left half of the dead rows was in vain: somebody holds them in place, or
        autovacuum is at work; each such one doubles the rest, up to a minute."""
        rest = max(took_seconds * _REST, LOOK_SECONDS)
        if after * 2 > before:
            rest = max(rest, self._held_seconds)
            self._held_seconds = min(self._held_seconds * 2, _HELD_SECONDS[1])
        else:
            self._held_seconds = _HELD_SECONDS[0]
        self.look_at = now + rest

    def forbidden(self, now: float) -> None:
        """Look again when somebody may have granted the right."""
        self.look_at = now + _FORBIDDEN_SECONDS


class Vacuum:
    """Vacuums beside its caller, one table at a time, on a connection made for it. Nothing waits for a VACUUM, and it
    keeps no dead rows in place as another long statement would."""

    def __init__(self, dsn: str, *, surroundings: Surroundings = REAL) -> None:
        self.task: asyncio.Task[None] | None = None
        self._dsn = dsn
        self._surroundings = surroundings
        self._pace = VacuumPace()
        self._told: str | None = None

    async def look(self, conn: AsyncConnection[Any]) -> None:
        """Start a vacuum when it is time for one. Asks `conn` once a second at most, and raises psycopg's errors."""
        if (self.task is not None and not self.task.done()) or self._surroundings.monotonic() < self._pace.look_at:
            return
        found = await store.dead_rows(conn)
        due = self._pace.due(found, self._surroundings.monotonic())
        if not due:
            return
        if all(table.may_vacuum for table in found):
            self.task = asyncio.create_task(self._work(due, _dead(found, due)))
        else:
            self._pace.forbidden(self._surroundings.monotonic())
            self._tell(
                "Dead rows are left to autovacuum, because this role may not vacuum. From PostgreSQL 17: grant maintain"
                " on queue_pg.jobs, queue_pg.queue_counters to it; before, make it a member of their owner."
            )

    def cancel(self) -> None:
        """End a running vacuum soon; what it has removed stays removed."""
        if self.task is not None:
            self.task.cancel()

    async def close(self) -> None:
        """End a running vacuum, and wait a moment for that."""
        self.cancel()
        if self.task is not None:
            await asyncio.wait([self.task], timeout=_CLOSE_SECONDS)

    async def _work(self, due: Sequence[str], before: int) -> None:
        started, after = self._surroundings.monotonic(), before
        try:
            # Here and not in the session, whose settings a pooler may refuse. The server ends the statement, too.
            with translated():
                async with asyncio.timeout(MAX_SECONDS):
                    after = await self._vacuum(due)
        except Exception as error:
            reason = str(error).partition("\n")[0].rstrip(".") or f"it took more than {MAX_SECONDS:g} s"
            self._tell(f"Dead rows are left to autovacuum for a while: {reason}.")
        else:
            self._told = None
        now = self._surroundings.monotonic()
        self._pace.end(before, after, now - started, now)

    async def _vacuum(self, due: Sequence[str]) -> int:
        """Return how many dead rows are left."""
        conn = await self._surroundings.connect_async(self._dsn, application="queue-pg vacuum")
        try:
            for table in due:
                await store.vacuum(conn, table)
            if conn.info.server_version < 150000:
                await asyncio.sleep(_STATISTICS_SECONDS)
            return _dead(await store.dead_rows(conn), due)
        finally:
            await conn.close()

    def _tell(self, message: str) -> None:
        if message != self._told:
            self._told = message
            _log.info(message)


def _dead(found: Sequence[DeadRows], names: Sequence[str]) -> int:
    return sum(table.dead for table in found if table.name in names)
