"""Where Postgres' share of a job goes: claim and finish apart, and what their statements touch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contestants.queue_pg import migrate_database
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Connection
from benchmarks.statements import Query, statement

NAME = "cost"
TITLE = "What one claim and one finish cost Postgres"
METHOD = """\
One connection claims batches and finishes them, as in the drain but with nothing else going on: no handlers, no second
connection. CPU is that of the backend alone, from its scheduler's account in nanoseconds; WAL is the distance between
insert positions around each statement. The raw loop's statements do the same with its narrow tables, without tenants,
limits of kinds, deadlines, counters or the test of the lease. The plans below are those of the statements inside
`queue_pg.claim` and `queue_pg.finish` for 500 jobs, with the settings that the functions pin: what remains is the row's
two versions, their index entries and the row of history, each job once."""
METRICS = (
    Metric(name="claim_us", label="claim, CPU a job", unit="µs", digits=1, plot=True),
    Metric(name="finish_us", label="finish, CPU a job", unit="µs", digits=1, plot=True),
    Metric(name="claim_wal", label="claim, WAL a job", unit="bytes"),
    Metric(name="finish_wal", label="finish, WAL a job", unit="bytes"),
)
TARGETS: tuple[Target, ...] = ()

JOBS = 30_000
QUICK_JOBS = 1_000
BATCHES = (500, 10)


def run(bench: Bench) -> Record:
    """Measure the raw loop's statements and ours with several batch sizes, in turn."""
    record = Record()
    jobs = bench.pick(JOBS, QUICK_JOBS)
    for _ in range(bench.runs):
        for batch in BATCHES:
            with bench.server.database() as database:
                with database.connect() as connection:
                    connection.execute(statement("raw_schema"))
                    connection.execute(statement("raw_fill"), (jobs,))
                database.settle()
                with database.connect() as connection:
                    record.add(f"raw, {batch} a batch", **_raw(connection, batch))
            with bench.server.database() as database:
                migrate_database(database)
                database.execute(statement("queue_pg_fill"), ("default", jobs))
                database.settle()
                with database.connect() as connection:
                    record.add(f"queue-pg, {batch} a batch", **_ours(connection, batch))
            for name in (f"raw, {batch} a batch", f"queue-pg, {batch} a batch"):
                bench.say(
                    f"{name:24} "
                    + "  ".join(f"{key} {values[-1]:,.1f}" for key, values in record.figures[name].items())
                )
    with bench.server.database() as database:
        migrate_database(database)
        database.execute(statement("queue_pg_fill"), ("default", 1_000))
        database.settle()
        with database.connect() as connection:
            _explain(connection, record)
    return record


class _Meter:
    """Adds up what the statements on one connection cost."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._account = Path(f"/proc/{connection.info.backend_pid}/schedstat")
        self.jobs = 0
        self.spent: dict[str, float] = {}

    def execute(self, name: str, query: Query, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        position, cpu = self._position(), self._cpu_ns()
        cursor = self._connection.execute(query, parameters, prepare=True)
        rows = cursor.fetchall() if cursor.description else []
        cpu, position = self._cpu_ns() - cpu, self._position() - position
        self.spent[f"{name}_us"] = self.spent.get(f"{name}_us", 0) + cpu / 1e3
        self.spent[f"{name}_wal"] = self.spent.get(f"{name}_wal", 0) + position
        return rows

    def figures(self) -> dict[str, float]:
        return {name: value / self.jobs for name, value in self.spent.items()}

    def _cpu_ns(self) -> int:
        return int(self._account.read_text().split()[0])

    def _position(self) -> int:
        row = self._connection.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchone()
        return int(row[0]) if row else 0


def _raw(connection: Connection, batch: int) -> dict[str, float]:
    meter = _Meter(connection)
    while rows := meter.execute("claim", statement("raw_claim"), (batch,)):
        meter.jobs += len(rows)
        ids = [row[0] for row in rows]
        meter.execute("finish", statement("raw_finish"), (ids, ["null"] * len(ids)))
    return meter.figures()


def _ours(connection: Connection, batch: int) -> dict[str, float]:
    meter = _Meter(connection)
    while rows := meter.execute("claim", statement("cost_claim"), (batch,)):
        meter.jobs += len(rows)
        ids, tokens = [row[0] for row in rows], [row[1] for row in rows]
        meter.execute("finish", statement("cost_finish"), (ids, tokens, ["complete"] * len(ids), ids))
    return meter.figures()


def _explain(connection: Connection, record: Record) -> None:
    connection.execute(statement("cost_explain_settings"))
    for title, name in (
        ("Finding and locking 500 jobs", "pick"),
        ("Leasing them", "lease"),
        ("Removing them", "remove"),
    ):
        plan = connection.execute(statement(f"cost_explain_{name}")).fetchall()
        record.texts[title] = "\n".join(line for (line,) in plan)
        if name == "pick":
            connection.execute(statement("cost_explain_picked"))
