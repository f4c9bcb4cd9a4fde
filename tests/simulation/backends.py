"""The real connections under a simulation: they do what arrives, and are kept for the next run."""

from __future__ import annotations

from typing import Final

from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq.abc import PGconn

from queue_pg.connections import connect_arguments
from queue_pg.wakeup import CHANNELS

# When a statement has to wait, somebody holds a lock across statements, which the simulation is not made for.
LOCK_MILLISECONDS: Final = 1_000
EPOCH_SECONDS: Final = 1_893_456_000  # 2030-01-01


class Backends:
    """The real connections of a simulation: those that are free, and an ear that hears all notifications."""

    def __init__(self, dsn: str) -> None:
        arguments = connect_arguments(dsn, application="simulation")
        known = {name: value for name, value in arguments.items() if name not in ("autocommit", "prepare_threshold")}
        known["options"] = f"{known['options']} -c lock_timeout={LOCK_MILLISECONDS}"
        self._conninfo = make_conninfo(**known).encode()
        self._free: list[PGconn] = []
        self.ear = self._connect()
        for channel in CHANNELS:
            self.ear.exec_(f"listen {channel}".encode())

    def take(self) -> PGconn:
        return self._free.pop() if self._free else self._connect()

    def give_back(self, backend: PGconn) -> None:
        """Take back what nobody uses any more, as new."""
        status = backend.transaction_status
        if status == TransactionStatus.ACTIVE or backend.status != ConnStatus.OK:
            # In the middle of a COPY, say.
            backend.finish()
            return
        if status != TransactionStatus.IDLE:
            backend.exec_(b"rollback")
        backend.exec_(b"deallocate all; reset all")
        backend.notice_handler = backend.notify_handler = None
        self._free.append(backend)

    def close(self) -> None:
        for backend in (self.ear, *self._free):
            backend.finish()

    def _connect(self) -> PGconn:
        backend: PGconn = pq.PGconn.connect(self._conninfo)
        assert backend.status == ConnStatus.OK, backend.get_error_message()
        backend.nonblocking = 1
        return backend


def _dead() -> PGconn:
    connection: PGconn = pq.PGconn.connect_start(b"host=/nowhere")
    connection.finish()
    return connection


DEAD: Final[PGconn] = _dead()
