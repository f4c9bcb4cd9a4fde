"""What has to happen by itself: reaping, promotion, deadlines, partitions.

Any number of processes may run the loop. One of them at a time leads and works; the others look now and then whether it
still does (functions/leader.sql), so a fleet asks the database hardly more than one process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from queue_pg import durability, store
from queue_pg.errors import DatabaseUnavailable, QueuePgError
from queue_pg.horizon import HorizonWatch
from queue_pg.models import InstanceDefaults, MaintenanceRound
from queue_pg.pace import BATCH, MAX_SLEEP_SECONDS, Pace
from queue_pg.pool import AsyncPool, lend
from queue_pg.sqlstates import translated
from queue_pg.surroundings import REAL, Surroundings
from queue_pg.vacuum import Vacuum
from queue_pg.wakeup import DUE, Wakeups

HORIZON_SECONDS: Final = 10.0
_HISTORY_AFTER_FAULT_SECONDS: Final = 60.0
_BACKOFF_SECONDS: Final = (0.2, 10.0)
_RESIGN_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class MaintenanceLoop:
    """Leads maintenance while no other process does: calls `queue_pg.maintain` when the next thing falls due,
    `queue_pg.maintain_history` as often as that wants, removes dead rows, and warns of who keeps them in place. Leading
    or not, it warns once of a server that may lose what it has confirmed.

    It sleeps at most about 1 s; `wakeups` (started by its owner) tells that a new job falls due earlier.
    `defaults` are written to the database in the first step, leading or not. Dead rows are removed on a connection
    made for it: given a pool, which belongs to others, it leaves them to autovacuum.
    """

    def __init__(
        self,
        pool_or_dsn: AsyncPool | AsyncConnectionPool[Any] | str,
        wakeups: Wakeups | None = None,
        *,
        defaults: InstanceDefaults | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._source = pool_or_dsn
        self._surroundings = surroundings
        self._defaults = None if defaults == InstanceDefaults() else defaults
        self._wakeups = wakeups
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._born_at = surroundings.monotonic()
        self._pace = Pace()
        self._horizon = HorizonWatch()
        self._vacuum = Vacuum(pool_or_dsn, surroundings=surroundings) if isinstance(pool_or_dsn, str) else None
        self._history_at = 0.0
        self._horizon_at = 0.0
        self._failing = False
        self._asked_durability = False
        self._own: AsyncConnection[Any] | None = None
        self.leads = False
        self.steps = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Outages of the database are waited out; nothing is raised."""
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()
        subscription = None
        if self._wakeups is not None:
            subscription = self._wakeups.subscribe(DUE, callback=lambda: _set_soon(loop, woken))
        backoff = _BACKOFF_SECONDS[0]
        try:
            while not stop.is_set():
                woken.clear()
                try:
                    await self.step()
                except Exception as error:
                    self._note_failure(error)
                    await self._drop_connection()
                    # Hints do not shorten this pause: they come in numbers just when the database is coming back.
                    await _first_of(stop, timeout_seconds=backoff * self._surroundings.uniform(0.5, 1.0))
                    backoff = min(backoff * 2, _BACKOFF_SECONDS[1])
                else:
                    self._note_recovery()
                    backoff = _BACKOFF_SECONDS[0]
                    await self._sleep(stop, woken)
        finally:
            if subscription is not None:
                subscription.close()
            if self._vacuum is not None:
                await self._vacuum.close()
            await self._resign()
            await self._drop_connection()

    async def step(self) -> MaintenanceRound:
        """Take one step now if no other process leads, history and horizon included when it is time for them."""
        async with self._connection() as conn:
            if self._defaults is not None:
                # Before history: its partitions depend on the retention.
                await store.configure(conn, self._defaults)
                self._defaults = None
            found = await store.lead_maintenance(
                conn,
                self._name,
                max_jobs=BATCH,
                arm=self._wakeups is not None and self._wakeups.listening,
                since=self._pace.begin(self._surroundings.monotonic()),
                within_seconds=MAX_SLEEP_SECONDS,
                age_seconds=self._surroundings.monotonic() - self._born_at,
            )
            self._pace.end(found, self._surroundings.monotonic())
            self.leads = found.step is not None
            if self.leads and self._surroundings.monotonic() >= self._history_at:
                await self._keep_history(conn)
            if self._vacuum is not None:
                if self.leads:
                    await self._vacuum.look(conn)
                else:
                    self._vacuum.cancel()
            if self.leads and self._surroundings.monotonic() >= self._horizon_at:
                self._horizon_at = self._surroundings.monotonic() + HORIZON_SECONDS
                self._horizon.look(await store.horizon(conn), self._surroundings.monotonic())
            if not self._asked_durability:
                await durability.warn(conn)
                self._asked_durability = True
        self.steps += 1
        if found.step is not None and found.step.reaped:
            _log.warning("Took %d jobs back from workers whose leases had expired.", found.step.reaped)
        return found

    async def _keep_history(self, conn: AsyncConnection[Any]) -> None:
        self._history_at = self._surroundings.monotonic() + _HISTORY_AFTER_FAULT_SECONDS
        try:
            with translated():
                done = await store.maintain_history(conn)
        except DatabaseUnavailable:
            raise
        except QueuePgError as error:
            # Leases and due jobs must not wait for what is wrong with a partition.
            _log.warning("History is not maintained: %s", error)
        else:
            self._history_at = self._surroundings.monotonic() + done.again_seconds
            if done.dropped:
                _log.info("Dropped %d partition of history, made %d.", done.dropped, done.created)

    async def _sleep(self, stop: asyncio.Event, woken: asyncio.Event) -> None:
        rest, pause = self._pace.rest_seconds, self._pace.pause_seconds
        if self.leads:
            pause = max(rest, min(pause, self._history_at - self._surroundings.monotonic()))
        await _first_of(stop, timeout_seconds=rest)
        if pause > rest:
            await _first_of(stop, woken, timeout_seconds=pause - rest)

    async def _resign(self) -> None:
        """Let the next process lead at once. One that cannot say so is replaced a moment later."""
        if not self.leads:
            return
        self.leads = False
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_RESIGN_SECONDS), self._connection() as conn:
                await store.resign_maintenance(conn, self._name)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[Any]]:
        with translated():
            if not isinstance(self._source, str):
                async with lend(self._source) as conn:
                    yield conn
                return
            if self._own is None or self._own.closed:
                self._own = await self._surroundings.connect_async(self._source, application="queue-pg maintenance")
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
