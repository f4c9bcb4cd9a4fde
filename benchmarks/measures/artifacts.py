"""How fast large files go in and out, and in how much memory."""

from __future__ import annotations

import http.client
import json
import time

from benchmarks import proc
from benchmarks.bench import Bench
from benchmarks.children import Failed, started
from benchmarks.contestants.api import queue_pg_api
from benchmarks.contestants.file_tasks import BLOCK_BYTES, blocks
from benchmarks.contestants.queue_pg import FILE_TASKS, migrate_database, wait_for_workers, worker_command
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database
from benchmarks.statements import statement

NAME = "artifacts"
TITLE = "A file of 1 GiB in and out"
METHOD = """\
1 GiB of random bytes, which no compression makes smaller and of which no two MiB are the same. *By HTTP*: PUT to one
`queue-pg serve` and GET from it, by one client. *In a handler*: `job.artifact` from a generator and `job.open_artifact`
in a worker as `queue-pg worker` runs it. Every MiB is hashed by client and server on its way in and compared with its
hash on its way out. The memory is the highest that the API process or the worker has had from its start to the end, of
which the programs themselves take some 60 MB. WAL is all that the server wrote meanwhile. A server without lz4, such as
the embedded one, tries to compress by pglz, which is most of its CPU here."""
METRICS = (
    Metric(name="rss", label="highest RSS", unit="MB"),
    Metric(name="into", label="in", unit="MB/s"),
    Metric(name="out", label="out", unit="MB/s"),
    Metric(name="pg", label="Postgres CPU a MB", unit="ms", digits=1),
    Metric(name="wal", label="WAL a byte", unit="bytes", digits=2),
)
HTTP, HANDLER = "by HTTP", "in a handler"
TARGETS = (
    Target(
        text="RSS of the process that 1 GiB goes through", metric="rss", pairs=[(HTTP, ""), (HANDLER, "")],
        relation="value", at_most=100, unit="MB",
    ),
)  # fmt: skip

MEBIBYTES = 1024
QUICK_MEBIBYTES = 8
LONGEST_SECONDS = 300.0


def run(bench: Bench) -> Record:
    """Take one file through each way; once, for it is 4 GiB in all."""
    record = Record()
    size = bench.pick(MEBIBYTES, QUICK_MEBIBYTES)
    for name, way in ((HTTP, _by_http), (HANDLER, _in_handler)):
        with bench.server.database() as database:
            migrate_database(database)
            database.settle()
            used = bench.server.usage()
            rss, into, out = way(database, size)
            used = bench.server.usage() - used
        figures = {
            "rss": rss / 1e6,
            "into": size * BLOCK_BYTES / 1e6 / into,
            "out": size * BLOCK_BYTES / 1e6 / out,
            "pg": used.cpu_seconds / (size * BLOCK_BYTES) * 1e9,
            "wal": used.wal_bytes / size / BLOCK_BYTES,
        }
        record.add(name, **figures)
        bench.say(f"{name:14} " + "  ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
    return record


def _by_http(database: Database, mebibytes: int) -> tuple[int, float, float]:
    job_id = database.scalar(statement("telling_submit"), ("through", "{}", 1))
    path = f"/jobs/{job_id}/artifacts/large.bin"
    with queue_pg_api(database) as api:
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=LONGEST_SECONDS)
        begin = time.monotonic()
        connection.request("PUT", path, blocks(mebibytes), {"Content-Length": str(mebibytes * BLOCK_BYTES)})
        answer = connection.getresponse()
        said = answer.read()
        stored = time.monotonic()
        if answer.status >= 300:
            raise Failed(f"the API answered {answer.status}: {said[:300]!r}")
        connection.request("GET", path)
        answer, read = connection.getresponse(), 0
        while piece := answer.read(BLOCK_BYTES):
            read += len(piece)
        end = time.monotonic()
        connection.close()
        if read != mebibytes * BLOCK_BYTES:
            raise Failed(f"{read} bytes came back")
        return proc.largest_rss_bytes(api.child.pid, peak=True), stored - begin, end - stored


def _in_handler(database: Database, mebibytes: int) -> tuple[int, float, float]:
    with started(worker_command(database, environment={}, tasks=FILE_TASKS)) as child, database.connect() as connection:
        wait_for_workers(database, child, 1)
        connection.execute(statement("telling_submit"), ("through", json.dumps({"mebibytes": mebibytes}), 1))

        def ended() -> bool:
            row = connection.execute("select count(*) from queue_pg.finished_jobs").fetchone()
            return row is not None and row[0] > 0

        child.wait_for(ended, seconds=LONGEST_SECONDS, what="the end of the job", pause=0.05)
        rss = proc.largest_rss_bytes(child.pid, peak=True)
        row = connection.execute("select state::text, result from queue_pg.finished_jobs").fetchone()
    if row is None or row[0] != "completed":
        raise Failed(f"the job ended as {row}")
    return rss, row[1]["in"], row[1]["out"]
