"""How fast a full queue is emptied."""

from __future__ import annotations

import time

from benchmarks import proc
from benchmarks.bench import Bench
from benchmarks.children import Child, Failed
from benchmarks.contestants.base import Contestant
from benchmarks.contestants.peers import peers
from benchmarks.contestants.queue_pg import QueuePg
from benchmarks.contestants.raw import Raw
from benchmarks.marks import Marks
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database

NAME = "drain"
TITLE = "Draining 100,000 no-op jobs"
METHOD = """\
The jobs are in the table, which is vacuumed and analysed, and a checkpoint has passed, before the worker starts. The
clock runs from the first call of the handler until the database has every job recorded as finished, so neither the
start of processes nor the first claim counts. queue-pg's workers start on a paused queue that is resumed once all
have registered. Slow peers get fewer jobs; rates are compared. Postgres CPU is user and system time of all processes
of the server: live ones from /proc, ended ones from the postmaster's account of its children; autovacuum and WAL
writer count. WAL is the distance between two insert positions. Worker CPU is that of the worker's process and all
below it; RSS is the peak of its largest process."""
METRICS = (
    Metric(name="rate", label="jobs/s", plot=True),
    Metric(name="pg_us", label="Postgres CPU a job", unit="µs", digits=1, plot=True),
    Metric(name="wal", label="WAL a job", unit="bytes", plot=True),
    Metric(name="worker_us", label="worker CPU a job", unit="µs", digits=1),
    Metric(name="rss", label="peak RSS", unit="MB"),
)
TARGETS = (
    Target(text="1 process against the raw loop", metric="rate", pairs=[("queue-pg", "raw")], at_least=1.2),
    Target(text="1 process against PgQueuer", metric="rate", pairs=[("queue-pg", "PgQueuer")], at_least=3.0),
    Target(
        text="1 process against graphile-worker", metric="rate", pairs=[("queue-pg", "graphile-worker")], at_least=1.0
    ),
    Target(text="2 processes against 1", metric="rate", pairs=[("queue-pg, 2 processes", "queue-pg")], at_least=1.5),
    Target(text="Postgres CPU a job against the raw loop", metric="pg_us", pairs=[("queue-pg", "raw")], at_most=1.25),
    Target(text="WAL a job against the raw loop", metric="wal", pairs=[("queue-pg", "raw")], at_most=1.25),
)

JOBS = 100_000
QUICK_JOBS = 2_000
TRIAL_JOBS = 20_000
CONCURRENCIES = (2000, 1000, 500)
LONGEST_SECONDS = 120.0


class TwoProcesses(QueuePg):
    """queue-pg's worker with `--processes 2`."""

    name = "queue-pg, 2 processes"

    def __init__(self, *, concurrency: int) -> None:
        super().__init__(concurrency=concurrency, processes=2)


def run(bench: Bench) -> Record:
    """Drain with every contestant in turn, as often as the bench says."""
    record = Record()
    jobs = bench.pick(JOBS, QUICK_JOBS)
    with bench.server.database() as database:
        raw = Raw.calibrated(database, bench.pick(TRIAL_JOBS, QUICK_JOBS // 2))
    own = best_concurrency(bench)
    contestants: list[Contestant] = [raw, own, TwoProcesses(concurrency=own.concurrency)]
    contestants += peers(record) if bench.peers else []
    for contestant in contestants:
        record.settings[contestant.name] = contestant.settings
    for _ in range(bench.runs):
        for contestant in contestants:
            with bench.tolerant(contestant, record), bench.server.database() as database:
                figures = drain(bench, contestant, database, max(100, int(jobs * contestant.share)))
                record.add(contestant.name, **figures)
                bench.say(
                    f"{contestant.name:22} " + "  ".join(f"{name} {value:,.1f}" for name, value in figures.items())
                )
    return record


def best_concurrency(bench: Bench) -> QueuePg:
    """Return the worker with the number of slots that drains fastest on this machine, as the raw loop has its batch."""
    rates: dict[int, float] = {}
    for concurrency in bench.pick(CONCURRENCIES, CONCURRENCIES[:1]):
        with bench.server.database() as database:
            trial = QueuePg(concurrency=concurrency)
            rates[concurrency] = drain(bench, trial, database, bench.pick(TRIAL_JOBS, QUICK_JOBS))["rate"]
    best = QueuePg(concurrency=max(rates, key=lambda key: rates[key]))
    best.settings += f" (the best of {', '.join(map(str, rates))} slots, tried just before)"
    return best


def drain(bench: Bench, contestant: Contestant, database: Database, jobs: int) -> dict[str, float]:
    """Let one contestant empty a queue of `jobs` jobs."""
    with bench.working(contestant, database, jobs=jobs) as (child, marks):
        child.wait_for(lambda: marks.first_ns() is not None, seconds=60, what="the first job", pause=0.002)
        used, worked = bench.server.usage(), proc.cpu_seconds(child.pid)
        begin = marks.first_ns()
        assert begin is not None
        wait_until_finished(contestant, database, child, marks, jobs)
        seconds = (time.monotonic_ns() - begin) / 1e9
        used, worked = bench.server.usage() - used, proc.cpu_seconds(child.pid) - worked
        rss = proc.largest_rss_bytes(child.pid, peak=True)
    return {
        "rate": jobs / seconds,
        "pg_us": used.cpu_seconds / jobs * 1e6,
        "wal": used.wal_bytes / jobs,
        "worker_us": worked / jobs * 1e6,
        "rss": rss / 1e6,
    }


def wait_until_finished(contestant: Contestant, database: Database, child: Child, marks: Marks, jobs: int) -> None:
    """Wait until every job has begun and none is left unrecorded; the database is not asked before the former."""
    child.wait_for(lambda: marks.begun() >= jobs, seconds=LONGEST_SECONDS, what=f"the last of {jobs} jobs")
    with database.connect() as connection:

        def all_recorded() -> bool:
            row = connection.execute(contestant.unfinished).fetchone()
            return row is not None and not row[0]

        child.wait_for(all_recorded, seconds=30, what="the record of the last job", pause=0.002)
        if contestant.finished is not None:
            row = connection.execute(contestant.finished).fetchone()
            assert row is not None
            if row[0] != jobs:
                raise Failed(f"{contestant.name} has recorded {row[0]} of {jobs} jobs")
