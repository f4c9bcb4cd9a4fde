"""What 1,000 clients cost that follow jobs to which nothing happens."""

from __future__ import annotations

import time

from benchmarks import proc
from benchmarks.bench import Bench
from benchmarks.contestants.api import queue_pg_api
from benchmarks.contestants.queue_pg import migrate_database
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database
from benchmarks.statements import statement
from benchmarks.streams import following

NAME = "idle_streams"
TITLE = "1,000 idle streams on one API process"
METHOD = """\
1,000 clients, each of which follows a queued job of its own by server-sent events from one `queue-pg serve`. The memory
is the highest that the API process has had, from its start to the end of the last stream. Statements are the
transactions that pg_stat_database counts in 15 s, CPU that of the API process and of all processes of Postgres in the
same time, as shares of one core; keep-alives (every 15 s) and looks for lost notifications (every 10 s) fall into it.
Then all jobs are cancelled in one statement, and every client has to get the end of its stream; the last column is the
time from the first such end to the last."""
METRICS = (
    Metric(name="rss", label="API RSS, highest", unit="MB"),
    Metric(name="rss_before", label="before the clients", unit="MB"),
    Metric(name="cpu", label="API CPU", unit="% of one core", digits=1),
    Metric(name="pg", label="Postgres CPU", unit="% of one core", digits=2),
    Metric(name="statements", label="statements/s", digits=1),
    Metric(name="ends", label="1,000 ends", unit="ms"),
)
OWN = "queue-pg"
TARGETS = (
    Target(text="RSS of the API process", metric="rss", pairs=[(OWN, "")], relation="value", at_most=200, unit="MB"),
)

STREAMS = 1_000
# A server process that has become idle reports what it has done up to 10 s later.
SETTLE_SECONDS = 11
SECONDS = 15
QUICK_STREAMS = 30


def run(bench: Bench) -> Record:
    """Connect, wait and end; once, for it is an average over 15 s."""
    record = Record()
    seconds, settle = bench.pick(SECONDS, 1), bench.pick(SETTLE_SECONDS, 1)
    with bench.server.database() as database:
        migrate_database(database)
        ids = [
            row[0]
            for row in database.execute(statement("telling_submit"), ("tick", "{}", bench.pick(STREAMS, QUICK_STREAMS)))
        ]
        database.settle()
        with queue_pg_api(database) as api:
            pid, before = api.child.pid, proc.largest_rss_bytes(api.child.pid)
            with following(api.port, ids) as clients:
                time.sleep(settle)
                counted, used, cpu = _transactions(database), bench.server.usage(), api.child.cpu_seconds()
                begin = time.monotonic()
                time.sleep(seconds)
                passed = time.monotonic() - begin
                used, cpu = bench.server.usage() - used, api.child.cpu_seconds() - cpu
                counted = _transactions(database) - counted
                database.execute(statement("telling_cancel"))
                found = clients.figures(seconds=60)
            highest = proc.largest_rss_bytes(pid, peak=True)
    figures = {
        "rss": highest / 1e6,
        "rss_before": before / 1e6,
        "cpu": cpu / passed * 100,
        "pg": used.cpu_seconds / passed * 100,
        "statements": counted / passed,
        "ends": found["ends_ms"],
    }
    record.add(OWN, **figures)
    bench.say("  ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
    return record


def _transactions(database: Database) -> int:
    return int(
        database.scalar("select xact_commit + xact_rollback from pg_stat_database where datname = current_database()")
    )
