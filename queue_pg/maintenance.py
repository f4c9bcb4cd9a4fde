"""What has to happen by itself: reaping, promotion, deadlines, partitions. Any number of processes may run the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from queue_pg import store
from queue_pg.connections import connect_async
from queue_pg.errors import DatabaseUnavailable, QueuePgError
from queue_pg.models import InstanceDefaults, MaintenanceStep
from queue_pg.pool import AsyncPool, lend
from queue_pg.sqlstates import translated
from queue_pg.wakeup import WAKE, Wakeups

MAX_SLEEP_SECONDS: Final = 1.0
HISTORY_SECONDS: Final = 60.0
BATCH: Final = 1_000
_BACKOFF_SECONDS: Final = (0.2, 10.0)
_MIN_SLEEP_SECONDS: Final = 0.01

_log = logging.getLogger(__name__)


class MaintenanceLoop:
    """Calls `queue_pg.maintain` when the next thing falls due and `queue_pg.maintain_history` every minute.

    It sleeps at most 1 s; `wakeups` (started by its owner) tells that a new job may fall due earlier.
    `defaults` are written to the database in the first step.
    """

    def __init__(
        self,
        pool_or_dsn: AsyncPool | AsyncConnectionPool[Any] | str,
        wakeups: Wakeups | None = None,
        *,
        defaults: InstanceDefaults | None = None,
    ) -> None:
        self._source = pool_or_dsn
        self._defaults = None if defaults == InstanceDefaults() else defaults
        self._wakeups = wakeups
        self._history_at = 0.0
        self._failing = False
        self._own: AsyncConnection[Any] | None = None
        self.steps = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Outages of the database are waited out; nothing is raised."""
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()
        subscription = None
        if self._wakeups is not None:
            subscription = self._wakeups.subscribe(WAKE, callback=lambda: _set_soon(loop, woken))
        backoff = _BACKOFF_SECONDS[0]
        try:
            while not stop.is_set():
                woken.clear()
                try:
                    pause = self._pause(await self.step())
                except Exception as error:
                    self._note_failure(error)
                    await self._drop_connection()
                    # Hints do not shorten this pause: they come in numbers just when the database is coming back.
                    await _first_of(stop, timeout_seconds=backoff * random.uniform(0.5, 1.0))
                    backoff = min(backoff * 2, _BACKOFF_SECONDS[1])
                else:
                    self._note_recovery()
                    backoff = _BACKOFF_SECONDS[0]
                    await _first_of(stop, woken, timeout_seconds=pause)
        finally:
            if subscription is not None:
                subscription.close()
            await self._drop_connection()

    async def step(self) -> MaintenanceStep:
        """Take one step now, history included when its minute is over."""
        async with self._connection() as conn:
            if self._defaults is not None:
                # Before history: its partitions depend on the retention.
                await store.configure(conn, self._defaults)
                self._defaults = None
            if time.monotonic() >= self._history_at:
                await self._history(conn)
            step = await store.maintain(conn, max_jobs=BATCH)
        self.steps += 1
        if step.reaped:
            _log.warning("Took %d jobs back from workers whose leases had expired.", step.reaped)
        return step

    async def _history(self, conn: AsyncConnection[Any]) -> None:
        self._history_at = time.monotonic() + HISTORY_SECONDS
        try:
            with translated():
                created, dropped = await store.maintain_history(conn)
        except DatabaseUnavailable:
            raise
        except QueuePgError as error:
            # Leases and due jobs must not wait for what is wrong with a partition.
            _log.warning("History is not maintained: %s", error)
        else:
            if dropped:
                _log.info("Dropped %d partition of history, made %d.", dropped, created)
                self._history_at = 0.0  # one is dropped a call: there may be more

    def _pause(self, step: MaintenanceStep) -> float:
        if BATCH in (step.reaped, step.promoted, step.expired):
            return 0.0  # a full batch: there is more
        # Never longer, even when nothing is known to fall due: no hint tells of a short lease that was just taken.
        pause = MAX_SLEEP_SECONDS if step.next_due_seconds is None else min(step.next_due_seconds, MAX_SLEEP_SECONDS)
        if step.busy:
            # Another process is at it; what is due now is in its hands.
            pause = max(pause, MAX_SLEEP_SECONDS / 4)
        # Several processes must not wake at the same moment for the same row.
        return max(pause, _MIN_SLEEP_SECONDS) * random.uniform(1.0, 1.1)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[Any]]:
        with translated():
            if not isinstance(self._source, str):
                async with lend(self._source) as conn:
                    yield conn
                return
            if self._own is None or self._own.closed:
                self._own = await connect_async(self._source, application="queue-pg maintenance")
            yield self._own

    async def _drop_connection(self) -> None:
        if self._own is not None:
            conn, self._own = self._own, None
            await conn.close()

    def _note_failure(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            hint = getattr(error, "hint", None)
            _log.warning("Maintenance pauses: %s %s", str(error).partition("\n")[0], hint or "Trying again.")

    def _note_recovery(self) -> None:
        if self._failing:
            self._failing = False
            _log.info("Maintenance is back.")


def _set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(event.set)


async def _first_of(*events: asyncio.Event, timeout_seconds: float) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
