"""Database errors into errors.py: one table from SQLSTATE to what is raised.

Works on psycopg's errors and, for statements on a caller's connection, on what SQLAlchemy, Django, psycopg2 and
asyncpg make of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from queue_pg.errors import (
    ArtifactCorrupt,
    ArtifactNotFound,
    ArtifactTooLarge,
    BatchNotFound,
    DatabaseUnavailable,
    InvalidArtifact,
    InvalidBatchTransition,
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    LeaseLost,
    QueueDraining,
    QueuePgError,
    ScheduleExists,
    ScheduleNotFound,
    SchemaError,
    TemplateNotFound,
    UniqueKeyConflict,
)
from queue_pg.payloads import sanitise_text

# Longest first: `jobs_max_attempts_range` is about max_attempts, not about a column `max`.
_COLUMNS: Final = (
    "created_at", "expires_at", "lease_expires_at", "limit_key", "max_attempts", "metadata", "payload", "priority",
    "retry_base", "retry_cap", "retention", "run_at", "tags", "timeout", "traceparent", "unique_key",
    "cost", "data", "kind", "lease", "org", "queue",
)  # fmt: skip
_RULES: Final = {
    "kind": "must have 1 to 200 characters",
    "queue": "must have 1 to 200 characters",
    "org": "must have 1 to 200 characters",
    "unique_key": "must have 1 to 255 characters",
    "limit_key": "must have 1 to 255 characters",
    "cost": "must be 0 or more",
    "traceparent": "must have at most 255 characters",
    "max_attempts": "must be from 1 to 1,000",
    "timeout": "must be from 1 ms to 365 days",
    "run_at": "must be a time within the years 1 to 9998",
    "expires_at": "must be a time within the years 1 to 9998",
    "metadata": "must be an object of at most 64 KiB",
    "payload": "must be at most 32 MiB",
    "data": "must be an object of at most 64 KiB",
    "tags": "must be at most 64 texts of 16 KiB in all",
}
_AWAY_HINT: Final = "Check that Postgres runs and that DATABASE_URL is right, then try again."
_UNKNOWN_OUTCOME: Final = "the outcome is unknown: the job may or may not have been stored"


@dataclass(frozen=True, slots=True)
class _Facts:
    """What an error says, whichever driver raised it."""

    sqlstate: str | None
    message: str
    detail: str | None
    constraint: str | None
    column: str | None
    # Where in Postgres's source it was raised: the same in all languages.
    routine: str | None

    def details(self) -> dict[str, Any]:
        try:
            found: Any = json.loads(self.detail or "")
        except ValueError:
            return {}
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def translate_error(error: BaseException, *, unsafe_to_repeat: bool = False) -> QueuePgError | None:
    """Return what to raise for a database error, None when it is none.

    `unsafe_to_repeat`: the statement submitted work without a unique key, so that a lost connection must be reported
    as an unknown outcome.
    """
    if isinstance(error, QueuePgError):
        return error
    if isinstance(error, PoolTimeout | PoolClosed | TooManyRequests):
        return DatabaseUnavailable(f"No connection to Postgres: {error}.", hint=_AWAY_HINT)
    facts = _facts(error)
    if facts is None:
        return None
    made = _BY_SQLSTATE.get(facts.sqlstate or "")
    if made is not None:
        return made(facts)
    if _connection_lost(error, facts):
        message = f"The connection to Postgres failed: {facts.message}."
        if unsafe_to_repeat and facts.sqlstate not in _NOT_EXECUTED:
            hint = "Look for the job before you submit again, or give a unique_key: then repeating is safe."
            return DatabaseUnavailable(f"The connection to Postgres was lost; {_UNKNOWN_OUTCOME}.", hint=hint)
        return DatabaseUnavailable(message, hint=_AWAY_HINT)
    return QueuePgError(f"Postgres refused the statement: {facts.message}")


@contextmanager
def translated(*, unsafe_to_repeat: bool = False) -> Generator[None]:
    """Raise errors of the database as errors of this project; let all others pass."""
    try:
        yield
    except Exception as error:
        made = translate_error(error, unsafe_to_repeat=unsafe_to_repeat)
        if made is None or made is error:
            raise
        raise made from error


# --- one function for each error --------------------------------------------------------------------------------------


def _not_found(facts: _Facts) -> QueuePgError:
    details = facts.details()
    if "template" in details:
        return TemplateNotFound(str(details["template"]), details.get("version"))
    if "batch_id" in details:
        return BatchNotFound(_uuid(details["batch_id"]) or facts.message)
    return JobNotFound(_uuid(details.get("id")) or facts.message)


def _wrong_state(facts: _Facts) -> QueuePgError:
    details = facts.details()
    action, state = str(details.get("action", "change")), str(details.get("state", "in another state"))
    if "batch_id" in details:
        return InvalidBatchTransition(_uuid(details["batch_id"]) or "", action, state)
    return InvalidTransition(_uuid(details.get("id")) or "", action, state, reason=details.get("reason"))


def _lease_lost(facts: _Facts) -> QueuePgError:
    details = facts.details()
    return LeaseLost(_uuid(details.get("id")) or "", details.get("state"))


def _key_conflict(facts: _Facts) -> QueuePgError:
    details = facts.details()
    if "unique_key" not in details:
        return QueuePgError(f"Postgres refused the statement: {facts.message}")
    return UniqueKeyConflict(str(details["unique_key"]), _uuid(details.get("id")))


def _draining(facts: _Facts) -> QueuePgError:
    return QueueDraining(str(facts.details().get("queue", "")))


def _no_schedule(facts: _Facts) -> QueuePgError:
    return ScheduleNotFound(str(facts.details().get("name", "")))


def _schedule_exists(facts: _Facts) -> QueuePgError:
    return ScheduleExists(str(facts.details().get("name", "")))


def _invalid(facts: _Facts) -> QueuePgError:
    details = facts.details()
    return InvalidJob(str(details.get("field", "job")), str(details.get("reason", facts.message)))


def _artifact_refused(facts: _Facts) -> QueuePgError:
    details = facts.details()
    return InvalidArtifact(str(details.get("field", "artifact")), str(details.get("reason", facts.message)))


def _artifact_too_large(facts: _Facts) -> QueuePgError:
    details = facts.details()
    field, reason = str(details.get("field", "artifact")), str(details.get("reason", facts.message))
    return ArtifactTooLarge(field, reason, details.get("limit"))


def _artifact_not_found(facts: _Facts) -> QueuePgError:
    details = facts.details()
    return ArtifactNotFound(_uuid(details.get("id")) or "", str(details.get("name", "")))


def _artifact_corrupt(facts: _Facts) -> QueuePgError:
    details = facts.details()
    return ArtifactCorrupt(str(details.get("sha256", "")), str(details.get("reason", facts.message)))


def _check(facts: _Facts) -> QueuePgError:
    constraint = facts.constraint or ""
    table, _, rest = constraint.partition("_")
    field = next((name for name in _COLUMNS if rest.startswith(f"{name}_")), table or "job")
    if rest.endswith("_numbers"):
        return InvalidJob(field, "holds a number that is too long written out")
    return InvalidJob(field, _RULES.get(field, f"breaks the rule {constraint}"))


def _not_null(facts: _Facts) -> QueuePgError:
    return InvalidJob(facts.column or "job", "must be given")


def _unstorable(facts: _Facts) -> QueuePgError:
    return InvalidJob("job", f"cannot be stored: {facts.message}")


def _no_schema(facts: _Facts) -> QueuePgError:
    return SchemaError(f"The database is not as this version needs it: {facts.message}.", hint="Run: queue-pg migrate")


def _no_right(facts: _Facts) -> QueuePgError:
    hint = "Grant this role USAGE on schema queue_pg, and EXECUTE and SELECT on what is in it."
    return QueuePgError(f"Postgres does not allow this: {facts.message}", hint=hint)


def _failed_transaction(facts: _Facts) -> QueuePgError:
    hint = "Roll the caller's transaction back; an earlier statement in it has failed."
    return QueuePgError(f"Postgres refused the statement: {facts.message}", hint=hint)


def _too_slow(facts: _Facts) -> QueuePgError:
    return DatabaseUnavailable(f"Postgres gave the statement up: {facts.message}.", hint="Try again later.")


# Where rows are compared with what a statement was read to give.
_COMPARERS: Final = frozenset(
    {
        "tupledesc_match", "CheckVarSlotCompatibility", "ExecEvalWholeRowVar", "RevalidateCachedQuery",
        "convert_tuples_by_position", "build_attrmap_by_position", "exec_stmt_return_query",
    }
)  # fmt: skip


def _changed_meanwhile(facts: _Facts) -> QueuePgError:
    # A statement was read by Postgres, waited for the lock of a migration, and went on with functions that answer with
    # other columns.
    if facts.routine not in _COMPARERS:
        return QueuePgError(f"Postgres refused the statement: {facts.message}")
    hint = "Nothing was stored or changed: try again. If it stays so, run: queue-pg migrate --verify"
    return DatabaseUnavailable(f"The schema was changed while the statement ran: {facts.message}.", hint=hint)


_BY_SQLSTATE: Final[dict[str, Callable[[_Facts], QueuePgError]]] = {
    "QP001": _not_found,
    "QP002": _wrong_state,
    "QP003": _lease_lost,
    "QP004": _key_conflict,
    "QP005": _invalid,
    "QP006": _draining,
    "QP020": _no_schedule,
    "QP021": _schedule_exists,
    "QP030": _artifact_refused,
    "QP031": _artifact_too_large,
    "QP032": _artifact_not_found,
    "QP033": _artifact_corrupt,
    "23505": _key_conflict,
    "23514": _check,
    "23502": _not_null,
    "22P05": _unstorable,  # \u0000 in jsonb
    "22P02": _unstorable,  # not JSON to Postgres, such as a lone surrogate
    "22021": _unstorable,  # NUL in text
    "22003": _unstorable,  # a number out of range
    "22007": _unstorable,  # not a time
    "22008": _unstorable,  # a time out of range
    "54000": _unstorable,  # a limit of Postgres, such as jsonb elements of 256 MB
    "54001": _unstorable,  # nested too deep for Postgres
    "3F000": _no_schema,
    "42P01": _no_schema,
    "42703": _no_schema,
    "42704": _no_schema,
    "42883": _no_schema,
    "42501": _no_right,
    "25P02": _failed_transaction,
    "57014": _too_slow,  # statement_timeout or an administrator's cancel
    "55P03": _too_slow,
    "40001": _too_slow,
    "40P01": _too_slow,
    "42804": _changed_meanwhile,  # a function answers with other columns than it did
    "0A000": _changed_meanwhile,  # a prepared statement's columns are others now
}
# Raised while connecting or before the statement ran.
_NOT_EXECUTED: Final = frozenset({"28000", "28P01", "3D000", "53300", "57P03", "25006", "08001", "08004"})


def _connection_lost(error: BaseException, facts: _Facts) -> bool:
    state = facts.sqlstate
    if state is not None:
        return state[:2] in ("08", "53", "57", "58", "28", "3D") or state in ("25006", "25P03", "25P04", "XX000")
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or type(error).__name__ in (
        "OperationalError",
        "InterfaceError",
    )


def _facts(error: BaseException) -> _Facts | None:
    """Return what a database error says, looking behind the wrappers of SQLAlchemy (`orig`) and Django (cause)."""
    origin: Any = error
    for _ in range(4):
        if isinstance(origin, psycopg.Error):
            break
        inner = getattr(origin, "orig", None) or origin.__cause__
        if inner is None or isinstance(getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None), str):
            break
        origin = inner
    sqlstate = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    if not isinstance(origin, psycopg.Error) and not isinstance(sqlstate, str):
        return None
    diagnostics = getattr(origin, "diag", None)
    # asyncpg's error carries its fields itself, and SQLAlchemy's adapter hides it as a cause.
    fields = origin if diagnostics is not None or hasattr(origin, "detail") else (origin.__cause__ or origin)
    # libpq's own errors go on with advice such as "Is the server running?"
    message = getattr(diagnostics, "message_primary", None) or str(origin).strip().partition("\n")[0]
    return _Facts(
        sqlstate=sqlstate,
        message=sanitise_text(message.strip().rstrip("."), 1000),
        detail=getattr(diagnostics, "message_detail", None) or getattr(fields, "detail", None),
        constraint=getattr(diagnostics, "constraint_name", None) or getattr(fields, "constraint_name", None),
        column=getattr(diagnostics, "column_name", None) or getattr(fields, "column_name", None),
        routine=getattr(diagnostics, "source_function", None) or getattr(fields, "routine", None),
    )


def _uuid(value: Any) -> UUID | None:
    try:
        return UUID(str(value))
    except ValueError:
        return None
