"""One writer of events in SQL: `python -m benchmarks.teller RATE SECONDS`.

It leases all jobs, says the time to each in turn, and prints the p99 of its statements, in milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
import time

import psycopg

from benchmarks.server import Connection
from benchmarks.statements import statement
from benchmarks.stats import percentile

ALL = 1_000


def tell(connection: Connection, *, rate: float, seconds: float) -> list[float]:
    """Append events at a fixed rate, one a statement, whatever happens to them; return what each statement took."""
    leases = connection.execute(statement("telling_lease"), (ALL,)).fetchall()
    took: list[float] = []
    begin = time.monotonic()
    while (due := (said := len(took)) / rate) < seconds:
        if (early := begin + due - time.monotonic()) > 0:
            time.sleep(early)
        now = time.monotonic_ns()
        lease = leases[said % len(leases)]
        connection.execute(statement("telling_append"), (*lease, json.dumps({"t": now})), prepare=True)
        took.append((time.monotonic_ns() - now) / 1e6)
    return took


def main() -> None:
    """Tell in a process of its own."""
    rate, seconds = sys.argv[1:]
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        took = tell(connection, rate=float(rate), seconds=float(seconds))
    print(json.dumps({"statement": percentile(took, 99)}))


if __name__ == "__main__":
    main()
