# Generated from queue_pg/pool.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""The connections of one Queue: made when needed, by who needs one, and kept for the next.

psycopg's own pool connects in the background and doubles its pause after each failure, so that a caller learns only
that it waited in vain, and a minute after an outage nobody may be trying. Here the caller connects: it gets the reason
at once, and the first call after an outage works. `pool_sync.py` is generated from this file by
tools/async_to_sync.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

from queue_pg.concurrency import SyncSlots
from queue_pg.connections import is_closed
from queue_pg.errors import DatabaseUnavailable
from queue_pg.sqlstates import translate_error
from queue_pg.surroundings import REAL, Surroundings

MAX_IDLE_SECONDS: Final = 300.0
MAX_AGE_SECONDS: Final = 3_600.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kept:
    conn: Connection[Any]
    expires_at: float
    idle_since: float = 0.0


class SyncPool:
    """At most `max_size` connections; who finds all in use waits `timeout_seconds` for one."""

    def __init__(
        self,
        dsn: str,
        *,
        max_size: int = 10,
        timeout_seconds: float = 10,
        application: str = "queue-pg",
        surroundings: Surroundings = REAL,
    ) -> None:
        self._dsn = dsn
        self._max_size = max_size
        self._timeout_seconds = timeout_seconds
        self._application = application
        self._surroundings = surroundings
        self._slots = SyncSlots(max_size)
        self._lock = threading.Lock()
        self._idle: list[_Kept] = []
        self._closed = False
        self._failing = False

    @contextmanager
    def connection(self) -> Generator[Connection[Any]]:
        """Lend an autocommit connection. Raises DatabaseUnavailable when none is free in time, psycopg's errors."""
        if not self._slots.acquire(self._timeout_seconds):
            raise DatabaseUnavailable(
                f"All {self._max_size} connections to Postgres were in use for {self._timeout_seconds:g} s.",
                hint="Allow more connections (POOL_SIZE), or send less at once.",
            )
        try:
            kept = self._take()
            try:
                yield kept.conn
            finally:
                self._give_back(kept)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close what is idle; connections lent out are closed when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for kept in idle:
            kept.conn.close()

    def _take(self) -> _Kept:
        while True:
            with self._lock:
                if self._closed:
                    raise DatabaseUnavailable("The SyncQueue is closed.")
                # The one used last: the others may then grow old and be closed.
                kept = self._idle.pop() if self._idle else None
            if kept is None:
                return self._connect()
            if not is_closed(kept.conn):
                return kept
            kept.conn.close()

    def _connect(self) -> _Kept:
        try:
            conn = self._surroundings.connect(self._dsn, application=self._application)
        except Exception as error:
            if not self._failing:
                self._failing = True
                _log.warning("Cannot connect to Postgres: %s", str(error).strip().partition("\n")[0])
            # Translated here: nothing was sent, so no outcome is unknown.
            raise translate_error(error) or error from error
        if self._failing:
            self._failing = False
            _log.info("Connected to Postgres again.")
        # Not all at once, or a fleet that started together reconnects together.
        return _Kept(conn, self._surroundings.monotonic() + MAX_AGE_SECONDS * self._surroundings.uniform(0.8, 1.0))

    def _give_back(self, kept: _Kept) -> None:
        now = self._surroundings.monotonic()
        with self._lock:
            usable = (
                not self._closed
                and kept.conn.pgconn.transaction_status == TransactionStatus.IDLE
                and now < kept.expires_at
            )
            if usable:
                kept.idle_since = now
                self._idle.append(kept)
            old = [other for other in self._idle if now - other.idle_since > MAX_IDLE_SECONDS]
            self._idle = [other for other in self._idle if now - other.idle_since <= MAX_IDLE_SECONDS]
        for other in old if usable else [*old, kept]:
            other.conn.close()


@contextmanager
def lend(pool: SyncPool | ConnectionPool[Any]) -> Generator[Connection[Any]]:
    """Lend a connection of our pool, or of one of psycopg's that belongs to the caller."""
    if isinstance(pool, SyncPool):
        with pool.connection() as conn:
            yield conn
        return
    conn = pool.getconn()
    try:
        while is_closed(conn):
            pool.putconn(conn)  # it is replaced
            conn = pool.getconn()
        with conn.transaction() if not conn.autocommit else _nothing():
            yield conn
    finally:
        pool.putconn(conn)


@contextmanager
def _nothing() -> Generator[None]:
    yield
