"""What `queue-pg doctor` looks at. Each check bounds what it counts and says what to do; only `--fix` writes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Literal, Self

import psycopg
from psycopg.rows import dict_row

from queue_pg import horizon, limit_store_sync, schema, store_sync
from queue_pg.cli.text import shorten
from queue_pg.connections import connect
from queue_pg.durability import weakness
from queue_pg.errors import SchemaError

Status = Literal["ok", "warn", "fail", "skip"]

NOTIFY_SECONDS = 5.0
MAX_CLOCK_SKEW = timedelta(seconds=5)
NOTIFY_USAGE_WARN = 0.1
NOTIFY_USAGE_FAIL = 0.5
SPARE_CONNECTIONS = 5
SHOWN_DIFFERENCES = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `hint` says what to do when `status` is warn or fail."""

    check: str
    status: Status
    message: str
    hint: str | None = None


REPAIR_HINT = "See all: queue-pg migrate --verify. To mend it: docs/cli.md, 'A schema that differs'."


@dataclass(frozen=True, slots=True)
class SchemaDifferences:
    """What the database lacks of the released schema, and what it has beside it; a changed object is in both."""

    missing: list[str]
    added: list[str]

    @classmethod
    def of(cls, lines: list[str]) -> Self:
        """Read the lines of `schema.verify`, a diff without context."""
        changes = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
        return cls(
            [line[1:] for line in changes if line.startswith("-")],
            [line[1:] for line in changes if line.startswith("+")],
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.added)

    @property
    def broken(self) -> bool:
        """Whether something that was released is missing or changed."""
        return bool(self.missing)

    @property
    def message(self) -> str:
        """Say what differs, naming the first few objects."""
        parts = [
            f"{word} {_first(lines)}"
            for word, lines in (("missing or changed:", self.missing), ("added:", [] if self.missing else self.added))
            if lines
        ]
        return f"The schema differs from the released one; {'; '.join(parts)}."


def _first(lines: list[str]) -> str:
    # Up to the comment, which tells nothing about what is wrong.
    shown = [shorten(line.partition(": ")[0], 80) for line in lines[:SHOWN_DIFFERENCES]]
    return ", ".join(shown) + (f" and {len(lines) - len(shown)} more" if len(lines) > len(shown) else "")


Connection = psycopg.Connection[tuple[Any, ...]]


@cache
def _statement(name: str) -> bytes:
    return (files("queue_pg.cli") / "sql" / f"{name}.sql").read_bytes()


def _rows(connection: Connection, name: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_statement(name), params).fetchall()


def check_database(connection: Connection) -> list[Finding]:
    """Version, role, durability and clock of the server."""
    info = connection.info
    asked = datetime.now(UTC)
    [row] = _rows(connection, "doctor_server")
    answered = datetime.now(UTC)
    version = f"PostgreSQL {info.server_version // 10000}.{info.server_version % 10000}"
    where = f"{version} on {info.host or 'localhost'}:{info.port}"
    found = [Finding("database", "ok", f"{where}, database {info.dbname}, role {row['role']}")]
    if info.server_version < schema.MINIMUM_SERVER_VERSION:
        found.append(Finding("version", "fail", f"{where} is too old.", "Upgrade to PostgreSQL 14 or later."))
    if row["in_recovery"]:
        hint = "Connect to the primary: name all hosts and add target_session_attrs=read-write to DATABASE_URL."
        found.append(Finding("primary", "fail", "This server is a read-only standby.", hint))
    found += [_durability(row), _clock(row["clock"], asked, answered), _connections(row)]
    if not row["autovacuum"]:
        found.append(
            Finding("autovacuum", "warn", "Autovacuum is off; the queue's tables will bloat.", "Set autovacuum = on.")
        )
    return found


def _durability(row: Mapping[str, Any]) -> Finding:
    settings = {name: row[name] for name in ("fsync", "full_page_writes", "synchronous_commit")}
    if (found := weakness(**settings)) is not None:
        return Finding("durability", "warn", found.text, found.advice)
    return Finding("durability", "ok", "fsync, full_page_writes and synchronous_commit are on")


def _clock(clock: datetime, asked: datetime, answered: datetime) -> Finding:
    # The server read its clock somewhere between question and answer.
    skew = max(asked - clock, clock - answered, timedelta())
    if skew > MAX_CLOCK_SKEW:
        return Finding(
            "clock",
            "warn",
            f"The clocks of this machine and the server differ by {skew.total_seconds():.0f} s.",
            "Only the server's clock decides about jobs; still, run NTP on both.",
        )
    return Finding("clock", "ok", f"differs from the server's by less than {max(skew.total_seconds(), 1):.0f} s")


def _connections(row: Mapping[str, Any]) -> Finding:
    used, limit = row["connections"], row["max_connections"]
    if limit - used < SPARE_CONNECTIONS:
        hint = "Raise max_connections, lower POOL_SIZE, or put PgBouncer in front."
        return Finding("connections", "warn", f"{used} of {limit} connections are in use.", hint)
    return Finding("connections", "ok", f"{used} of {limit} in use")


def check_schema(connection: Connection) -> list[Finding]:
    """Whether code and schema fit, and whether this role may use the schema."""
    try:
        schema.check(connection)
        found = _differences(connection)
    except SchemaError as error:
        return [Finding("schema", "fail", error.message, error.hint)]
    except psycopg.errors.InsufficientPrivilege as error:
        return [Finding("schema", "fail", f"This role may not read the schema: {_one_line(error)}", "See docs/sql.md.")]
    if found.status == "fail":
        return [found]  # the privileges are those on tables and functions that may not be there
    missing = [str(row["what"]) for row in _rows(connection, "doctor_privileges")]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return [
            Finding("privileges", "fail", f"This role lacks {shown}.", "Grant it, or connect as the schema's owner.")
        ]
    return [found, Finding("privileges", "ok", "all there")]


def _differences(connection: Connection) -> Finding:
    """Compare the catalog with the released schema. What is missing breaks something; what was added may be meant."""
    version = schema.package_version()
    if _rows(connection, "doctor_newer_release", {"version": version}):
        # During a rolling deploy the old release works on the new schema, of which it has no description.
        return Finding("schema", "ok", f"was migrated by a newer release, and queue-pg {version} can use it")
    try:
        differences = SchemaDifferences.of(schema.verify(connection))
    except psycopg.errors.InsufficientPrivilege:
        return Finding("schema", "ok", f"its migrations fit queue-pg {version}; this role may not compare it in detail")
    except psycopg.errors.UndefinedTable as error:
        return Finding("schema", "fail", f"It is broken: {_one_line(error)}", REPAIR_HINT)
    if not differences:
        return Finding("schema", "ok", f"fits queue-pg {version}")
    return Finding("schema", "fail" if differences.broken else "warn", differences.message, REPAIR_HINT)


def check_notify(connection: Connection, dsn: str, *, enabled: bool) -> list[Finding]:
    """Whether a notification arrives, and whether the server's queue of them is being emptied."""
    if not enabled:
        return [Finding("notify", "skip", "QUEUE_PG_NOTIFY=off: workers poll")]
    [server] = _rows(connection, "doctor_server")
    found = [_notify_round_trip(connection, dsn)]
    usage = float(server["notify_usage"])
    if usage > NOTIFY_USAGE_WARN:
        found.append(
            Finding(
                "notify queue",
                "fail" if usage > NOTIFY_USAGE_FAIL else "warn",
                f"The server's notification queue is {usage:.0%} full; when it is full, commits fail.",
                "Find the LISTENing session with the oldest transaction in pg_stat_activity and end it.",
            )
        )
    return found


def _notify_round_trip(connection: Connection, dsn: str) -> Finding:
    token = secrets.token_hex(8)
    with connect(dsn, application="queue-pg doctor") as listener:
        listener.execute(_statement("doctor_listen"))
        connection.execute(_statement("doctor_notify"), {"token": token})
        for notification in listener.notifies(timeout=NOTIFY_SECONDS):
            if notification.payload == token:
                return Finding("notify", "ok", "LISTEN/NOTIFY works")
    return Finding(
        "notify",
        "fail",
        f"A notification did not arrive within {NOTIFY_SECONDS:g} s.",
        "Behind PgBouncer in transaction mode set QUEUE_PG_NOTIFY=off, or connect directly.",
    )


def check_work(connection: Connection, *, host: str | None = None) -> list[Finding]:
    """Whether live workers are there, and whether anybody takes back leases and starts due jobs."""
    [row] = _rows(connection, "doctor_work", {"host": host})
    live, late, overdue, kept = (
        int(row[name]) for name in ("live_workers", "expired_leases", "overdue_jobs", "default_partition_rows")
    )
    at = f" on host {host}" if host else ""
    found = [Finding("workers", "ok", f"{live} live{at}")]
    if not live:
        found = [Finding("workers", "warn", f"No live worker{at}: jobs wait.", "Start one with: queue-pg worker")]
    hint = "Start a worker, or maintenance alone: queue-pg reaper"
    if late:
        found.append(
            Finding("leases", "fail", f"{_bounded(late)} lease(s) expired and nobody takes the jobs back.", hint)
        )
    if overdue:
        found.append(Finding("due jobs", "fail", f"{_bounded(overdue)} job(s) are due and nobody starts them.", hint))
    if kept:
        message = f"{_bounded(kept)} finished job(s) are in the default partition, which is never dropped whole."
        found.append(Finding("history", "warn", message, f"Maintenance was late. {hint}"))
    return found


def check_limits(connection: Connection, *, fix: bool = False) -> list[Finding]:
    """Whether limits have the right counts; with `fix`, count anew what does not."""
    wrong = [_miscounted(row) for row in _rows(connection, "doctor_limits")]
    if not wrong:
        return [Finding("limits", "ok", "their counts are right")]
    if not fix:
        return [
            Finding("limits", "fail", f"{_first_of(wrong)}: rows were changed by hand.", "Run: queue-pg doctor --fix")
        ]
    # Again, each under its lock.
    fixed = [
        f"{scope} {shorten(name, 60)} of {org} counted {was}, {running} run"
        for org, scope, name, was, running in limit_store_sync.recount_limits(connection)
    ]
    return [Finding("limits", "ok", f"counted anew: {_first_of(fixed)}" if fixed else "their counts are right again")]


def _miscounted(row: Mapping[str, Any]) -> str:
    return f"{row['scope']} {shorten(row['name'], 60)} of {row['org']} counts {row['was']}, {row['running']} run"


def _first_of(found: list[str]) -> str:
    more = len(found) - SHOWN_DIFFERENCES
    return "; ".join(found[:SHOWN_DIFFERENCES]) + (f"; and {_bounded(more)} more" if more > 0 else "")


def check_horizon(connection: Connection) -> list[Finding]:
    """Whether anybody keeps dead rows of the queue from being removed."""
    holder = store_sync.horizon(connection)
    if holder is None:
        return [Finding("horizon", "ok", "nothing keeps dead rows from being removed")]
    message = horizon.describe(holder)
    # An age that is not known is taken for old.
    if not horizon.matters(holder, horizon.TOLD_SECONDS if holder.age_seconds is None else holder.age_seconds):
        return [Finding("horizon", "ok", message)]
    return [Finding("horizon", "warn", message, f"{horizon.advice(holder)} See docs/operations.md.")]


def _bounded(count: int) -> str:
    return "1,000 or more" if count >= 1000 else str(count)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
