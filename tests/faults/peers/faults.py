"""What is done to a queue. Nothing here waits for the queue to do anything: it may be past that."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import psycopg

from tests.faults.peers.judge import EVERYBODY, WORKERS, Hit

if TYPE_CHECKING:
    from tests.faults.peers.cell import Cell

LEASES: Final = 3
TOGETHER: Final = 2


def kill_workers(cell: Cell) -> None:
    """F1, F21: workers are killed in the middle of what they do, others take their places."""
    for _ in range(cell.size.hits):
        time.sleep(cell.random.uniform(0.3, 1.5))
        cell.staff.kill(cell.random.randrange(cell.size.workers))
        cell.hits["worker kills"] += 1


def freeze_workers(cell: Cell) -> None:
    """F3: two of three workers stand still three times as long as it takes to be taken for dead, then go on."""
    for _ in range(cell.size.hits // TOGETHER):
        time.sleep(cell.random.uniform(0.5, 1.5))
        cell.staff.freeze(cell.random.sample(range(cell.size.workers), TOGETHER), LEASES * cell.size.dead_seconds)
        cell.hits["freezes"] += TOGETHER
        time.sleep(2)


def kill_postgres(cell: Cell) -> None:
    """F5: the server and all its children are killed, and started again at once or half a second later."""
    for _ in range(cell.size.hits):
        time.sleep(cell.random.uniform(2.0, 4.0))
        begin = time.monotonic_ns()
        cell.postgres.kill()
        time.sleep(cell.random.choice([0.0, 0.5]))
        _return(cell, "Postgres killed", begin)
        cell.hits["server kills"] += 1


def restart_postgres(cell: Cell) -> None:
    """F8: an operator restarts the server, fast or immediately, which takes up to two seconds."""
    for index in range(cell.size.hits):
        time.sleep(cell.random.uniform(2.0, 4.0))
        begin = time.monotonic_ns()
        cell.postgres.stop((signal.SIGINT, signal.SIGQUIT)[index % 2])
        time.sleep(cell.random.uniform(0.0, 2.0))
        _return(cell, "Postgres restarted", begin)
        cell.hits["restarts"] += 1


def _return(cell: Cell, what: str, begin: int) -> None:
    cell.postgres.start()
    cell.staff.hits.append(Hit(what, begin, time.monotonic_ns(), EVERYBODY, WORKERS))


def terminate_backends(cell: Cell) -> None:
    """F9: connections of workers and applications are terminated one by one, those that listen among them."""
    with psycopg.connect(cell.postgres.dsn, autocommit=True, application_name="the fault") as connection:
        while cell.hits["terminations"] < cell.size.hits:
            time.sleep(cell.random.uniform(0.05, 0.4))
            rows = connection.execute(
                "select pid, application_name from pg_stat_activity"
                " where backend_type = 'client backend' and pid <> pg_backend_pid()"
            ).fetchall()
            if not rows:
                continue
            pid, name = cell.random.choice(rows)
            begin = time.monotonic_ns()
            if connection.execute("select pg_terminate_backend(%s)", [pid]).fetchone() == (True,):
                cell.hits["terminations"] += 1
                hurt = cell.staff.names.get(name)
                # Whose it was is not always known. Then it explains what anybody does twice, and is no recovery.
                cell.staff.hits.append(
                    Hit(
                        "cut off",
                        begin,
                        time.monotonic_ns(),
                        hurt or EVERYBODY,
                        WORKERS if hurt in cell.staff.places else None,
                    )
                )


def hold_snapshot(cell: Cell) -> None:
    """F16: somebody's transaction stays open, and dead rows with it, until so many jobs have been submitted."""
    with psycopg.connect(cell.postgres.dsn) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select count(*) from pg_class")
        time.sleep(cell.size.hits / cell.size.rate)
        with suppress(psycopg.Error):
            holder.rollback()
    cell.hits["seconds of a snapshot"] += round(cell.size.hits / cell.size.rate)
