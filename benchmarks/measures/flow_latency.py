"""How long jobs wait that come in a steady flow."""

from __future__ import annotations

import json

from benchmarks.bench import Bench
from benchmarks.children import Child
from benchmarks.children import run as run_command
from benchmarks.contestants.base import python_module
from benchmarks.contestants.queue_pg import QueuePg
from benchmarks.marks import Marks
from benchmarks.measures.latency import shown, summary
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database

NAME = "flow_latency"
TITLE = "From submission to running, 1,000 jobs a second"
METHOD = """\
Another process submits 1,000 jobs a second for 6 s, each by an INSERT and a transaction of its own, on four connections
that follow the clock and never wait for the worker. The time runs from when a job was due to the first line of its
handler, which begins after the commit that made it running, and every job is counted, not a sample. The first second is
not. (The measure latency is the same with an idle worker, latency_load that of probes among more jobs.)"""
METRICS = (
    Metric(name="p50", label="p50", unit="ms", digits=2),
    Metric(name="p99", label="p99", unit="ms", digits=2, plot=True),
    Metric(name="max", label="max", unit="ms", digits=1),
)
OWN = "queue-pg"
TARGETS = (
    Target(
        text="p99 with 1,000 jobs/s flowing", metric="p99", pairs=[(OWN, "")], relation="value", at_most=100, unit="ms"
    ),
)

RATE = 1_000
SECONDS = 6
WARM_UP_NS = 1_000_000_000
QUICK_RATE = 100
QUICK_SECONDS = 2


def run(bench: Bench) -> Record:
    """Let the jobs flow, with one worker."""
    record = Record()
    contestant = QueuePg()
    record.settings[contestant.name] = contestant.settings
    rate, seconds = bench.pick(RATE, QUICK_RATE), bench.pick(SECONDS, QUICK_SECONDS)
    for _ in range(bench.runs):
        with (
            bench.server.database() as database,
            bench.working(contestant, database, stamps=True) as (child, marks),
        ):
            waits = _flow(database, child, marks, rate, seconds)
        record.add(contestant.name, **summary(waits))
        bench.say(f"{contestant.name:14} " + shown(waits))
    return record


def _flow(database: Database, child: Child, marks: Marks, rate: int, seconds: int) -> list[float]:
    flow = python_module("benchmarks.flow", str(rate), str(seconds), environment={"DATABASE_URL": database.dsn})
    parts: list[list[tuple[int, int]]] = json.loads(run_command(flow))
    due = {number: moment for part in parts for number, moment in part}
    child.wait_for(lambda: due.keys() <= marks.stamps().keys(), seconds=30, what="the last job", pause=0.1)
    begun = marks.stamps()
    warm = min(due.values()) + WARM_UP_NS
    return [(begun[number] - moment) / 1e6 for number, moment in due.items() if moment >= warm]
