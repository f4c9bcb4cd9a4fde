"""How long an idle worker takes to begin a job."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks.bench import Bench
from benchmarks.children import Child
from benchmarks.contestants.base import Contestant
from benchmarks.contestants.peers import peers
from benchmarks.contestants.queue_pg import QueuePg
from benchmarks.contestants.raw import Raw
from benchmarks.load import submit_steadily
from benchmarks.marks import Marks
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Connection
from benchmarks.stats import percentile

NAME = "latency"
TITLE = "Pickup by an idle worker, one submission every 20 ms"
METHOD = """\
Another process inserts one job every 20 ms, each in a transaction of its own, as an application does. The time runs
from just before the INSERT is sent to the first line of the handler; both read the machine's monotonic clock. The raw
loop is LISTEN on one connection, claim and finish on another, with pg_notify in the submitting transaction. With
NOTIFY off nothing but the poll interval (1 s) bounds the wait. The first half second is not counted. A run
has 300 submissions, 200 to peers."""
METRICS = (
    Metric(name="p50", label="p50", unit="ms", digits=2, plot=True),
    Metric(name="p99", label="p99", unit="ms", digits=2, plot=True),
    Metric(name="max", label="max", unit="ms", digits=1),
)
OFF = "queue-pg, NOTIFY off"
TARGETS = (
    Target(
        text="p50 above the raw LISTEN loop's", metric="p50", pairs=[("queue-pg", "raw")], relation="difference",
        at_most=1.0, unit="ms",
    ),
    Target(text="p99 against the raw LISTEN loop", metric="p99", pairs=[("queue-pg", "raw")], at_most=1.5),
    Target(
        text="longest wait with NOTIFY off: the poll interval", metric="max", pairs=[(OFF, "")], relation="value",
        at_most=1000, unit="ms",
    ),
)  # fmt: skip

INTERVAL_SECONDS = 0.02
WARM_UP = 25
SUBMISSIONS = 300
PEER_SUBMISSIONS = 200
QUICK_SUBMISSIONS = 20


class NotifyOff(QueuePg):
    """queue-pg's worker, which then polls."""

    name = OFF

    def __init__(self) -> None:
        super().__init__(notify=False)


def run(bench: Bench) -> Record:
    """Measure every contestant that takes single jobs, in turn."""
    record = Record()
    others = [peer for peer in (peers(record) if bench.peers else []) if peer.insert]
    contestants: list[Contestant] = [Raw(), QueuePg(), NotifyOff(), *others]
    for contestant in contestants:
        record.settings[contestant.name] = contestant.settings
    record.settings["raw"] = "one connection listens, another claims and finishes, each in its own transaction"
    for _ in range(bench.runs):
        for contestant in contestants:
            count = PEER_SUBMISSIONS if contestant in others else SUBMISSIONS
            with bench.tolerant(contestant, record), bench.server.database() as database:
                with bench.working(contestant, database, stamps=True) as (child, marks), database.connect() as sender:
                    waits = pickups(contestant, sender, child, marks, bench.pick(count, QUICK_SUBMISSIONS))
                record.add(contestant.name, **summary(waits))
                bench.say(f"{contestant.name:22} " + shown(waits))
    return record


def pickups(
    contestant: Contestant, sender: Connection, child: Child, marks: Marks, count: int, *, first: int = 1
) -> list[float]:
    """Submit jobs one by one and return the milliseconds until each began, without those of the warm-up."""
    assert contestant.insert is not None
    due = submit_steadily(
        sender, contestant.insert, first=first, count=WARM_UP + count, interval_seconds=INTERVAL_SECONDS
    )
    last = first + WARM_UP + count - 1
    child.wait_for(lambda: due.keys() <= marks.stamps().keys(), seconds=30, what=f"job {last}", pause=0.1)
    return waits_ms(due, marks.stamps(), skip=WARM_UP)


def waits_ms(due: Mapping[int, int], begun: Mapping[int, int], *, skip: int) -> list[float]:
    """Return the milliseconds from when each job was due to when it began."""
    return [(begun[number] - moment) / 1e6 for number, moment in list(due.items())[skip:]]


def summary(waits: list[float]) -> dict[str, float]:
    """Return the figures of the report's columns."""
    return {"p50": statistics.median(waits), "p99": percentile(waits, 99), "max": max(waits)}


def shown(waits: list[float]) -> str:
    """Say it for a person at a terminal."""
    return "  ".join(f"{name} {value:.2f}" for name, value in summary(waits).items()) + " ms"
