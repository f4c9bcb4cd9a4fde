"""What queue-pg's triggers cost the application that submits."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.children import Command, Failed, started
from benchmarks.children import run as run_command
from benchmarks.contestants.queue_pg import QueuePg, migrate_database, wait_for_workers, worker_command
from benchmarks.marks import new_marks
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database, programs
from benchmarks.statements import statement

NAME = "commit_tax"
TITLE = "One INSERT a transaction into queue_pg.jobs, against the same table without triggers"
METHOD = """\
pgbench inserts kind and payload, one row a transaction, with 1 to 64 clients. Each figure compares rounds of equal
length directly after one another, in the order ABBA and then BAAB: with the triggers of queue_pg.jobs and without.
The first second of a round is not counted: in it every session plans what the table's columns and its trigger need.
*Idle*: a worker serves another queue; *paused*: one serves this queue, which is paused; both compare with `create
table (like queue_pg.jobs including all)` of the same storage parameters beside the same worker. *Draining*: a worker empties this queue all the
time; the round without triggers uses queue_pg.jobs itself with its triggers disabled, so that both rounds carry the
same work of the same worker, which without triggers finds the jobs by polling. *+ 1 ms* adds a millisecond to every
flush of the WAL (commit_delay = 1000 with commit_siblings = 0 in pgbench's sessions), as a slower disk does: locks
that a commit holds are then held longer."""
METRICS = (
    Metric(name="own", label="with triggers", unit="tx/s"),
    Metric(name="plain", label="without", unit="tx/s"),
    Metric(name="ratio", label="ratio", digits=3, plot=True),
)
CLIENTS = (1, 16, 64)
PAUSED_CLIENTS = (16,)
SLOW = " + 1 ms"


def _case(mode: str, clients: int, *, slow: bool = False) -> str:
    return f"{mode}{SLOW if slow else ''}, {clients} client{'s' if clients > 1 else ''}"


def _cases(mode: str, all_clients: Sequence[int] = CLIENTS, *, slow: bool = False) -> list[str]:
    return [_case(mode, clients, slow=slow) for clients in all_clients]


def _target(text: str, *cases: str) -> Target:
    pairs = [(case, "") for case in cases]
    return Target(text=text, metric="ratio", pairs=pairs, relation="value", at_least=0.95, unit="x")


TARGETS = (
    _target("workers idle, 1 to 64 clients", *_cases("idle"), *_cases("paused", PAUSED_CLIENTS)),
    _target("workers draining, 1 to 64 clients", *_cases("draining")),
    _target("workers idle, with 1 ms of commit latency", *_cases("idle", slow=True)),
    _target("workers draining, with 1 ms of commit latency", *_cases("draining", slow=True)),
)
ALL = tuple((clients, slow) for slow in (False, True) for clients in CLIENTS)
MODES = {"idle": ALL, "paused": tuple((clients, False) for clients in PAUSED_CLIENTS), "draining": ALL}
WITH, PLAIN, OFF = "with", "plain", "off"
INSERT = "insert into {table} (kind, payload) values ('noop', '{{\"n\": 1}}');\n"
ROUND_SECONDS = 2
LONGEST_SECONDS = 60.0
# Without triggers nothing wakes the worker when a round begins: it would sleep through the first second of it.
POLL = {"POLL_INTERVAL": "0.02"}


def run(bench: Bench) -> Record:
    """Measure all modes and numbers of clients, with changing order."""
    record = Record()
    for turn in range(bench.runs):
        for mode in MODES:
            with bench.server.database() as database, _prepared(database, mode):
                for clients, slow in bench.pick(MODES[mode], ((16, False),)):
                    rates = _rounds(database, mode, clients, slow=slow, reverse=turn % 2 == 1)
                    record.add(_case(mode, clients, slow=slow), **rates)
                    bench.say(f"{_case(mode, clients, slow=slow):28} " + f"{rates['ratio']:.3f}")
    return record


@contextmanager
def _prepared(database: Database, mode: str) -> Generator[None]:
    """Have the schema, the table without triggers, and a worker in the given mode."""
    migrate_database(database)
    database.execute(statement("plain_jobs"))
    if mode == "paused":
        database.execute("select queue_pg.pause_queue('default')")
    queues = "elsewhere" if mode == "idle" else "default"
    with new_marks() as marks:
        command = worker_command(
            database, "--concurrency", "200", "--queues", queues, environment={**marks.environment(), **POLL}
        )
        with started(command) as worker:
            wait_for_workers(database, worker, 1)
            yield


def _rounds(database: Database, mode: str, clients: int, *, slow: bool, reverse: bool) -> dict[str, float]:
    """Return transactions a second with and without triggers, two rounds of each, and the ratio."""
    other = OFF if mode == "draining" else PLAIN
    totals = {WITH: 0.0, other: 0.0}
    for variant in (other, WITH, WITH, other) if reverse else (WITH, other, other, WITH):
        _clear(database, mode)
        with _triggers_off(database) if variant == OFF else nullcontext():
            table = "plain_jobs" if variant == PLAIN else "queue_pg.jobs"
            totals[variant] += _pgbench(database, table, clients, slow=slow)
    return {"own": totals[WITH] / 2, "plain": totals[other] / 2, "ratio": totals[WITH] / totals[other]}


def _clear(database: Database, mode: str) -> None:
    """Let every round begin with empty tables."""
    if mode != "draining":
        database.execute("truncate queue_pg.jobs, plain_jobs")
        return
    deadline = time.monotonic() + LONGEST_SECONDS
    while database.scalar(QueuePg.unfinished):
        if time.monotonic() > deadline:
            raise Failed(f"the worker did not empty the queue within {LONGEST_SECONDS:g} s")
        time.sleep(0.01)


@contextmanager
def _triggers_off(database: Database) -> Generator[None]:
    database.execute("alter table queue_pg.jobs disable trigger user")
    try:
        yield
    finally:
        database.execute("alter table queue_pg.jobs enable trigger user")


def _pgbench(database: Database, table: str, clients: int, *, slow: bool) -> float:
    """Return the transactions a second of a round, its first second left out."""
    with tempfile.NamedTemporaryFile("w", prefix="queue-pg-bench-", suffix=".sql") as script:
        script.write(INSERT.format(table=table))
        script.flush()
        options = "-c commit_delay=1000 -c commit_siblings=0" if slow else ""
        arguments = [
            "--no-vacuum",
            f"--client={clients}",
            f"--jobs={min(clients, 2)}",
            f"--time={ROUND_SECONDS}",
            "--progress=1",
        ]
        arguments += ["--protocol=prepared", f"--file={script.name}", database.dsn]
        said = run_command(Command([str(programs() / "pgbench"), *arguments], {"PGOPTIONS": options}, Path("/")))
    first = re.search(r"progress: ([0-9.]+) s, ([0-9.]+) tps", said)
    done, rate = re.search(r"actually processed: ([0-9]+)", said), re.search(r"tps = ([0-9.]+)", said)
    if first is None or done is None or rate is None:
        raise Failed(f"pgbench reported no rates: {said}")
    seconds = int(done[1]) / float(rate[1])
    return (int(done[1]) - float(first[1]) * float(first[2])) / (seconds - float(first[1]))
