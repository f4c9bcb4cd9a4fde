"""How long an event takes to those who read along."""

from __future__ import annotations

import json

from benchmarks.bench import Bench
from benchmarks.children import Child, Failed, started
from benchmarks.children import run as run_command
from benchmarks.contestants.api import Api, queue_pg_api
from benchmarks.contestants.base import python_module
from benchmarks.contestants.queue_pg import TELLING_TASKS, migrate_database, wait_for_workers, worker_command
from benchmarks.marks import new_marks
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database
from benchmarks.statements import statement
from benchmarks.streams import following

NAME = "event_latency"
TITLE = "From an event to the client of its stream, 200 streams on one API process"
METHOD = """\
200 jobs, each followed by a client of its own by server-sent events from one `queue-pg serve`, and 500 events a second
in all. Every event holds the time at which it was said, on the machine's monotonic clock, and the client, one process
for all streams, looks at the same clock when it has read it. *From a handler*: the jobs run in one worker, each says
`job.emit` every 400 ms, and the time runs from before that call, so what the worker gathers is in it. *From SQL*: one
connection calls `queue_pg.append_event` for one job after the other, on the clock and not waiting for readers, and the
time runs from before the statement. Both are open loops: what is late is counted and not left out. The first second is
not counted."""
METRICS = (
    Metric(name="rate", label="events/s"),
    Metric(name="p50", label="p50", unit="ms", digits=2, plot=True),
    Metric(name="p99", label="p99", unit="ms", digits=2, plot=True),
    Metric(name="max", label="max", unit="ms", digits=1),
    Metric(name="statement", label="its statement p99", unit="ms", digits=2),
    Metric(name="api", label="API CPU", unit="% of one core"),
    Metric(name="pg", label="Postgres CPU", unit="% of one core"),
)
HANDLER, SQL = "from a handler", "from SQL"
TARGETS = (
    Target(
        text="p99 from an event to its client, 200 streams", metric="p99", pairs=[(HANDLER, ""), (SQL, "")],
        relation="value", at_most=10, unit="ms",
    ),
)  # fmt: skip

STREAMS = 200
RATE = 500.0
SECONDS = 6.0
QUICK_STREAMS = 10
QUICK_SECONDS = 2.0


def run(bench: Bench) -> Record:
    """Tell the same from handlers and from SQL in turn."""
    record = Record()
    streams, seconds = bench.pick(STREAMS, QUICK_STREAMS), bench.pick(SECONDS, QUICK_SECONDS)
    rate = RATE * streams / STREAMS
    for _ in range(bench.runs):
        for name, tell in ((SQL, _from_sql), (HANDLER, _from_handlers)):
            with bench.server.database() as database:
                migrate_database(database)
                database.settle()
                with queue_pg_api(database) as api:
                    figures = tell(bench, database, api, streams, rate, seconds)
            record.add(name, **figures)
            bench.say(f"{name:16} " + "  ".join(f"{key} {value:,.2f}" for key, value in figures.items()))
    return record


def _from_handlers(
    bench: Bench, database: Database, api: Api, streams: int, rate: float, seconds: float
) -> dict[str, float]:
    database.execute("select queue_pg.pause_queue('default')")
    payload = json.dumps({"seconds": seconds, "interval": streams / rate})
    ids = [row[0] for row in database.execute(statement("telling_submit"), ("tick", payload, streams))]
    with new_marks() as marks, following(api.port, ids) as clients:
        worker = worker_command(
            database, "--concurrency", str(streams), environment=marks.environment(), tasks=TELLING_TASKS
        )
        with started(worker) as child:
            wait_for_workers(database, child, 1)
            cpu = _Cpu(bench, api.child)
            database.execute("select queue_pg.resume_queue('default')")
            found = clients.figures(seconds=seconds + 30)
            return _checked(database, found, cpu.used(seconds), seconds)


def _from_sql(
    bench: Bench, database: Database, api: Api, streams: int, rate: float, seconds: float
) -> dict[str, float]:
    ids = [row[0] for row in database.execute(statement("telling_submit"), ("tick", "{}", streams))]
    environment = {"DATABASE_URL": database.dsn}
    with following(api.port, ids) as clients:
        cpu = _Cpu(bench, api.child)
        teller = python_module("benchmarks.teller", str(rate), str(seconds), environment=environment)
        used: dict[str, float] = json.loads(run_command(teller)) | cpu.used(seconds)
        database.execute(statement("telling_cancel"))
        return _checked(database, clients.figures(seconds=30), used, seconds)


def _checked(database: Database, found: dict[str, float], used: dict[str, float], seconds: float) -> dict[str, float]:
    stored = database.scalar(statement("telling_stored"))
    if stored != found["events"] or "p99" not in found:
        raise Failed(f"{stored} events were stored, and {found['events']:.0f} came")
    return {"rate": stored / seconds, **{name: found[name] for name in ("p50", "p99", "max")}, **used}


class _Cpu:
    """What API and Postgres use from now on."""

    def __init__(self, bench: Bench, api: Child) -> None:
        self._bench = bench
        self._api = api
        self._begin = bench.server.usage().cpu_seconds, api.cpu_seconds()

    def used(self, seconds: float) -> dict[str, float]:
        """Return both as shares of one core."""
        pg, api = self._bench.server.usage().cpu_seconds - self._begin[0], self._api.cpu_seconds() - self._begin[1]
        return {"api": api / seconds * 100, "pg": pg / seconds * 100}
