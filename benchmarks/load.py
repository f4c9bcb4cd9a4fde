"""Jobs that keep coming: at a fixed rate whatever happens (open loop), or as fast as they are worked off."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import psycopg

from benchmarks.marks import Marks
from benchmarks.server import Connection, Database
from benchmarks.statements import Query, statement

TICK_SECONDS = 0.005
CHUNK = 2_000


def submit_steadily(
    connection: Connection, insert: Query, *, first: int, count: int, interval_seconds: float
) -> dict[int, int]:
    """Submit jobs `first`, `first + 1`, ... one every interval; return when each was due, in monotonic nanoseconds.

    A submission that is late because the one before took long counts from when it was due.
    """
    due: dict[int, int] = {}
    step = int(interval_seconds * 1e9)
    begin = time.monotonic_ns() + step
    for index in range(count):
        moment = begin + index * step
        late = time.monotonic_ns() - moment
        if late < 0:
            time.sleep(-late / 1e9)
            # Waking takes the system a little; that is not the queue's.
            moment = time.monotonic_ns()
        due[first + index] = moment
        connection.execute(insert, (first + index,), prepare=True)
    return due


def flow(connection: Connection, *, rate: float, seconds: float) -> int:
    """Submit `rate` jobs a second to queue-pg, those due in a tick together; return how many. Their number is 0."""
    begin, sent = time.monotonic(), 0
    tick = 0
    while (passed := time.monotonic() - begin) < seconds:
        if (wanted := int(passed * rate)) > sent:
            connection.execute(statement("queue_pg_flow"), (wanted - sent,), prepare=True)
            sent = wanted
        tick += 1
        time.sleep(max(0.0, begin + tick * TICK_SECONDS - time.monotonic()))
    return sent


def feed(database: Database, marks: Marks, *, jobs: int, depth: int, watch: Callable[[], None]) -> None:
    """Submit `jobs` jobs to queue-pg so that some `depth` of them wait all the time; call `watch` now and then."""
    sent, before = 0, marks.begun()
    with database.connect() as connection:
        while sent < jobs:
            if sent - (marks.begun() - before) < depth:
                chunk = min(CHUNK, jobs - sent)
                connection.execute(statement("queue_pg_fill"), ("default", chunk), prepare=True)
                sent += chunk
            else:
                time.sleep(0.002)
            watch()


def main() -> None:
    """Run `flow` in a process of its own: `python -m benchmarks.load RATE SECONDS` prints how many were sent."""
    rate, seconds = sys.argv[1:]
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        print(flow(connection, rate=float(rate), seconds=float(seconds)))


if __name__ == "__main__":
    main()
