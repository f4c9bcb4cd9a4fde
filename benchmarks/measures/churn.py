"""Whether speed, size and memory stay what they are over millions of jobs."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import proc
from benchmarks.bench import Bench
from benchmarks.children import Child
from benchmarks.contestants.queue_pg import QueuePg
from benchmarks.load import feed
from benchmarks.marks import Marks
from benchmarks.model import Line, Metric, Plot, Record, Target
from benchmarks.progress import Progress
from benchmarks.server import Database
from benchmarks.statements import statement

NAME = "churn"
TITLE = "3,000,000 jobs through one worker process, history forgotten meanwhile"
METHOD = """\
A feeder keeps some 20,000 jobs waiting until 3,000,000 are through. The retention is the time in which the worker
does 200,000 jobs, measured over as many before them, which do not count; the worker's own maintenance forgets what is
older. Sizes of the
live table and of its indexes (free space included) and the memory of the worker are sampled every second. Growth is
the highest sample of the second half against the highest of the first half after a warm-up of a tenth. Kept are the
rows of history at the end, in partitions of which the last are still being filled. Runs once: the tenths show the
scatter."""
METRICS = (
    Metric(name="rate", label="jobs/s"),
    Metric(name="last_to_first", label="last tenth to first", digits=2),
    Metric(name="table", label="live table, highest", unit="MB", digits=1),
    Metric(name="table_growth", label="its growth", digits=2),
    Metric(name="indexes", label="its indexes, highest", unit="MB", digits=1),
    Metric(name="indexes_growth", label="their growth", digits=2),
    Metric(name="kept", label="finished jobs kept"),
    Metric(name="rss", label="worker RSS, highest", unit="MB", digits=1),
    Metric(name="rss_growth", label="its growth", digits=2),
)
PAIRS = [("queue-pg", "")]
TARGETS = (
    Target(
        text="rate of the last tenth against the first", metric="last_to_first", pairs=PAIRS, relation="value",
        at_least=0.95, unit="x",
    ),
    Target(
        text="growth of the live table after warm-up", metric="table_growth", pairs=PAIRS, relation="value",
        at_most=1.1, unit="x",
    ),
    Target(
        text="growth of its indexes after warm-up", metric="indexes_growth", pairs=PAIRS, relation="value",
        at_most=1.1, unit="x",
    ),
    Target(
        text="worker RSS over 1,000,000 jobs and more", metric="rss", pairs=PAIRS, relation="value",
        at_most=100, unit="MB",
    ),
    Target(
        text="growth of the worker's RSS after warm-up", metric="rss_growth", pairs=PAIRS, relation="value",
        at_most=1.05, unit="x",
    ),
)  # fmt: skip

JOBS = 3_000_000
QUICK_JOBS = 20_000
DEPTH = 20_000
KEPT = 200_000
LONGEST_SECONDS = 900.0


def run(bench: Bench) -> Record:
    """Run once."""
    record = Record()
    jobs, kept = bench.pick(JOBS, QUICK_JOBS), bench.pick(KEPT, 2_000)
    contestant = QueuePg()
    record.settings[contestant.name] = contestant.settings
    with bench.server.database() as database:
        contestant.prepare(database, 0)
        database.settle()
        with bench.worker(contestant, database) as (child, marks):
            retention = _warm_up(database, child, marks, kept)
            progress = Progress(
                marks, jobs, probe=_probe(database, child.pid), probe_seconds=bench.pick(1.0, 0.1), before=kept
            )
            feed(database, marks, jobs=jobs, depth=DEPTH, watch=progress.sample)
            progress.finish(child, seconds=LONGEST_SECONDS)
            found = database.scalar("select count(*) from queue_pg.finished_jobs")
    tenths, probed = progress.tenths(), progress.probed
    record.add(
        contestant.name,
        rate=progress.rate,
        last_to_first=tenths[-1] / tenths[0],
        table=max(probed["table"].y),
        table_growth=growth(probed["table"], jobs),
        indexes=max(probed["indexes"].y),
        indexes_growth=growth(probed["indexes"], jobs),
        kept=found,
        rss=max(probed["rss"].y),
        rss_growth=growth(probed["rss"], jobs),
    )
    record.note(f"Retention was set to {retention:.1f} s.")
    record.plots["rate"] = Plot("Rate by tenth", "jobs done", "jobs/s", {"queue-pg": progress.line()})
    record.plots["sizes"] = Plot(
        "Live table, its indexes, worker memory", "jobs done", "MB",
        {"table": probed["table"], "indexes": probed["indexes"], "worker RSS": probed["rss"]},
    )  # fmt: skip
    record.plots["history"] = Plot("History", "jobs done", "MB", {"all partitions": probed["history"]})
    bench.say(f"{progress.rate:,.0f} jobs/s, last tenth to first {tenths[-1] / tenths[0]:.2f}, kept {found:,}")
    return record


def _warm_up(database: Database, child: Child, marks: Marks, kept: int) -> float:
    """Do as many jobs as are to be kept, and set the retention to the seconds they took, which are returned."""
    feed(database, marks, jobs=kept, depth=DEPTH, watch=lambda: None)
    child.wait_for(lambda: marks.begun() >= kept, seconds=LONGEST_SECONDS, what=f"the first {kept} jobs", pause=0.01)
    first = marks.first_ns()
    assert first is not None
    seconds = time.monotonic() - first / 1e9
    database.execute("select queue_pg.configure(retention => %s * interval '1 second')", (seconds,))
    return seconds


def _probe(database: Database, pid: int) -> Callable[[], dict[str, float]]:
    def probe() -> dict[str, float]:
        table, indexes, history = database.execute(statement("live_sizes"))[0]
        sizes = {"table": table / 1e6, "indexes": indexes / 1e6, "history": history / 1e6}
        return sizes | {"rss": proc.largest_rss_bytes(pid) / 1e6}

    return probe


def growth(line: Line, jobs: int) -> float:
    """Return the highest value of the second half against that of the first half after a tenth of warm-up."""
    before = [y for x, y in zip(line.x, line.y, strict=True) if jobs / 10 <= x < jobs / 2]
    after = [y for x, y in zip(line.x, line.y, strict=True) if x >= jobs / 2]
    return max(after) / max(before) if before and after else 1.0
