"""Faults of the server: killed, restarted, out of what it needs (F5 to F9, F15, F16, F19, F22)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import psycopg

from tests.faults.arena import Arena
from tests.faults.fleet import STOP_SECONDS, Worker
from tests.faults.machine import SmallDisk
from tests.faults.plug import Plug
from tests.faults.postgres import Postgres
from tests.faults.producers import Producer

DOCUMENT_BYTES: Final = 100_000


def kill_postgres(arena: Arena) -> None:
    """F5: the server and all its children are killed at once, and started again."""
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.mix()
    arena.progress()
    for hit in range(arena.size.hits):
        time.sleep(arena.random.uniform(0.1, 1.0))
        with arena.outage(measured=arena.is_measured(hit)):
            arena.postgres.kill()
            arena.hits["server kills"] += 1
            time.sleep(arena.random.choice([0.0, 0.0, 0.5]))
            arena.postgres.start()
        arena.progress()


def restart_postgres(arena: Arena) -> None:
    """F8: an operator restarts the server, fast or immediately, and takes a while."""
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.progress()
    for index in range(arena.size.hits):
        time.sleep(arena.random.uniform(0.1, 1.0))
        with arena.outage(measured=arena.is_measured(index)):
            arena.postgres.stop((signal.SIGINT, signal.SIGQUIT)[index % 2])
            arena.hits["restarts"] += 1
            time.sleep(arena.random.uniform(0.0, 2.0))
            arena.postgres.start()
        arena.progress()


def terminate_backends(arena: Arena) -> None:
    """F9: connections are terminated one after the other, those that listen among them."""
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.mix()
    arena.progress()
    with psycopg.connect(arena.postgres.dsn, autocommit=True, application_name="the fault") as connection:
        while arena.hits["terminations"] < arena.size.hits:
            time.sleep(arena.random.uniform(0.0, 0.1))
            rows = connection.execute(
                "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
            ).fetchall()
            if rows and connection.execute("select pg_terminate_backend(%s)", arena.random.choice(rows)).fetchone() == (
                True,
            ):
                arena.hits["terminations"] += 1
    arena.progress()


def hold_snapshot(arena: Arena) -> None:
    """F16: somebody's transaction stays open throughout, and dead rows with it."""
    with psycopg.connect(arena.postgres.dsn) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select count(*) from queue_pg.jobs")
        arena.hits["held snapshots"] = 1
        arena.produce(keyed=True)
        arena.produce(keyed=False)
        begin, before = time.monotonic(), arena.done()
        arena.progress(arena.size.hits)
        arena.figures["jobs_per_second"] = round((arena.done() - before) / (time.monotonic() - begin), 1)


class _Unpinned(threading.Thread):
    """Commits as the server's settings say, beside the queue, and counts what it was told is there."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.acked = 0
        self.backend_pid = 0
        self._dsn = dsn

    def run(self) -> None:
        with suppress(psycopg.OperationalError), psycopg.connect(self._dsn, autocommit=True) as connection:
            self.backend_pid = connection.info.backend_pid
            while True:
                connection.execute("insert into faults.unpinned default values")
                self.acked += 1


def kill_lazy_postgres(arena: Arena) -> None:
    """F6: the server confirms before it has written. Who does not pin loses commits; the queue does not."""
    arena.postgres.execute("create table faults.unpinned (id bigserial)")
    producers = [arena.produce(keyed=True) for _ in range(2)]
    arena.progress()
    lost = 0
    for _ in range(arena.size.hits):
        control = _Unpinned(arena.postgres.dsn)
        arena.postgres.execute("truncate faults.unpinned")
        control.start()
        time.sleep(arena.random.uniform(0.2, 0.8))
        # The queue's commits take all that came before them to disk; what comes after the last of them is lost.
        arena.postgres.kill(last=control.backend_pid)
        arena.hits["server kills"] += 1
        control.join()
        arena.postgres.start()
        [[survived]] = arena.postgres.execute("select count(*) from faults.unpinned")
        lost += max(0, control.acked - survived)
        arena.progress()
    arena.hits["lost by an application without the pin"] = lost
    arena.figures["trouble"] = sum(producer.trouble for producer in producers)
    told = [log for log in arena.folder.glob("worker-*.log") if "synchronous_commit is off" in log.read_text()]
    if len(told) < arena.size.workers:
        arena.violate("L2", f"{len(told)} of {arena.size.workers} workers warned of synchronous_commit = off")


def fill_disks(arena: Arena) -> None:
    """F15: no space is left for data, then none for the log of the server, which ends it; then there is space again."""
    arena.postgres.stop()
    cluster = (arena.postgres.folder / "cluster").resolve()
    data = SmallDisk(cluster, 400)
    arena.stack.callback(data.remove)
    log = SmallDisk(cluster / "pg_wal", 200)
    arena.stack.callback(log.remove)
    # The server must have ended before its disks go.
    arena.stack.callback(arena.postgres.stop)
    arena.postgres.start()
    service = arena.serve()
    arena.produce_over_http(service)
    arena.produce(keyed=False)
    arena.progress()
    for _ in range(arena.size.hits):
        data.fill()
        # Small jobs may go on for long in the room that others have left in the tables.
        documents = arena.produce_over_http(service, ballast=arena.random.randbytes(DOCUMENT_BYTES).hex())
        arena.until(partial(_says_503, documents, 3), "the API says 503")
        documents.stop()
        arena.hits["disk of data full"] += 1
        data.free()
        arena.progress()
        log.fill()
        crashes = _panics(arena)
        begin = time.monotonic()
        while _panics(arena) == crashes and time.monotonic() - begin < 60:
            with suppress(psycopg.OperationalError):
                arena.postgres.execute("select pg_switch_wal()")
        arena.hits["disk of the log full"] += _panics(arena) - crashes
        time.sleep(arena.random.uniform(0.0, 1.0))
        log.free()
        if not arena.postgres.starts():
            # One whose recovery meets the full disk has ended, or (PostgreSQL 18) stands still, for a minute at least.
            arena.postgres.stop(signal.SIGQUIT)
        arena.postgres.start()
        arena.progress()
    arena.hits["503"] = sum(producer.answers[503] for producer in arena.producers)


def _says_503(producer: Producer, times: int) -> bool:
    return producer.answers[503] >= times


def _panics(arena: Arena) -> int:
    return (arena.postgres.folder / "server.log").read_text(errors="replace").count("PANIC")


def _is_refused(worker: Worker) -> bool:
    return b"cannot be used" in worker.log.read_bytes()


def _all_serve(workers: Sequence[Worker]) -> bool:
    return all(worker.serves for worker in workers)


def exhaust_connections(arena: Arena) -> None:
    """F22: somebody else has all connections; workers that start meanwhile wait, and all start at once afterwards."""
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.progress()
    for _ in range(arena.size.hits):
        idle: list[psycopg.Connection[object]] = []
        try:
            while True:
                idle.append(psycopg.connect(arena.postgres.dsn))
        except psycopg.OperationalError:
            arena.hits["idle connections"] += len(idle)
        newcomers = [arena.fleet.start() for _ in range(arena.size.workers)]
        for worker in newcomers:
            arena.until(partial(_is_refused, worker), "a worker is refused")
        time.sleep(arena.random.uniform(0.5, 1.5))
        arena.hits["refused workers"] += len(newcomers)
        for connection in idle:
            connection.close()
        begin = time.monotonic()
        arena.until(partial(_all_serve, newcomers), "refused workers work")
        arena.recoveries.append(time.monotonic() - begin)
        arena.progress()
        for worker in newcomers:
            worker.process.terminate()
        codes = {worker.process.wait(STOP_SECONDS) for worker in newcomers}
        if codes != {0}:
            arena.violate("L2", f"workers that were refused at first ended with {codes}")


def stick_notifications(arena: Arena) -> None:
    """F19: a session that listens stays in a transaction until the server takes no more notifications from anybody."""
    with psycopg.connect(arena.postgres.dsn) as stuck:
        stuck.execute("listen faults")
        stuck.commit()
        stuck.execute("select 1")
        producers = [arena.produce(keyed=True), arena.produce(keyed=False)]
        arena.mix()
        arena.progress()
        with psycopg.connect(arena.postgres.dsn, autocommit=True) as filler:
            try:
                while True:
                    filler.execute("select pg_notify('faults', repeat(md5(random()::text), 200))")
            except psycopg.errors.ProgramLimitExceeded:
                arena.hits["queues of notifications full"] += 1
        begin, before = time.monotonic(), arena.done()
        # At leisure: workers that are idle are those who are to be woken.
        arena.progress(arena.size.hits)
        arena.figures["jobs_per_second"] = round((arena.done() - before) / (time.monotonic() - begin), 1)
        if refused := sum(producer.trouble for producer in producers):
            arena.violate("S1", f"{refused} submissions were refused although the database is well")
    arena.progress()


def lose_power(arena: Arena) -> None:
    """F7: the power fails. Of what Postgres has written and not synced some is there afterwards, and some is not."""
    plug = _plug_in(arena, arena.postgres)
    _lose_without_syncing(arena)
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.mix()
    arena.progress()
    for _ in range(arena.size.hits):
        time.sleep(arena.random.uniform(0.2, 1.0))
        arena.progress()
        arena.postgres.kill()
        loss = plug.pull()
        arena.hits["power failures"] += 1
        arena.hits["pages lost"] += loss.pages
        arena.figures["entries_lost"] = arena.figures.get("entries_lost", 0) + loss.entries
        arena.postgres.start()
        arena.progress()


def _plug_in(arena: Arena, postgres: Postgres) -> Plug:
    postgres.stop()
    plug = Plug((postgres.folder / "cluster").resolve(), arena.random)
    arena.stack.callback(plug.remove)
    # The server must have ended before its disk goes.
    arena.stack.callback(postgres.stop)
    postgres.start()
    return plug


def _lose_without_syncing(arena: Arena) -> None:
    """The same to a server that does not sync, which has to lose what it has confirmed: else the plug does nothing."""
    careless = Postgres(arena.folder / "careless", {**arena.settings, "fsync": "off"})
    arena.stack.callback(careless.remove)
    careless.start()
    careless.execute("create schema faults")
    careless.execute("create table faults.unpinned (id bigserial)")
    plug = _plug_in(arena, careless)
    control = _Unpinned(careless.dsn)
    control.start()
    arena.until(lambda: control.acked >= 100, "a server that does not sync confirms")
    careless.kill()
    control.join()
    plug.pull()
    # That may be empty, which any operator would see to.
    (careless.folder / "cluster" / "postmaster.pid").unlink(missing_ok=True)
    survived = 0
    # It may not even start, or not find the table: then all is lost.
    with suppress(psycopg.Error):
        if careless.starts():
            [[survived]] = careless.execute("select count(*) from faults.unpinned")
    arena.hits["lost by a server that does not sync"] = max(0, control.acked - survived)
