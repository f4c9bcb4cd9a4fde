"""Whether a claim notices what it does not want."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.children import Failed
from benchmarks.contestants.queue_pg import migrate_database
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Connection, Database
from benchmarks.statements import statement
from benchmarks.stats import percentile

NAME = "backlog"
TITLE = "A claim of 10 jobs with a million others in the table"
METHOD = """\
1,000 claims of 10 jobs each by `queue_pg.claim`, every one finished by `queue_pg.finish` and replaced by 10 new jobs
before the next; only the claim is timed, from sending to the last row. There are 1,000 claimable jobs, and beside
them nothing, or 1,000,000 more of the same queue, 1,000,000 scheduled with a higher priority, 1,000,000 of another
org or of another queue, which is named before this one. The databases are filled and analysed first, then all take
turns, 50 claims at a time."""
METRICS = (
    Metric(name="p50", label="claim p50", unit="ms", digits=2),
    Metric(name="p99", label="claim p99", unit="ms", digits=2, plot=True),
)
BASE = "1,000 queued"
FILLS = {
    "1,000,000 queued": "queued",
    "1,000,000 scheduled, higher priority": "scheduled",
    "1,000,000 of another org": "org",
    "1,000,000 of another queue": "queue",
}
TARGETS = (
    Target(
        text="claim p99 against 1,000 queued", metric="p99", pairs=[(name, BASE) for name in FILLS], at_most=1.5
    ),
)  # fmt: skip

JOBS = 1_000_000
QUICK_JOBS = 2_000
CLAIMS = 1_000
SLICES = 20
WARM_UP = 20
SIZE = 10


def run(bench: Bench) -> Record:
    """Fill a database for each case, then let them take turns."""
    record = Record()
    with ExitStack() as stack:
        databases: dict[str, Database] = {}
        for index, (name, kind) in enumerate([(BASE, ""), *FILLS.items()]):
            database = stack.enter_context(bench.server.database(f"bench_{index}"))
            migrate_database(database)
            database.execute(statement("queue_pg_fill"), ("default", 1_000))
            if kind:
                database.execute(statement("backlog_fill"), {"kind": kind, "jobs": bench.pick(JOBS, QUICK_JOBS)})
            database.settle()
            databases[name] = database
        connections = {name: stack.enter_context(database.connect()) for name, database in databases.items()}
        for connection in connections.values():
            _claims(connection, WARM_UP)
        for _ in range(bench.runs):
            times: dict[str, list[float]] = {name: [] for name in databases}
            for _ in range(bench.pick(SLICES, 1)):
                for name, connection in connections.items():
                    times[name] += _claims(connection, CLAIMS // SLICES)
            for name, taken in times.items():
                record.add(name, p50=percentile(taken, 50), p99=percentile(taken, 99))
                bench.say(f"{name:38} p50 {percentile(taken, 50):.2f}  p99 {percentile(taken, 99):.2f} ms")
    return record


def _claims(connection: Connection, count: int) -> list[float]:
    """Return the milliseconds of each claim."""
    times: list[float] = []
    for _ in range(count):
        begin = time.perf_counter()
        rows = connection.execute(statement("backlog_claim"), (SIZE,), prepare=True).fetchall()
        times.append((time.perf_counter() - begin) * 1e3)
        if len(rows) != SIZE:
            raise Failed(f"a claim returned {len(rows)} jobs instead of {SIZE}")
        ids, tokens = [row[0] for row in rows], [row[1] for row in rows]
        connection.execute(statement("backlog_finish"), (ids, tokens, ["complete"] * SIZE), prepare=True)
        connection.execute(statement("queue_pg_fill"), ("default", SIZE), prepare=True)
    return times
