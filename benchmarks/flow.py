"""Jobs submitted one by one at a fixed rate: `python -m benchmarks.flow RATE SECONDS` prints when each was due.

An open loop: it follows the clock and waits for nothing but its own INSERTs, each a transaction of its own. Several
connections, because one alone would fall behind at the first slow flush.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg

from benchmarks.load import submit_steadily
from benchmarks.statements import statement

CONNECTIONS = 4


def submit(dsn: str, *, first: int, count: int, interval_seconds: float) -> dict[int, int]:
    """Submit jobs from number `first` on; return when each was due, in monotonic nanoseconds."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        insert = statement("queue_pg_insert")
        return submit_steadily(connection, insert, first=first, count=count, interval_seconds=interval_seconds)


def main() -> None:
    """Submit in a process of its own."""
    rate, seconds = map(float, sys.argv[1:])
    count = int(rate * seconds / CONNECTIONS)
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        parts = [
            threads.submit(
                submit,
                os.environ["DATABASE_URL"],
                first=1 + part * count,
                count=count,
                interval_seconds=CONNECTIONS / rate,
            )
            for part in range(CONNECTIONS)
        ]
        print(json.dumps([list(part.result().items()) for part in parts]))


if __name__ == "__main__":
    main()
