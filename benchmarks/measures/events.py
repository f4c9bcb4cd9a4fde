"""How fast events are appended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial

from benchmarks.bench import Bench
from benchmarks.children import Failed, started
from benchmarks.contestants.queue_pg import TELLING_TASKS, migrate_database, wait_for_workers, worker_command
from benchmarks.marks import new_marks
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Connection, Database
from benchmarks.statements import statement
from queue_pg import store_sync
from queue_pg.arrays import plain_array, text_array
from queue_pg.models import NewEvent

NAME = "events"
TITLE = "Appending 100,000 events, one writer"
METHOD = """\
*job.log* and *job.stream*: a handler says 100,000 log lines of some 60 characters, or tokens of 10, one call each, in a
worker as `queue-pg worker` runs it; the clock runs from its first call until its job is recorded as completed, which is
after all that it has said is stored. *append_events*: the same lines by `queue_pg.append_events` from one connection,
in batches as large as the worker's, fenced by the lease, with their numbers and the job's row. *Bare INSERT* puts the
same rows in batches of the same size into `create table (like queue_pg.job_events including all)`, numbered by the
client. Postgres CPU is that of all the server's processes, writer CPU that of the worker."""
METRICS = (
    Metric(name="rate", label="events/s", plot=True),
    Metric(name="pg_us", label="Postgres CPU an event", unit="µs", digits=1),
    Metric(name="wal", label="WAL an event", unit="bytes"),
    Metric(name="writer_us", label="writer CPU an event", unit="µs", digits=1),
)
LOG, STREAM, SQL, BARE = "job.log", "job.stream", "append_events", "bare INSERT"
TARGETS = (
    Target(
        text="appended by a handler or from SQL, in batches, one writer", metric="rate",
        pairs=[(LOG, ""), (STREAM, ""), (SQL, "")], relation="value", at_least=50_000, unit="events/s",
    ),
)  # fmt: skip

EVENTS = 100_000
QUICK_EVENTS = 2_000
BATCH = 2_000


def run(bench: Bench) -> Record:
    """Append by every way in turn."""
    record = Record()
    events = bench.pick(EVENTS, QUICK_EVENTS)
    ways: dict[str, Callable[[Bench, Database, int], dict[str, float]]] = {
        BARE: partial(_by_sql, append=_bare),
        SQL: partial(_by_sql, append=_append),
        LOG: partial(_by_handler, kind="log_lines"),
        STREAM: partial(_by_handler, kind="stream_tokens"),
    }
    for _ in range(bench.runs):
        for name, way in ways.items():
            with bench.server.database() as database:
                migrate_database(database)
                database.execute(statement("plain_events"))
                figures = way(bench, database, events)
                stored = database.scalar(statement("count_plain_events" if name == BARE else "telling_stored"))
            if stored != events:
                raise Failed(f"{name} has stored {stored} of {events} events")
            record.add(name, **figures)
            bench.say(f"{name:14} " + "  ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
    return record


def _by_handler(bench: Bench, database: Database, events: int, *, kind: str) -> dict[str, float]:
    with new_marks() as marks, database.connect() as connection:
        database.settle()
        worker = worker_command(database, environment=marks.environment(), tasks=TELLING_TASKS)
        with started(worker) as child:
            wait_for_workers(database, child, 1)
            used, worked = bench.server.usage(), child.cpu_seconds()
            argument = "lines" if kind == "log_lines" else "tokens"
            connection.execute(statement("telling_submit"), (kind, json.dumps({argument: events}), 1))

            def ended() -> bool:
                row = connection.execute("select count(*) from queue_pg.finished_jobs").fetchone()
                return row is not None and row[0] > 0

            child.wait_for(ended, seconds=120, what="the end of the job", pause=0.005)
            end = time.monotonic()
            first = marks.first_ns()
            used, worked = bench.server.usage() - used, child.cpu_seconds() - worked
    assert first is not None
    return {
        "rate": events / (end - first / 1e9),
        "pg_us": used.cpu_seconds / events * 1e6,
        "wal": used.wal_bytes / events,
        "writer_us": worked / events * 1e6,
    }


Append = Callable[[Connection, tuple[str, int], int, list[str]], None]


def _by_sql(bench: Bench, database: Database, events: int, *, append: Append) -> dict[str, float]:
    with database.connect() as connection:
        connection.execute(statement("telling_submit"), ("log_lines", "{}", 1))
        leased = connection.execute(statement("telling_lease"), (1,)).fetchone()
        assert leased is not None
        lines = [
            json.dumps({"stream": "stdout", "line": f"step {n}: 64 rows were written to the output, none was refused"})
            for n in range(events)
        ]
        database.settle()
        used, begin = bench.server.usage(), time.monotonic()
        for start in range(0, events, BATCH):
            append(connection, (leased[0], leased[1]), start, lines[start : start + BATCH])
        seconds = time.monotonic() - begin
        used = bench.server.usage() - used
    return {
        "rate": events / seconds,
        "pg_us": used.cpu_seconds / events * 1e6,
        "wal": used.wal_bytes / events,
    }


def _append(connection: Connection, lease: tuple[str, int], _start: int, lines: list[str]) -> None:
    [answer] = store_sync.append_events(connection, [NewEvent(*lease, "log", line) for line in lines])
    if not answer.accepted:
        raise Failed("the lease was lost")


def _bare(connection: Connection, lease: tuple[str, int], start: int, lines: list[str]) -> None:
    count = len(lines)
    ids, numbers = plain_array([lease[0]] * count), plain_array(range(start, start + count))
    types, data = plain_array(["log"] * count), text_array(lines)
    connection.execute(statement("plain_append"), (ids, numbers, types, data), prepare=True)
