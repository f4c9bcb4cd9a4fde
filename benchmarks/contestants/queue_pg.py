"""queue-pg through its public worker, with its defaults but for the number of slots."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.children import Child, Command
from benchmarks.contestants.base import Contestant, outside
from benchmarks.marks import Marks
from benchmarks.server import Database
from benchmarks.statements import statement
from queue_pg.schema import migrate

COMMAND = str(Path(sys.executable).with_name("queue-pg"))
TASKS = "benchmarks.contestants.noop_tasks"
TELLING_TASKS = "benchmarks.contestants.telling_tasks"
FILE_TASKS = "benchmarks.contestants.file_tasks"
CONCURRENCY = 200


class QueuePg(Contestant):
    """`processes` worker processes with `concurrency` slots each, started on a paused queue that is then resumed."""

    name = "queue-pg"
    unfinished = "select exists (select from queue_pg.jobs)"
    finished = "select count(*) from queue_pg.finished_jobs where state = 'completed'"

    insert = statement("queue_pg_insert")

    def __init__(self, *, concurrency: int = CONCURRENCY, processes: int = 1, notify: bool = True) -> None:
        self.concurrency = concurrency
        self.processes = processes
        self.notify = notify
        self.settings = f"`queue-pg worker --concurrency {concurrency} --processes {processes}`, log level WARNING"
        if not notify:
            self.settings += ", QUEUE_PG_NOTIFY=off"

    def prepare(self, database: Database, jobs: int) -> None:
        migrate_database(database)
        with database.connect() as connection:
            connection.execute(statement("queue_pg_fill"), ("default", jobs))
            connection.execute("select queue_pg.pause_queue('default')")

    def worker(self, database: Database, marks: Marks, *, stamps: bool = False) -> Command:
        return worker_command(
            database,
            "--concurrency",
            str(self.concurrency),
            "--processes",
            str(self.processes),
            environment=marks.environment(stamps=stamps) | ({} if self.notify else {"QUEUE_PG_NOTIFY": "off"}),
        )

    def ready(self, database: Database, child: Child) -> None:
        wait_for_workers(database, child, self.processes)
        database.execute("select queue_pg.resume_queue('default')")


def migrate_database(database: Database) -> None:
    """Bring a fresh database to queue-pg's schema."""
    migrate(database.dsn)


def worker_command(database: Database, *arguments: str, environment: dict[str, str], tasks: str = TASKS) -> Command:
    """Return the command of a worker that runs tasks of this package."""
    given = {"DATABASE_URL": database.dsn, "LOG_LEVEL": "WARNING"}
    return outside([COMMAND, "worker", tasks, *arguments], given | environment)


def wait_for_workers(database: Database, child: Child, count: int) -> None:
    """Wait until so many worker processes have registered."""
    with database.connect() as connection:

        def registered() -> bool:
            row = connection.execute("select count(*) from queue_pg.workers").fetchone()
            return row is not None and row[0] >= count

        child.wait_for(registered, seconds=30, what="the registration of all workers")
