"""How long an answer is waited for. A server, or what is in between, may take a statement and never say anything.

The server ends a statement after its `statement_timeout`. What it cannot tell us (it stands still, a proxy has lost it,
a pooler has dropped the setting) the client notices by itself, a little later. Dropped packets are found out sooner, by
TCP.
"""

from __future__ import annotations

import os
import re
import socket
import time
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

T = TypeVar("T")

# After the server should have ended the statement, for its answer to come.
GRACE_SECONDS: Final = 5.0
_UNITS: Final = {"us": 1e-6, "": 1e-3, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_TIMEOUT: Final = re.compile(r"(?:-c\s*|--)statement[_-]timeout=['\"]?(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d|)\b")


def answer_seconds(options: str) -> float | None:
    """Return how long to wait for an answer, by the start-up options of a session; None: for ever.

    The last `statement_timeout` of several holds, as for the server; 0 is none.
    """
    found = _TIMEOUT.findall(options)
    if not found:
        return None
    seconds = float(found[-1][0]) * _UNITS[found[-1][1]]
    return seconds + GRACE_SECONDS if seconds else None


def sever(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Break a connection from outside, so that whoever waits for its answer gets an OperationalError at once.

    Closing it instead would free the file descriptor under the waiter, and cancelling the waiter asks the server
    that does not answer to cancel.
    """
    try:
        _shut(connection.fileno())
    except (OSError, psycopg.Error):
        return  # broken already


def within(generator: PQGen[T], pgconn: PGconn, seconds: float) -> PQGen[T]:
    """Do what a generator of psycopg does; break the connection when a statement has waited for so many seconds.

    Who waits for notifications, and not for an answer, may do so for ever.
    """
    until = time.monotonic() + seconds
    broken = False
    try:
        state = next(generator)
        while True:
            ready = yield state
            if not broken and time.monotonic() >= until and pgconn.transaction_status == TransactionStatus.ACTIVE:
                broken = True
                _shut(pgconn.socket)  # what waits now finds out, and the connection is known to be broken
            state = generator.send(ready)
    except StopIteration as end:
        return cast("T", end.value)
    except (psycopg.OperationalError, OSError) as error:
        if not broken:
            raise
        raise psycopg.OperationalError(f"no answer within {seconds:g} s") from error


def _shut(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
