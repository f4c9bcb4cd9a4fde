"""The same pickup while other jobs flow."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from benchmarks.bench import Bench
from benchmarks.children import Child, started
from benchmarks.contestants.base import python_module
from benchmarks.contestants.queue_pg import QueuePg
from benchmarks.marks import Marks
from benchmarks.measures.latency import INTERVAL_SECONDS, QUICK_SUBMISSIONS, WARM_UP, pickups, shown, summary
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database

NAME = "latency_load"
TITLE = "Pickup while other jobs flow, up to 80 % of saturation"
METHOD = """\
A probe is submitted every 20 ms as in the measure of the idle worker, while another process submits jobs at a fixed
rate to the same queue, those due within 5 ms in one INSERT. Both are open loops: they follow the clock and never wait
for the worker, and what is late counts from when it was due, so nothing is omitted. Saturation is the rate at which
the same worker takes jobs while the same process submits far more than it can do."""
METRICS = (
    Metric(name="rate", label="other jobs/s"),
    Metric(name="p50", label="p50", unit="ms", digits=2),
    Metric(name="p99", label="p99", unit="ms", digits=2, plot=True),
    Metric(name="max", label="max", unit="ms", digits=1),
)
IDLE = "idle"
STEADY = "200 jobs/s"
PARTS = {f"{percent} % of saturation": percent / 100 for percent in (20, 50, 80)}
TARGETS = (
    Target(text="p99 while 200 jobs/s flow against idle", metric="p99", pairs=[(STEADY, IDLE)], at_most=3.0),
    Target(
        text="p99 from 20 % to 80 % of saturation against idle",
        metric="p99",
        pairs=[(part, IDLE) for part in PARTS],
        at_most=3.0,
    ),
)

PROBES = 200
FLOOD_RATE = 25_000
FLOOD_SECONDS = 2.5


def run(bench: Bench) -> Record:
    """Measure idle, with a steady flow, and at parts of the saturation, with one worker."""
    record = Record()
    contestant = QueuePg()
    record.settings[contestant.name] = contestant.settings
    probes = bench.pick(PROBES, QUICK_SUBMISSIONS)
    for _ in range(bench.runs):
        with (
            bench.server.database() as database,
            bench.working(contestant, database, stamps=True) as (child, marks),
            database.connect() as sender,
        ):
            first = 1
            saturation = saturate(database, child, marks)
            record.add("saturation", rate=saturation)
            for name, rate in rates(saturation).items():
                with flowing(database, rate, (probes + WARM_UP) * INTERVAL_SECONDS + 1):
                    waits = pickups(contestant, sender, child, marks, probes, first=first)
                first += WARM_UP + probes
                record.add(name, rate=rate, **summary(waits))
                bench.say(f"{name:22} {rate:8,.0f} jobs/s: " + shown(waits))
    return record


def rates(saturation: float) -> dict[str, float]:
    """Return the jobs per second of every step."""
    return {IDLE: 0.0, STEADY: 200.0} | {name: part * saturation for name, part in PARTS.items()}


def saturate(database: Database, child: Child, marks: Marks) -> float:
    """Submit more than the worker can do; return how many it begins a second, and wait until it has done them all."""
    with flowing(database, FLOOD_RATE, FLOOD_SECONDS):
        child.wait_for(lambda: marks.first_ns() is not None, seconds=10, what="the first job")
        time.sleep(0.5)
        begin, before = time.monotonic(), marks.begun()
        time.sleep(FLOOD_SECONDS - 1)
        rate = (marks.begun() - before) / (time.monotonic() - begin)
    with database.connect() as connection:

        def empty() -> bool:
            row = connection.execute(QueuePg.unfinished).fetchone()
            return row is not None and not row[0]

        child.wait_for(empty, seconds=120, what="the end of the flood", pause=0.1)
    return rate


@contextmanager
def flowing(database: Database, rate: float, seconds: float) -> Generator[None]:
    """Submit jobs from another process while the block lasts, which is to end before `seconds` have passed."""
    if not rate:
        yield
        return
    command = python_module("benchmarks.load", str(rate), str(seconds), environment={"DATABASE_URL": database.dsn})
    with started(command) as generator:
        time.sleep(0.3)
        yield
        generator.process.wait(60)
