"""How long one submission takes him who submits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.children import run as run_command
from benchmarks.contestants.api import queue_pg_api
from benchmarks.contestants.base import python_module
from benchmarks.contestants.queue_pg import migrate_database
from benchmarks.measures.latency import summary
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database
from benchmarks.statements import statement
from queue_pg import Queue, SyncQueue

NAME = "submit_latency"
TITLE = "One submission at a time"
METHOD = """\
One caller submits a job, waits until it is committed and answered for, and submits the next, on one connection: by the
plain INSERT of SQL, by `SyncQueue.submit`, by `Queue.submit`, and by POST /jobs to one API process. *Bare INSERT* is
the same row into `create table (like queue_pg.jobs including all)`, without triggers. All of them wait for the flush of
the WAL to disk. The first tenth is not counted."""
METRICS = (
    Metric(name="p50", label="p50", unit="ms", digits=2, plot=True),
    Metric(name="p99", label="p99", unit="ms", digits=2),
    Metric(name="max", label="max", unit="ms", digits=1),
)
BARE, SQL, BLOCKING, ASYNC, HTTP = "bare INSERT", "SQL", "SyncQueue.submit", "Queue.submit", "POST /jobs"
TARGETS = (
    Target(
        text="p50 of one submission from SQL or Python", metric="p50", pairs=[(SQL, ""), (BLOCKING, ""), (ASYNC, "")],
        relation="value", at_most=1, unit="ms",
    ),
)  # fmt: skip

SUBMISSIONS = 1_000
QUICK_SUBMISSIONS = 50
HTTP_SECONDS = 1.0


def run(bench: Bench) -> Record:
    """Submit by every way in turn."""
    record = Record()
    count = bench.pick(SUBMISSIONS, QUICK_SUBMISSIONS)
    ways: dict[str, Callable[[Database, int], list[float]]] = {
        BARE: lambda database, count: _by_sql(database, count, "plain_insert_one"),
        SQL: lambda database, count: _by_sql(database, count, "queue_pg_insert"),
        BLOCKING: _blocking,
        ASYNC: lambda database, count: asyncio.run(_async(database, count)),
    }
    for _ in range(bench.runs):
        with bench.server.database() as database:
            migrate_database(database)
            database.execute(statement("plain_jobs"))
            database.settle()
            for name, way in ways.items():
                record.add(name, **summary(way(database, count)[count // 10 :]))
            with queue_pg_api(database) as api:
                client = python_module("benchmarks.http_client", str(api.port), "1", str(HTTP_SECONDS), environment={})
                found: dict[str, float] = json.loads(run_command(client))
            record.add(HTTP, p50=found["p50"], p99=found["p99"], max=found["max"])
        for name, figures in record.figures.items():
            bench.say(f"{name:18} " + "  ".join(f"{key} {values[-1]:.2f}" for key, values in figures.items()) + " ms")
    return record


def _by_sql(database: Database, count: int, insert: str) -> list[float]:
    waits: list[float] = []
    with database.connect() as connection:
        for number in range(count):
            begin = time.perf_counter()
            connection.execute(statement(insert), (number,), prepare=True)
            waits.append((time.perf_counter() - begin) * 1e3)
    return waits


def _blocking(database: Database, count: int) -> list[float]:
    waits: list[float] = []
    with SyncQueue(database.dsn) as queue:
        for number in range(count):
            begin = time.perf_counter()
            queue.submit("noop", {"n": number})
            waits.append((time.perf_counter() - begin) * 1e3)
    return waits


async def _async(database: Database, count: int) -> list[float]:
    waits: list[float] = []
    async with Queue(database.dsn) as queue:
        for number in range(count):
            begin = time.perf_counter()
            await queue.submit("noop", {"n": number})
            waits.append((time.perf_counter() - begin) * 1e3)
    return waits
