"""How fast single jobs are submitted by HTTP."""

from __future__ import annotations

import json

from benchmarks import proc
from benchmarks.bench import Bench
from benchmarks.children import run as run_command
from benchmarks.contestants.api import bare_api, queue_pg_api
from benchmarks.contestants.base import python_module
from benchmarks.contestants.queue_pg import migrate_database
from benchmarks.model import Metric, Record, Target
from benchmarks.statements import statement

NAME = "http_single"
TITLE = "POST /jobs with 32 connections, one API process"
METHOD = """\
A client process keeps 32 connections open, each with one request under way. It posts to `queue-pg serve`, and to a
Starlette route that does one bare INSERT with a pool of as many connections, under uvicorn with the same settings,
into `create table (like queue_pg.jobs including all)`. An answer of either means that the job is committed. The
client shares the machine and takes the same part of it in both cases."""
METRICS = (
    Metric(name="rate", label="jobs/s", plot=True),
    Metric(name="p50", label="p50", unit="ms", digits=1),
    Metric(name="p99", label="p99", unit="ms", digits=1),
    Metric(name="api_us", label="API CPU a job", unit="µs"),
    Metric(name="pg_us", label="Postgres CPU a job", unit="µs"),
)
BARE, OWN = "bare INSERT", "queue-pg"
TARGETS = (Target(text="against a bare INSERT", metric="rate", pairs=[(OWN, BARE)], at_least=0.6),)

CONNECTIONS = 32
SECONDS = 4


def run(bench: Bench) -> Record:
    """Post to both in turn."""
    record = Record()
    seconds = bench.pick(SECONDS, 1)
    for _ in range(bench.runs):
        for name, api in ((BARE, bare_api), (OWN, queue_pg_api)):
            with bench.server.database() as database:
                migrate_database(database)
                database.execute(statement("plain_jobs"))
                database.settle()
                with api(database) as service:
                    used, worked = bench.server.usage(), proc.cpu_seconds(service.child.pid)
                    client = python_module(
                        "benchmarks.http_client", str(service.port), str(CONNECTIONS), str(seconds), environment={}
                    )
                    figures: dict[str, float] = json.loads(run_command(client))
                    used, worked = bench.server.usage() - used, proc.cpu_seconds(service.child.pid) - worked
                jobs = database.scalar(statement("count_plain" if name == BARE else "count_jobs"))
            del figures["max"]
            figures |= {"api_us": worked / jobs * 1e6, "pg_us": used.cpu_seconds / jobs * 1e6}
            record.add(name, **figures)
            bench.say(f"{name:14} " + "  ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
    return record
