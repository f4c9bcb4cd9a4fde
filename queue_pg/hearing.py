"""Whether notifications get through to a connection that listens.

Behind a pooler in transaction mode they do not: LISTEN stays with a server connection that others use, and raises
no error. Who took its word for it would wait for ever for a wake-up.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import uuid4

from psycopg import Connection

from queue_pg.statements import statement

ECHO_SECONDS: Final = 3.0


class Bell:
    """What a listening thread waits at: until something comes on its connection, or somebody rings."""

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()

    def wait(self, conn: Connection[Any], seconds: float) -> None:
        """Wait at most so long. Raises OperationalError when the connection is lost."""
        poll = select.poll()
        poll.register(conn.fileno(), select.POLLIN)
        poll.register(self._inside.fileno(), select.POLLIN)
        poll.poll(max(seconds, 0) * 1000)
        conn.pgconn.consume_input()

    def heard(self, conn: Connection[Any]) -> Iterator[tuple[str, str]]:
        """Yield channel and payload of the notifications that have come, each once."""
        while notification := conn.pgconn.notifies():
            yield notification.relname.decode(), notification.extra.decode("utf-8", "replace")

    def ring(self) -> None:
        """End the wait, and all that come."""
        self._outside.close()

    def close(self) -> None:
        """Let go of it, when nobody waits any more."""
        self._inside.close()


def hears(conn: Connection[Any], connect: Callable[[], Connection[Any]]) -> bool:
    """Return whether `conn` gets notifications. `connect` opens another connection to the same place."""
    if backend_pid(conn) == conn.info.backend_pid:
        return True  # what answers is what we have connected to: there is nothing in between
    payload = uuid4().hex
    conn.execute(statement("listen_queue_pg_echo"))
    # From another connection: what one sends to oneself comes with the answer, even through a pooler.
    with connect() as other:
        other.execute(statement("echo"), {"payload": payload})
    heard = _wait_for(conn, payload.encode())
    conn.execute(statement("unlisten_queue_pg_echo"))
    return heard


def backend_pid(conn: Connection[Any]) -> int:
    """Return the server process, as pg_stat_activity names it."""
    [pid] = conn.execute(statement("backend_pid")).fetchone() or [0]
    return int(pid)


def _wait_for(conn: Connection[Any], payload: bytes) -> bool:
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    deadline = time.monotonic() + ECHO_SECONDS
    while True:
        # Others are dropped: whoever listens looks at the rows once this is over.
        while notification := conn.pgconn.notifies():
            if notification.extra == payload:
                return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        poll.poll(left * 1000)
        conn.pgconn.consume_input()
