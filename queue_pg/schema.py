"""Bring the database schema to what this code needs, and refuse to work where the two do not fit.

`migrations/NNNN_name.sql` are applied once, in order, and are frozen by a checksum. `migrations/functions/*.sql` hold
the SQL API; a file is applied again whenever its content changed. Everything that is pending runs in one transaction
under one advisory lock, so of many starters exactly one applies and the others find nothing to do; a failure leaves
the database as it was. One transaction, and not one for each file, because tables and the functions on them change
together: whoever works meanwhile sees the old release or the new one, never something in between.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import unified_diff
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import psycopg
from psycopg import sql

from queue_pg import migration_locks
from queue_pg.connections import SAFE_PATH, SESSION_OPTIONS, LibraryConnection, connect_arguments
from queue_pg.errors import (
    DatabaseUnavailable,
    MigrationBusy,
    MigrationDiverged,
    NotMigrated,
    SchemaError,
    SchemaTooNew,
)
from queue_pg.statements import statement

DEFAULT_LOCK_TIMEOUT_SECONDS = 3.0
# A migration may rewrite what is large; views keep the operators they were made with.
MIGRATION_OPTIONS = f"{SAFE_PATH} -c statement_timeout=1h"
MINIMUM_SERVER_VERSION = 140000

Connection = psycopg.Connection[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `name` is `0001_initial` or `functions/claim`."""

    name: str
    text: str

    @property
    def repeatable(self) -> bool:
        return self.name.startswith("functions/")

    @property
    def breaking(self) -> bool:
        return re.search(r"^-- breaking: yes$", self.text, re.MULTILINE) is not None

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """One row of `queue_pg.migrations`."""

    name: str
    checksum: str
    breaking: bool
    version: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What stands between the database and this code."""

    pending: list[Migration]
    unknown: list[Applied]
    diverged: list[str]

    @property
    def up_to_date(self) -> bool:
        return not self.pending and not self.diverged


@cache
def package_version() -> str:
    """The version of the installed distribution; `0` in a checkout that is not installed."""
    try:
        return version("queue-pg")
    except PackageNotFoundError:
        return "0"


def migrations_root() -> Traversable:
    """Where the migrations are: inside the wheel, else beside the package in a checkout."""
    packaged = files("queue_pg") / "_migrations"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "migrations"


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of this code in the order of application: numbered ones first, then functions."""
    root = migrations_root()
    numbered = [entry for entry in root.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", entry.name)]
    functions = [entry for entry in (root / "functions").iterdir() if entry.name.endswith(".sql")]
    return (
        *(Migration(e.name.removesuffix(".sql"), e.read_text("utf-8")) for e in sorted(numbered, key=lambda e: e.name)),
        *(
            Migration(f"functions/{e.name.removesuffix('.sql')}", e.read_text("utf-8"))
            for e in sorted(functions, key=lambda e: e.name)
        ),
    )


def plan(conn: Connection) -> Plan:
    """Compare this code's migrations with those applied; reads only."""
    applied = {row.name: row for row in _applied(conn)}
    known = {migration.name for migration in migrations()}
    unknown = [row for row in applied.values() if row.name not in known]
    # The functions of a newer release must survive the start of an older one during a rolling deploy. A migration that
    # we do not know is newer than this code whatever the versions say: those of two builds may be equal.
    functions_are_newer = any(_release(row.version) > _release(package_version()) for row in applied.values()) or any(
        not row.name.startswith("functions/") for row in unknown
    )
    pending: list[Migration] = []
    diverged: list[str] = []
    for migration in migrations():
        row = applied.get(migration.name)
        if row is None:
            pending.append(migration)
        elif row.checksum != migration.checksum and not migration.repeatable:
            diverged.append(migration.name)
        elif row.checksum != migration.checksum and not functions_are_newer:
            pending.append(migration)
    return Plan(pending, unknown, diverged)


def check(conn: Connection) -> None:
    """Raise NotMigrated, SchemaTooNew or MigrationDiverged unless this code can work on the database."""
    _require_server_version(conn)
    _refuse(found := plan(conn))
    if found.pending:
        raise NotMigrated([migration.name for migration in found.pending])


def migrate(
    dsn: str,
    *,
    lock_timeout_seconds: float = DEFAULT_LOCK_TIMEOUT_SECONDS,
    wait_seconds: float = 0.0,
    on_busy: Callable[[str], None] | None = None,
) -> list[str]:
    """Apply what is pending, all or nothing, and return the names applied.

    Submissions wait for it no longer than `lock_timeout_seconds` and the time that the changes take. When the locks are
    not had within that, everything is given up and tried again after a pause, for `wait_seconds` in all; `on_busy` is
    told of each time. Raises MigrationBusy in the end (nothing was changed: try again), and SchemaError for everything
    else that stands in the way.
    """
    deadline = time.monotonic() + wait_seconds
    with connect(dsn, options=MIGRATION_OPTIONS) as conn:
        _require_server_version(conn)
        while True:
            try:
                return _migrate_once(conn, lock_timeout_seconds)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                busy = f"No lock within {lock_timeout_seconds:g} s: {migration_locks.describe_holder(conn)}."
                pause = migration_locks.pause_seconds(lock_timeout_seconds)
                if time.monotonic() + pause > deadline:
                    raise MigrationBusy(
                        busy, hint="Nothing was changed; run it again, or look for the holder in pg_stat_activity."
                    ) from error
            if on_busy is not None:
                on_busy(f"{busy} Trying again in {pause:.1f} s")
            time.sleep(pause)


def _migrate_once(conn: Connection, lock_timeout_seconds: float) -> list[str]:
    with conn.transaction():
        conn.execute(
            statement("migration_settings"), {"lock_timeout_ms": str(max(1, int(lock_timeout_seconds * 1000)))}
        )
        conn.execute(statement("migration_lock"))
        conn.execute(statement("migration_table"))
        _refuse(found := plan(conn))
        if found.pending:
            migration_locks.take(
                conn, migration_locks.names_touched((one.text, one.repeatable) for one in found.pending)
            )
        for migration in found.pending:
            _apply(conn, migration)
        if found.pending:
            # Partitions for what finishes first, before any process maintains.
            conn.execute(statement("maintain_history"))
    return [migration.name for migration in found.pending]


def render(pending: Sequence[Migration]) -> str:
    """The script that `migrate` would run, for people who apply it by hand with psql."""
    # As in migrate(): functions refer to each other, and the files are applied in the order of their names.
    timeout = f"set local lock_timeout = '{DEFAULT_LOCK_TIMEOUT_SECONDS:g}s';"
    parts = ["begin;", timeout, "set local check_function_bodies = off;", _text("migration_table")]
    for migration in pending:
        record = _text("migration_record")
        for name, value in _record(migration).items():
            record = record.replace(f"%({name})s", sql.Literal(value).as_string())
        parts += [f"-- {migration.name}", migration.text.rstrip(), record]
    return "\n\n".join([*parts, _text("maintain_history"), "commit;", ""])


def verify(conn: Connection) -> list[str]:
    """Differences between the live catalog and the schema this code was released with, as diff lines; empty if none."""
    check(conn)
    expected = (migrations_root() / "schema.snapshot").read_text("utf-8").splitlines()
    return list(unified_diff(expected, snapshot(conn), "released", "database", lineterm="", n=0))


def snapshot(conn: Connection) -> list[str]:
    """Describe the schema in one sorted line per object, the same on every supported version of Postgres."""
    return [str(row[0]) for row in conn.execute(statement("schema_snapshot"))]


@contextmanager
def connect(dsn: str, *, options: str = SESSION_OPTIONS) -> Generator[Connection]:
    """A connection for migrations and looks at them; autocommit, no prepared statements (safe behind a pooler)."""
    try:
        arguments = connect_arguments(dsn, application="queue-pg migrate", options=options)
        conn = LibraryConnection.connect(**arguments)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(
            f"Cannot connect to Postgres: {' '.join(str(error).split())}",
            hint="Check DATABASE_URL and that the server runs.",
        ) from error
    with conn:
        yield conn


def _applied(conn: Connection) -> list[Applied]:
    row = conn.execute(statement("migration_table_exists")).fetchone()
    if row is None or not row[0]:
        return []
    return [
        Applied(str(name), str(checksum), bool(breaking), str(release))
        for name, checksum, breaking, release in conn.execute(statement("migrations_applied"))
    ]


def _apply(conn: Connection, migration: Migration) -> None:
    try:
        conn.execute(migration.text.encode())
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        raise
    except psycopg.Error as error:
        raise SchemaError(f"Migration {migration.name} failed: {error}", hint="Nothing was changed.") from error
    conn.execute(statement("migration_record"), _record(migration))


def _record(migration: Migration) -> dict[str, str | bool]:
    return {
        "name": migration.name,
        "checksum": migration.checksum,
        "breaking": migration.breaking,
        "version": package_version(),
    }


def _text(name: str) -> str:
    return statement(name).decode().rstrip().rstrip(";") + ";"


def _refuse(found: Plan) -> None:
    if found.diverged:
        raise MigrationDiverged(found.diverged[0])
    breaking = [row.name for row in found.unknown if row.breaking]
    if breaking:
        raise SchemaTooNew(breaking)


def _require_server_version(conn: Connection) -> None:
    if conn.info.server_version < MINIMUM_SERVER_VERSION:
        raise SchemaError(
            f"PostgreSQL {conn.info.server_version // 10000} is too old; 14 is the oldest supported.",
            hint="Upgrade the server.",
        )


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
