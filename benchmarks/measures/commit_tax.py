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
pgbench inserts kind and payload, one row a transaction, with 1 to 64 clients. *Idle*: a worker serves another queue;
*paused*: one serves this queue, which is paused. There every transaction goes by chance into queue_pg.jobs or into
`create table (like queue_pg.jobs including all)` of the same storage parameters, in one run of pgbench: both see the
same moments of the machine, whose disk and neighbours otherwise differ from second to second by more than a trigger
costs. The rate is that of clients which do nothing else: clients / mean latency. *Draining*: a worker empties
queue_pg.jobs all the time, and not the other table, so it and the clients get in each other's way on the one only.
That is no tax of the triggers: the same is measured with the triggers of queue_pg.jobs disabled, when the worker finds
the jobs by polling, and the ratio is that of the two ratios. The order of the two changes from run to run.
*+ 1 ms* adds a millisecond to every flush of the WAL (commit_delay = 1000 with commit_siblings = 0 in pgbench's
sessions), as a slower disk does: locks that a commit holds are then held longer."""
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
WITH, OFF = "with", "off"
OWN, PLAIN = "queue_pg.jobs", "plain_jobs"
INSERT = "insert into {table} (kind, payload) values ('noop', '{{\"n\": 1}}');\n"
SECONDS = 3
LONGEST_SECONDS = 60.0
# Without triggers nothing wakes the worker when a run begins: it would sleep through the first second of it.
POLL = {"POLL_INTERVAL": "0.02"}


def run(bench: Bench) -> Record:
    """Measure all modes and numbers of clients, with changing order."""
    record = Record()
    for turn in range(bench.runs):
        for mode in MODES:
            with bench.server.database() as database, _prepared(database, mode):
                for clients, slow in bench.pick(MODES[mode], ((16, False),)):
                    if mode == "draining":
                        rates = _draining(database, clients, slow=slow, reverse=turn % 2 == 1)
                    else:
                        rates = _together(database, clients, slow=slow)
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


def _together(database: Database, clients: int, *, slow: bool) -> dict[str, float]:
    """Return transactions a second with and without triggers of transactions that alternate, and the ratio."""
    database.execute("truncate queue_pg.jobs, plain_jobs")
    said = _pgbench(database, [OWN, PLAIN], clients, slow=slow)
    # Of all transactions, and then of each script in the order given.
    found = re.findall(r"latency average = ([0-9.]+) ms", said)
    if len(found) != 3:
        raise Failed(f"pgbench reported no latency of each script: {said}")
    own, plain = (clients / float(latency) * 1000 for latency in found[1:])
    return {"own": own, "plain": plain, "ratio": own / plain}


def _draining(database: Database, clients: int, *, slow: bool, reverse: bool) -> dict[str, float]:
    """Return transactions a second with triggers, as many without as the ratio says, and the ratio of the ratios."""
    rates: dict[str, dict[str, float]] = {}
    for variant in (OFF, WITH) if reverse else (WITH, OFF):
        _wait_until_empty(database)
        with _triggers_off(database) if variant == OFF else nullcontext():
            rates[variant] = _together(database, clients, slow=slow)
    ratio = rates[WITH]["ratio"] / rates[OFF]["ratio"]
    return {"own": rates[WITH]["own"], "plain": rates[WITH]["own"] / ratio, "ratio": ratio}


def _wait_until_empty(database: Database) -> None:
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


def _pgbench(database: Database, tables: Sequence[str], clients: int, *, slow: bool) -> str:
    """Insert into these tables by turns of chance; return what pgbench says."""
    with tempfile.TemporaryDirectory(prefix="queue-pg-bench-") as folder:
        scripts = [Path(folder, f"{table}.sql") for table in tables]
        for table, script in zip(tables, scripts, strict=True):
            script.write_text(INSERT.format(table=table))
        options = "-c commit_delay=1000 -c commit_siblings=0" if slow else ""
        arguments = [
            "--no-vacuum",
            f"--client={clients}",
            f"--jobs={min(clients, 2)}",
            f"--time={SECONDS}",
            "--protocol=prepared",
            *(f"--file={script}" for script in scripts),
            database.dsn,
        ]
        return run_command(Command([str(programs() / "pgbench"), *arguments], {"PGOPTIONS": options}, Path("/")))
