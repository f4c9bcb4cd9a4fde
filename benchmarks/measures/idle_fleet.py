"""What 64 workers with nothing to do cost the server."""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.children import started
from benchmarks.contestants.base import python_module
from benchmarks.contestants.queue_pg import migrate_database, wait_for_workers
from benchmarks.marks import new_marks
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database

NAME = "idle_fleet"
TITLE = "64 idle workers"
METHOD = """\
64 workers as `queue-pg worker` runs them, with all their loops and connections (claims, heartbeats, listening,
maintenance), but 16 in each of 4 processes, on an empty queue. Statements are the transactions that pg_stat_database
counts in 20 s, where each statement of a worker is a transaction of its own; Postgres CPU is that of all its
processes in the same time, as a share of one core."""
METRICS = (
    Metric(name="statements", label="statements/s", digits=1),
    Metric(name="cpu", label="Postgres CPU", unit="% of one core", digits=2),
    Metric(name="connections", label="connections"),
)
PAIRS = [("queue-pg", "")]
TARGETS = (
    Target(text="statements a second", metric="statements", pairs=PAIRS, relation="value", at_most=200),
    Target(text="Postgres CPU, % of one core", metric="cpu", pairs=PAIRS, relation="value", at_most=2, unit="%"),
)

WORKERS = 64
PROCESSES = 4
SETTLE_SECONDS = 5.0
SECONDS = 20.0


def run(bench: Bench) -> Record:
    """Start the fleet and count; once, for it is an average over 20 s."""
    record = Record()
    workers = bench.pick(WORKERS, 8)
    seconds = bench.pick(int(SECONDS), 3)
    with bench.server.database() as database, new_marks() as marks:
        migrate_database(database)
        environment = marks.environment() | {"DATABASE_URL": database.dsn}
        fleet = python_module("benchmarks.fleet", str(workers), str(PROCESSES), environment=environment)
        with started(fleet) as child:
            wait_for_workers(database, child, workers)
            time.sleep(SETTLE_SECONDS)
            before, used, begin = _transactions(database), bench.server.usage(), time.monotonic()
            time.sleep(seconds)
            used, passed = bench.server.usage() - used, time.monotonic() - begin
            after = _transactions(database)
            connections = database.scalar("select count(*) from pg_stat_activity where datname = current_database()")
    record.add(
        "queue-pg",
        statements=(after - before) / passed,
        cpu=used.cpu_seconds / passed * 100,
        connections=connections - 1,
    )
    bench.say(f"{(after - before) / passed:.1f} statements/s, {used.cpu_seconds / passed * 100:.2f} % of a core")
    return record


def _transactions(database: Database) -> int:
    return int(
        database.scalar("select xact_commit + xact_rollback from pg_stat_database where datname = current_database()")
    )
