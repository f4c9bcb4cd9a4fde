"""What a forgotten transaction costs, whose snapshot keeps vacuum from removing anything."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

from benchmarks.bench import Bench
from benchmarks.contestants.queue_pg import QueuePg
from benchmarks.load import feed
from benchmarks.measures.drain import LONGEST_SECONDS
from benchmarks.model import Metric, Plot, Record, Target
from benchmarks.progress import Progress
from benchmarks.server import Database

NAME = "held_snapshot"
TITLE = "300,000 jobs while an idle REPEATABLE READ transaction stays open"
METHOD = """\
Another session takes a snapshot and stays idle in its transaction from before the worker starts until the end, so no
dead row and no dead index entry can be removed. The same without that session is the clean run. Once all jobs are in
the table before the worker starts; once they flow in, some 20,000 waiting at any time. The rate of a tenth is that of
a tenth of the jobs. The plot shows the tenths of the last run, and with them the scatter."""
METRICS = (
    Metric(name="rate", label="jobs/s overall", plot=True),
    Metric(name="first", label="first tenth"),
    Metric(name="last", label="last tenth"),
    Metric(name="last_to_first", label="last to first", digits=2),
)
FULL, FULL_CLEAN = "all there, held", "all there, clean"
FLOW, FLOW_CLEAN = "flowing in, held", "flowing in, clean"
TARGETS = (
    Target(
        text="last tenth against the first", metric="last_to_first", pairs=[(FULL, ""), (FLOW, "")], relation="value",
        at_least=0.9, unit="x",
    ),
    Target(
        text="overall against the clean run", metric="rate", pairs=[(FULL, FULL_CLEAN), (FLOW, FLOW_CLEAN)],
        at_least=0.85,
    ),
)  # fmt: skip

JOBS = 300_000
QUICK_JOBS = 5_000
DEPTH = 20_000
RUNS = 2


def run(bench: Bench) -> Record:
    """Run the four variants."""
    record = Record(plots={"tenths": Plot("Rate by tenth", "jobs done", "jobs/s")})
    record.settings[QueuePg.name] = QueuePg().settings
    for name in (FULL_CLEAN, FULL, FLOW_CLEAN, FLOW) * min(bench.runs, RUNS):
        progress = _drain(bench, held=name in (FULL, FLOW), flowing=name in (FLOW, FLOW_CLEAN))
        tenths = progress.tenths()
        record.add(name, rate=progress.rate, first=tenths[0], last=tenths[-1], last_to_first=tenths[-1] / tenths[0])
        record.plots["tenths"].lines[name] = progress.line()
        bench.say(f"{name:18} {progress.rate:8,.0f} jobs/s, last tenth to first {tenths[-1] / tenths[0]:.2f}")
    return record


def _drain(bench: Bench, *, held: bool, flowing: bool) -> Progress:
    jobs = bench.pick(JOBS, QUICK_JOBS)
    contestant = QueuePg()
    with bench.server.database() as database:
        contestant.prepare(database, 0 if flowing else jobs)
        database.settle()
        with snapshot_held(database) if held else nullcontext(), bench.worker(contestant, database) as (child, marks):
            progress = Progress(marks, jobs)
            if flowing:
                feed(database, marks, jobs=jobs, depth=DEPTH, watch=progress.sample)
            progress.finish(child, seconds=LONGEST_SECONDS)
            return progress


@contextmanager
def snapshot_held(database: Database) -> Generator[None]:
    """Keep a snapshot as long as the block lasts."""
    with database.connect() as connection:
        connection.execute("begin isolation level repeatable read")
        connection.execute("select count(*) from pg_class")
        yield
        connection.execute("rollback")
