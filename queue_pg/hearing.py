"""Whether notifications get through to a connection that listens.

Behind a pooler in transaction mode they do not: LISTEN stays with a server connection that others use, and raises
no error. Who took its word for it would wait for ever for a wake-up.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

from psycopg import Connection

from queue_pg.statements import statement

ECHO_SECONDS: Final = 3.0


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
