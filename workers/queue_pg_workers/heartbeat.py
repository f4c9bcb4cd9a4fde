"""Keeping leases from a thread of its own: a handler that blocks the event loop must not cost it its jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from queue_pg import store_sync
from queue_pg.surroundings import REAL, Surroundings
from queue_pg_workers.leases import FENCE_SECONDS, Held, Leases
from queue_pg_workers.outage import Outage
from queue_pg_workers.signals import Signals
from queue_pg_workers.unheard import unheard

log = logging.getLogger(__name__)

# How often to ask which leases still stand: without notifications, and behind them, should they get lost.
CHECK_SECONDS = 0.9
CHECK_SECONDS_WHILE_LISTENING = 5.0
MAX_INTERVAL_SECONDS = 10.0
# A loop that has done nothing for so long is blocked by a handler: the answer to a claim may wait for it.
BLOCKED_SECONDS = 2 * FENCE_SECONDS
STATEMENT_SECONDS = 8.0
STOP_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The worker row's moving fields."""

    active: int
    processed: int
    failed: int
    stopping: bool


class Heartbeat:
    """Extends all leases in one statement every third of the shortest one, and reports the worker alive.

    In between it asks which leases still stand, which is how a handler learns that its job was cancelled: at once
    when notified (`check_soon`), else each second.

    A claim that was under way when a handler blocked the loop has leases that the loop has not heard of. While
    `claim_asked_at` says that there may be some, they are extended too.
    """

    def __init__(
        self,
        dsn: str,
        *,
        application: str,
        worker_id: str,
        leases: Leases,
        claim_asked_at: Callable[[], float | None],
        listening: Callable[[], bool],
        report: Callable[[], Report],
        on_fleet: Callable[[int], None],
        register: Callable[[psycopg.Connection[Any]], None],
        lease_seconds: float | None,
        signals: Signals,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._dsn = dsn
        self._application = application
        self._worker_id = worker_id
        self._leases = leases
        self._claim_asked_at = claim_asked_at
        self._listening = listening
        self._report = report
        self._on_fleet = on_fleet
        self._register = register
        self._lease_seconds = lease_seconds
        self._signals = signals
        self._surroundings = surroundings
        self._outage = Outage("heartbeat", log=log, signals=signals, surroundings=surroundings)
        self._rung = surroundings.event()
        self._schedule = threading.Lock()
        self._next_beat = 0.0
        self._stopping = False
        self._beat_now = False
        self._check_now = False
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._thread = surroundings.thread(self._run, name=f"{worker_id}-heartbeat")

    def start(self) -> None:
        self._thread.start()

    def cover(self, lease_seconds: float) -> None:
        """Make sure that a lease just taken is extended in time, short as it may be."""
        due = self._surroundings.monotonic() + lease_seconds / 3
        with self._schedule:
            sooner = due < self._next_beat
            self._next_beat = min(due, self._next_beat)
        if sooner:
            self._rung.set()

    def beat_soon(self) -> None:
        """Send the next heartbeat now: the worker row has news."""
        self._beat_now = True
        self._rung.set()

    def check_soon(self) -> None:
        """Ask now which leases still stand: one of ours was cancelled."""
        self._check_now = True
        self._rung.set()

    def stop(self) -> None:
        """End the thread, after what it is at; a server that does not answer is cut off. Blocks meanwhile."""
        self._stopping = True
        self._rung.set()
        self._thread.join(STOP_PATIENCE_SECONDS)
        if self._thread.is_alive() and (connection := self._connection) is not None:
            self._surroundings.sever(connection)
            self._thread.join()

    def _run(self) -> None:
        now = next_check = self._surroundings.monotonic()
        while not self._stopping:
            self._rung.wait(max(0.0, min(self._next_beat, next_check) - now))
            # Cleared before the flags are read: what is rung from here on ends the next wait.
            self._rung.clear()
            now = self._surroundings.monotonic()
            beat, self._beat_now = self._beat_now or now >= self._next_beat, False
            check, self._check_now = self._check_now or now >= next_check, False
            if self._stopping:
                break
            try:
                connection = self._connected()
                held = self._leases.all()
                if self._stopping:
                    break  # connecting can take long; a row forgotten meanwhile must not come back
                if beat:
                    self._beat(connection, held)
                    self._plan(now)
                elif check and held:
                    self._check(connection, held)
                if beat or check:
                    next_check = now + (CHECK_SECONDS_WHILE_LISTENING if self._listening() else CHECK_SECONDS)
                self._outage.over()
            except (psycopg.Error, OSError) as error:
                self._disconnect()
                # Leases run on meanwhile; Leases.fence stops their handlers when they may have ended.
                self._next_beat = next_check = self._surroundings.monotonic() + self._outage.failed(error)
            except Exception:
                log.exception("the heartbeat met an error of its own")
                self._next_beat = next_check = self._surroundings.monotonic() + CHECK_SECONDS
            now = self._surroundings.monotonic()
        self._disconnect()

    def _beat(self, connection: psycopg.Connection[Any], held: list[Held]) -> None:
        asked_at = self._surroundings.monotonic()
        with self._watched(connection):
            if held:
                ids, tokens = [one.job.id for one in held], [one.job.lease_token for one in held]
                renewed = store_sync.heartbeat(connection, ids, tokens, lease_seconds=self._lease_seconds)
                self._leases.extended(held, {str(lease.id) for lease in renewed}, asked_at=asked_at)
            self._extend_unheard(connection, held)
            report = self._report()
            fleet = store_sync.worker_heartbeat(
                connection,
                self._worker_id,
                active=report.active,
                processed=report.processed,
                failed=report.failed,
                stopping=report.stopping,
            )
            if fleet is None:
                self._register(connection)
            else:
                self._on_fleet(fleet)
        self._signals.emit("heartbeat", len(held))

    def _extend_unheard(self, connection: psycopg.Connection[Any], held: list[Held]) -> None:
        asked_at, claim_asked_at = self._surroundings.monotonic(), self._claim_asked_at()
        if claim_asked_at is None or asked_at - self._leases.looked_at < BLOCKED_SECONDS:
            return
        found = unheard(
            connection, self._worker_id, held, claim_asked_at=claim_asked_at, surroundings=self._surroundings
        )
        if found:
            ids, tokens = zip(*sorted(found), strict=True)
            renewed = store_sync.heartbeat(connection, ids, tokens, lease_seconds=self._lease_seconds)
            extended = {lease.id for lease in renewed}
            keys = [(str(id_), token) for id_, token in found if id_ in extended]
            self._leases.extended_unheard(keys, asked_at=asked_at)

    def _check(self, connection: psycopg.Connection[Any], held: list[Held]) -> None:
        with self._watched(connection):
            standing = store_sync.held(connection, [one.job.id for one in held], [one.job.lease_token for one in held])
        self._leases.checked(held, {str(one) for one in standing})

    def _plan(self, beaten_at: float) -> None:
        # Under the lock of `cover`, or a lease taken between the look and the decision would be overlooked.
        with self._schedule:
            usual = self._lease_seconds or 3 * MAX_INTERVAL_SECONDS
            shortest = min((held.job.lease_seconds for held in self._leases.all()), default=usual)
            self._next_beat = beaten_at + min(shortest / 3, MAX_INTERVAL_SECONDS)

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = self._surroundings.connect(self._dsn, application=self._application)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _watched(self, connection: psycopg.Connection[Any]) -> _Watchdog:
        return _Watchdog(connection, self._surroundings)


class _Watchdog:
    """Cuts the connection if the block takes too long: a lease is lost by waiting for a dead server as by nothing."""

    def __init__(self, connection: psycopg.Connection[Any], surroundings: Surroundings) -> None:
        self._timer = surroundings.timer(STATEMENT_SECONDS, lambda: surroundings.sever(connection))

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
