"""How fast many jobs are submitted at once."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable
from functools import partial

from benchmarks.bench import Bench
from benchmarks.children import Failed
from benchmarks.contestants.api import queue_pg_api
from benchmarks.contestants.queue_pg import migrate_database
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database
from benchmarks.statements import statement
from queue_pg import NewJob, Queue

NAME = "bulk"
TITLE = "Submitting 100,000 jobs at once"
METHOD = """\
All begin with the same Python values and end when the jobs are committed and answered for. Raw COPY writes kind and
payload as text, each payload by json.dumps, into `create table (like queue_pg.jobs including all)`: the same rows
into the same indexes, no triggers. `submit_many` is the library's call with a generator of NewJob. NDJSON is one POST
to one API process; its body is made before the clock starts, and the answer is read to its end. Postgres CPU is that
of all the server's processes."""
METRICS = (
    Metric(name="rate", label="jobs/s", plot=True),
    Metric(name="pg_us", label="Postgres CPU a job", unit="µs", digits=1),
    Metric(name="wal", label="WAL a job", unit="bytes"),
)
RAW, PYTHON, HTTP = "raw COPY", "queue-pg submit_many", "queue-pg HTTP NDJSON"
TARGETS = (
    Target(text="from Python against raw COPY", metric="rate", pairs=[(PYTHON, RAW)], at_least=0.8),
    Target(
        text="from Python", metric="rate", pairs=[(PYTHON, "")], relation="value", at_least=10_000, unit="jobs/s"
    ),
    Target(
        text="by HTTP NDJSON, one API process", metric="rate", pairs=[(HTTP, "")], relation="value",
        at_least=10_000, unit="jobs/s",
    ),
)  # fmt: skip

JOBS = 100_000
QUICK_JOBS = 2_000

Payload = dict[str, int]


def run(bench: Bench) -> Record:
    """Submit by every way in turn."""
    record = Record()
    payloads = [{"n": n} for n in range(1, bench.pick(JOBS, QUICK_JOBS) + 1)]
    body = b"".join(json.dumps({"kind": "noop", "payload": payload}).encode() + b"\n" for payload in payloads)
    for _ in range(bench.runs):
        for name in (RAW, PYTHON, HTTP):
            with bench.server.database() as database:
                migrate_database(database)
                database.execute(statement("plain_jobs"))
                if name == HTTP:
                    with queue_pg_api(database) as api:
                        figures = _timed(bench, database, partial(_post, api.port, body), len(payloads))
                else:
                    submit = partial(_copy if name == RAW else _submit_many, database, payloads)
                    figures = _timed(bench, database, submit, len(payloads))
                stored = database.scalar(statement("count_plain" if name == RAW else "count_jobs"))
            if stored != len(payloads):
                raise Failed(f"{name} has stored {stored} of {len(payloads)} jobs")
            record.add(name, **figures)
            bench.say(f"{name:22} {figures['rate']:,.0f} jobs/s")
    return record


def _timed(bench: Bench, database: Database, submit: Callable[[], None], jobs: int) -> dict[str, float]:
    database.settle()
    used, begin = bench.server.usage(), time.monotonic()
    submit()
    seconds = time.monotonic() - begin
    used = bench.server.usage() - used
    return {"rate": jobs / seconds, "pg_us": used.cpu_seconds / jobs * 1e6, "wal": used.wal_bytes / jobs}


def _copy(database: Database, payloads: list[Payload]) -> None:
    with (
        database.connect() as connection,
        connection.cursor() as cursor,
        cursor.copy("copy plain_jobs (kind, payload) from stdin") as copy,
    ):
        for start in range(0, len(payloads), 1_000):
            rows = payloads[start : start + 1_000]
            # Right for these payloads; in general backslashes need doubling.
            copy.write("".join(f"noop\t{json.dumps(payload)}\n" for payload in rows))


def _submit_many(database: Database, payloads: list[Payload]) -> None:
    async def submit() -> None:
        async with Queue(database.dsn) as queue:
            await queue.submit_many(NewJob(kind="noop", payload=payload) for payload in payloads)

    asyncio.run(submit())


def _post(port: int, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/jobs", body, {"Content-Type": "application/x-ndjson"})
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    if answer.status >= 300:
        raise Failed(f"the API answered {answer.status}: {said[:300]!r}")
