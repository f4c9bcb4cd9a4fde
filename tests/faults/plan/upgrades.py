"""Upgrades: a rolling deploy from the release before this one, and its migrations under load (F32, F33)."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psycopg

from queue_pg import schema
from queue_pg.errors import MigrationBusy
from tests.faults import mixture, releases
from tests.faults.arena import Arena
from tests.faults.fleet import Worker
from tests.faults.recovery import MANY, percentile
from tests.faults.releases import Release

GRACE_SECONDS: Final = 10.0
REFUSED: Final = 3
# Of one release. The run begins without any, because those that start with it are of this one.
WORKERS: Final = 2
# As it is by itself: half of it is what a migration waits for the second table, and all others.
SETTINGS: Final = {"deadlock_timeout": "1s"}
# Nobody is killed. On a slow machine a migration may take longer than the leases of other runs.
LEASES: Final = {"LEASE_SECONDS": "8"}

# How long everybody may be kept waiting, and what a slow machine may add to it.
LOCK_TIMEOUT_SECONDS: Final = 0.5
MARGIN_SECONDS: Final = 5.0
# For the INSERT itself, of all but one in a thousand, in runs that have many.
ITSELF_SECONDS: Final = 0.1


def start_with_previous(folder: Path, dsn: str) -> None:
    """Make the schema of the previous release, by its own command."""
    releases.unpack(folder / "previous").migrate(dsn)


def _previous(arena: Arena) -> Release:
    return releases.unpacked(arena.folder / "previous")


def roll(arena: Arena) -> None:
    """F32: the schema is migrated under the previous release, whose workers are then replaced one by one, and back."""
    arena.blames = True
    previous = _previous(arena)
    arena.fleet.environment = {**arena.fleet.environment, **LEASES, "GRACE_SECONDS": str(GRACE_SECONDS)}
    arena.fleet.release, arena.fleet.size = previous, WORKERS
    arena.fleet.fill()
    arena.postgres.execute("select queue_pg.set_limit('key', %s, max_running => %s)", (mixture.LIMIT, mixture.MOST))
    clients = [arena.produce_on(previous, form) for form in ("keyed", "mixed")]
    arena.progress()
    arena.hits["refused by an old schema"] = _start_too_early(arena)
    begin, tries = time.monotonic(), list[str]()
    applied = schema.migrate(
        arena.postgres.dsn, lock_timeout_seconds=2 * LOCK_TIMEOUT_SECONDS, wait_seconds=180, on_busy=tries.append
    )
    arena.hits["migrations"] = sum(not name.startswith("functions/") for name in applied)
    arena.figures["migrate_s"] = round(time.monotonic() - begin, 3)
    arena.figures["migrate_tries"] = len(tries) + 1
    arena.progress()
    # One that is started anew in the middle of it, as when its machine is.
    _retire(arena, arena.fleet.workers[0])
    arena.fleet.fill()
    _await_all(arena)
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.mix()
    for index in range(arena.size.hits):
        arena.fleet.release = previous if index % 2 else None
        # A report that runs throughout.
        with psycopg.connect(arena.postgres.dsn) as holder:
            holder.execute("set transaction isolation level repeatable read")
            holder.execute("select count(*) from queue_pg.jobs")
            _replace_all(arena)
        arena.hits["rolls back" if index % 2 else "rolls"] += 1
        # A roll takes most of the slots there are; the next one is not to find what this one has left.
        arena.until(lambda: arena.postgres.execute(MANY_WAIT) == [], "what has waited during a roll is done")
        arena.progress()
    arena.fleet.release = None
    if any(worker.release for worker in arena.fleet.workers):
        _replace_all(arena)
    for client in clients:
        client.stop()
    _know_limited(arena)


MANY_WAIT: Final = "select 1 from queue_pg.jobs where state = 'queued' offset 100 limit 1"


def _start_too_early(arena: Arena) -> int:
    """Start a worker of this release on the previous one's schema; it has to say what to do, and end."""
    arena.fleet.release, previous = None, arena.fleet.release
    worker = arena.fleet.start()
    arena.fleet.release = previous
    code = worker.process.wait(60)
    if code != REFUSED or b"queue-pg migrate" not in worker.log.read_bytes():
        arena.violate("L2", f"a worker that is newer than the schema ended with {code}")
    return 1


def _replace_all(arena: Arena) -> None:
    """Start as many new ones as there are, then end the old ones one after the other, the last one at once."""
    old = list(arena.fleet.workers)
    for _ in old:
        arena.fleet.add()
    _await_all(arena)
    versions = {str(row[0]) for row in arena.postgres.execute("select distinct version from queue_pg.workers")}
    arena.hits["both releases at work"] += len(versions) > 1
    # Long enough to be there when the order to end comes.
    arena.produce(keyed=False, payload={"seconds": 1.0}, rate=100.0, jobs=2 * len(old) * arena.size.concurrency)
    *first, last = old
    for worker in first:
        _retire(arena, worker)
    arena.produce(keyed=False, payload={"seconds": 2.0}, rate=100.0, jobs=3 * arena.size.concurrency)
    busy = (
        "select count(*) from queue_pg.jobs"
        " where state = 'running' and worker_id = %s and (payload ->> 'seconds')::float8 = 2"
    )
    arena.until(lambda: arena.postgres.execute(busy, (last.id,))[0][0], f"{last.id} has work", seconds=60)
    _retire(arena, last, twice=True)
    arena.hits["ended at once"] += 1
    arena.hits["handed back"] += b" hands back " in last.log.read_bytes()


def _retire(arena: Arena, worker: Worker, *, twice: bool = False) -> None:
    if worker.release is not None:
        # Up to 0.0.1 what the last claim brings is left to its leases.
        arena.fleet.disturbed.add(worker.id)
    if (code := arena.fleet.retire(worker, twice=twice)) != 0:
        arena.violate("L2", f"{worker.id} ended with {code}")
    arena.hits["orders to end"] += 1


def _await_all(arena: Arena) -> None:
    workers = list(arena.fleet.workers)
    arena.until(lambda: all(worker.serves for worker in workers), "all workers serve")
    if ended := [worker.id for worker in workers if worker.process.poll() is not None]:
        arena.violate("L2", f"{ended} ended instead of serving")


def _know_limited(arena: Arena) -> None:
    """Note which jobs of all applications count against the limit: those of other processes are known by their rows."""
    rows = arena.postgres.execute(
        "select (payload ->> 'n')::bigint from queue_pg.jobs where limit_key = %(key)s"
        " union all select (payload ->> 'n')::bigint from queue_pg.finished_jobs where limit_key = %(key)s",
        {"key": mixture.LIMIT},
    )
    numbers = {row[0] for row in rows}
    own, most = arena.caps[mixture.LIMIT]
    arena.caps[mixture.LIMIT] = (numbers | set(own), most)


# What somebody's long transaction has done before it does nothing for a long time.
BLOCKERS: Final = (
    "select count(*) from queue_pg.jobs",
    "select count(*) from queue_pg.all_jobs",
    "insert into queue_pg.jobs (kind, run_at) values ('nobody', 'tomorrow')",
    "lock table queue_pg.finished_jobs in row exclusive mode",
    "select count(*) from queue_pg.limits",
)


class _Meter(threading.Thread):
    """An application whose INSERTs are timed, one after the other; it rolls each back, and leaves nothing."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self.failure: BaseException | None = None
        self._dsn = dsn
        self._halt = threading.Event()

    def run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None) as connection:
                while not self._halt.wait(0.002):
                    begin = time.monotonic()
                    with connection.transaction(force_rollback=True):
                        connection.execute("insert into queue_pg.jobs (kind, run_at) values ('nobody', 'tomorrow')")
                    self.seconds.append(time.monotonic() - begin)
        except BaseException as error:
            self.failure = error

    def stop(self) -> list[float]:
        """Return how long each took; raises what went wrong."""
        self._halt.set()
        self.join(60)
        if self.failure is not None:
            raise self.failure
        return self.seconds


def migrate_under_load(arena: Arena) -> None:
    """F33: `migrate` meets long transactions of every kind, gives up, succeeds when they end, and nobody waits long."""
    arena.blames = True
    dsn = arena.postgres.dsn
    previous = _previous(arena)
    arena.fleet.environment = {**arena.fleet.environment, **LEASES}
    arena.fleet.release, arena.fleet.size = previous, WORKERS
    arena.fleet.fill()
    clients = [arena.produce_on(previous, form) for form in ("keyed", "plain")]
    arena.progress()
    meter = _Meter(dsn)
    meter.start()
    for blocker in itertools.islice(itertools.cycle(BLOCKERS), arena.size.hits):
        _give_up(arena, blocker)
    # The long transaction ends while `migrate` waits for its next try.
    with psycopg.connect(dsn) as holder:
        holder.execute(BLOCKERS[0].encode())
        tries: list[str] = []

        def busy(text: str) -> None:
            tries.append(text)
            holder.rollback()

        begin = time.monotonic()
        applied = schema.migrate(dsn, lock_timeout_seconds=LOCK_TIMEOUT_SECONDS, wait_seconds=180, on_busy=busy)
        arena.figures["migrate_s"] = round(time.monotonic() - begin, 3)
    arena.hits["tries until it was free"] = len(tries)
    arena.hits["migrations"] = sum(not name.startswith("functions/") for name in applied)
    arena.progress()
    for _ in range(arena.size.hits):
        _apply_functions_again(arena)
    arena.progress()
    for client in clients:
        client.stop()
    _judge(arena, meter.stop())
    with schema.connect(dsn) as connection:
        differences = [line for line in schema.verify(connection) if line.startswith(("-", "+")) and len(line) > 40]
        if differences := [line for line in differences if "faults.note_" not in line]:
            arena.violate("S3", f"the schema is not the released one: {differences[:5]}")


def _give_up(arena: Arena, blocker: str) -> None:
    """Migrate against a transaction that does not end: it has to be named, and nothing to be changed."""
    with psycopg.connect(arena.postgres.dsn, application_name="the report") as holder:
        holder.execute(blocker.encode())
        with schema.connect(arena.postgres.dsn) as connection:
            before = schema.plan(connection).pending
        try:
            applied = schema.migrate(arena.postgres.dsn, lock_timeout_seconds=LOCK_TIMEOUT_SECONDS)
            arena.violate("S3", f"{applied} were applied while a transaction was in the way: {blocker}")
        except MigrationBusy as error:
            if f"process {holder.info.backend_pid}, the report, idle in transaction" not in str(error):
                arena.violate("L2", f"who is in the way is not named: {error}")
        with schema.connect(arena.postgres.dsn) as connection:
            if schema.plan(connection).pending != before:
                arena.violate("S3", "a migration that was given up has left something")
        holder.rollback()
    arena.hits["given up"] += 1
    arena.progress()


def _apply_functions_again(arena: Arena) -> None:
    """Replace every function under load, as each release does."""
    arena.postgres.execute("update queue_pg.migrations set checksum = 'older' where name like 'functions/%'")
    applied = schema.migrate(arena.postgres.dsn, lock_timeout_seconds=LOCK_TIMEOUT_SECONDS, wait_seconds=180)
    arena.hits["functions replaced"] += len(applied)


def _judge(arena: Arena, seconds: Sequence[float]) -> None:
    arena.hits["inserts timed"] = len(seconds)
    arena.figures["insert_p50_s"] = round(statistics.median(seconds), 4)
    arena.figures["insert_max_s"] = round(max(seconds), 3)
    arena.figures["lock_timeout_s"] = LOCK_TIMEOUT_SECONDS
    arena.figures["insert_p999_s"] = round(percentile(seconds, 0.999), 3)
    if arena.size.hits >= MANY and arena.figures["insert_p999_s"] > LOCK_TIMEOUT_SECONDS + ITSELF_SECONDS:
        arena.violate("L2", f"one INSERT in a thousand waited for {arena.figures['insert_p999_s']} s or more")
    if max(seconds) > LOCK_TIMEOUT_SECONDS + MARGIN_SECONDS:
        arena.violate("L2", f"an INSERT waited for {max(seconds):.1f} s, lock_timeout is {LOCK_TIMEOUT_SECONDS} s")
