"""The reference: one psycopg connection that claims, runs and records, one batch after the other."""

from __future__ import annotations

from benchmarks.children import Command
from benchmarks.contestants.base import Contestant, python_module
from benchmarks.contestants.raw_worker import drain_loop
from benchmarks.marks import Marks
from benchmarks.server import Database
from benchmarks.statements import statement

BATCHES = (100, 200, 500, 1000)


class Raw(Contestant):
    """`batch` jobs a round, each round in one transaction or in two (`together`)."""

    name = "raw"
    unfinished = "select exists (select from raw_jobs)"
    finished = "select count(*) from raw_history"
    insert = statement("raw_insert")

    def __init__(self, batch: int = 500, *, together: bool = False) -> None:
        self.batch = batch
        self.together = together
        transactions = "one transaction" if together else "two transactions"
        self.settings = (
            f"one connection, prepared statements, binary results; {batch} jobs a batch, claim and finish in "
            f"{transactions} (the best of batches of {', '.join(map(str, BATCHES))} in one or two, tried just before)"
        )

    def prepare(self, database: Database, jobs: int) -> None:
        with database.connect() as connection:
            connection.execute(statement("raw_schema"))
            connection.execute(statement("raw_fill"), (jobs,))

    def worker(self, database: Database, marks: Marks, *, stamps: bool = False) -> Command:
        environment = marks.environment(stamps=stamps) | {"DATABASE_URL": database.dsn}
        mode = "listen" if stamps else "drain"
        arguments = (mode, str(self.batch), str(int(self.together)))
        return python_module("benchmarks.contestants.raw_worker", *arguments, environment=environment)

    @classmethod
    def calibrated(cls, database: Database, jobs: int) -> Raw:
        """Return the variant that drains `jobs` jobs fastest on this machine."""
        rates: dict[tuple[int, bool], float] = {}
        candidate = cls()
        candidate.prepare(database, 0)
        with database.connect() as connection:
            for batch in BATCHES:
                for together in (False, True):
                    connection.execute("truncate raw_jobs, raw_history")
                    connection.execute(statement("raw_fill"), (jobs,))
                    database.settle()
                    rates[batch, together] = drain_loop(connection, batch, together=together, run=lambda _n: None)
        batch, together = max(rates, key=lambda key: rates[key])
        return cls(batch, together=together)
