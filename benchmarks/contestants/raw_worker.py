"""The raw loop's process: `python -m benchmarks.contestants.raw_worker drain|listen BATCH TOGETHER`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import psycopg

from benchmarks.statements import statement

POLL_SECONDS = 1.0
CHANNEL = "raw_jobs"

Connection = psycopg.Connection[Any]


def drain_loop(connection: Connection, batch: int, *, together: bool, run: Callable[[int], None]) -> float:
    """Work until nothing is left; return jobs per second."""
    begin, done = time.monotonic(), 0
    while taken := _round(connection, batch, together=together, run=run):
        done += taken
    return done / (time.monotonic() - begin)


def listen_loop(connection: Connection, batch: int, *, together: bool, run: Callable[[int], None]) -> None:
    """Work for ever: at each notification, and at least every second."""
    with psycopg.connect(connection.info.dsn, password=connection.info.password, autocommit=True) as listener:
        listener.execute(f"listen {CHANNEL}")
        while True:
            while _round(connection, batch, together=together, run=run):
                pass
            for _ in listener.notifies(timeout=POLL_SECONDS, stop_after=1):
                pass


def _round(connection: Connection, batch: int, *, together: bool, run: Callable[[int], None]) -> int:
    with connection.transaction() if together else nullcontext():
        claimed = connection.execute(statement("raw_claim"), (batch,), binary=True, prepare=True).fetchall()
        for _, payload in claimed:
            run(payload["n"])
        if claimed:
            connection.execute(
                statement("raw_finish"), ([row[0] for row in claimed], ["null"] * len(claimed)), prepare=True
            )
    return len(claimed)


def main() -> None:
    """Run one of the loops, as the arguments say."""
    from benchmarks.peers.marks import begun

    mode, batch, together = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        if mode == "listen":
            listen_loop(connection, batch, together=together, run=begun)
        else:
            drain_loop(connection, batch, together=together, run=begun)
            time.sleep(3600)  # until the harness has read this process's CPU time and memory


if __name__ == "__main__":
    main()
