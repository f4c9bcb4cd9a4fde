"""What callers give to `Queue`, checked before Postgres is asked; every refusal names the argument."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

from psycopg.conninfo import make_conninfo

from queue_pg.dsn import normalise_dsn
from queue_pg.errors import BatchNotFound, ConfigError, InvalidArtifact, InvalidJob, JobNotFound
from queue_pg.models import Job, JobState, Page
from queue_pg.payloads import encode_json, error_object, sanitise_text
from queue_pg.submission import MAX_ATTEMPTS, seconds

MAX_PAGE: Final = 1_000
MAX_EVENT_NUMBER: Final = 2**31 - 1
_LONGEST: Final = timedelta(days=3_650)
_MAX_SUBTASK_BYTES: Final = 256 * 1024  # far more than a subtask may have; bounds what is sent
_LEASE: Final = (timedelta(milliseconds=100), timedelta(days=1))


def dsn_of(dsn: str | None, pool: Any) -> str:
    """Return the address to use: the one given, else the pool's, else that of the settings."""
    if dsn is not None:
        return normalise_dsn(dsn)
    if pool is not None:
        given: dict[str, Any] = {} if callable(pool.kwargs) else dict(pool.kwargs or {})
        names = {"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"}
        return make_conninfo(str(pool.conninfo), **{key: value for key, value in given.items() if key not in names})
    return _configured_dsn()


def _configured_dsn() -> str:
    """Return DATABASE_URL, else the address of the embedded server if it runs."""
    # Imported here: who gives an address needs neither settings nor an embedded server.
    from queue_pg.settings import Settings

    settings = Settings.load()
    if settings.database_url is not None:
        return settings.database_url
    from queue_pg.embedded import EmbeddedPostgres

    running = EmbeddedPostgres(settings.data_dir).running()
    if running is None:
        raise ConfigError(
            "No database is given, and no embedded one runs here.",
            setting="DATABASE_URL",
            hint="Set DATABASE_URL, or start one with: queue-pg dev",
        )
    return running


def job_id(value: UUID | str) -> UUID:
    """Return the id as UUID; what is no UUID is the id of no job."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise JobNotFound(sanitise_text(value, 100)) from None


def batch_id(value: UUID | str) -> UUID:
    """Return the id as UUID; what is no UUID is the id of no batch."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise BatchNotFound(sanitise_text(value, 100)) from None


def filter_id(field: str, value: UUID | str | None) -> UUID | None:
    if value is None or isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except ValueError:
        raise InvalidJob(field, "must be a UUID") from None


def lease_token(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InvalidJob("lease_token", "must be the integer that the claim gave")
    return value


def event_number(field: str, value: Any) -> int:
    """Return the number of an event; 0 stands before the first."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_EVENT_NUMBER:
        raise InvalidJob(field, "must be the number of an event, from 0")
    return value


def lease_seconds(value: float | None) -> None:
    seconds("lease_seconds", value, shortest=_LEASE[0], longest=_LEASE[1])


def duration(field: str, value: timedelta | float | None) -> timedelta | None:
    """Return a duration, given as timedelta or seconds; its range is checked with the job."""
    if value is None or isinstance(value, timedelta):
        return value
    number = seconds(field, value, shortest=-_LONGEST, longest=_LONGEST)
    return None if number is None else timedelta(seconds=number)


def number(field: str, value: Any) -> float | None:
    """Return a number that Postgres can compare with its bounds; which it has are its business."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= 1e15:
        raise InvalidJob(field, "must be a number")
    return float(value)


def wait(field: str, value: timedelta | float | None) -> timedelta | None:
    """Return a time to wait, which is not negative."""
    number = seconds(field, value, shortest=timedelta(0), longest=_LONGEST)
    return None if number is None else timedelta(seconds=number)


def timeout_seconds(value: timedelta | float | None) -> float | None:
    """Return the longest run of an attempt in seconds."""
    return seconds("timeout", value, shortest=timedelta(milliseconds=1), longest=timedelta(days=365))


def subtasks(value: Sequence[Any]) -> None:
    """Refuse what Postgres cannot take as a list of texts; what makes a plan is functions/tasks.sql's business."""
    if isinstance(value, str) or not isinstance(cast(Any, value), Sequence):
        raise InvalidJob("subtasks", "must be a list of texts")
    if len(value) > MAX_PAGE:
        raise InvalidJob("subtasks", f"has {len(value):,} entries")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise InvalidJob(f"subtasks[{index}]", f"must be a string, not {type(text).__name__}")
        encode_json(text, field=f"subtasks[{index}]", max_bytes=_MAX_SUBTASK_BYTES)


def state(value: JobState | str | None) -> str | None:
    if value is None:
        return None
    try:
        return str(JobState(value))
    except ValueError:
        raise InvalidJob("state", f"must be one of {', '.join(JobState)}") from None


def aware(field: str, value: datetime | None) -> None:
    if value is not None and value.utcoffset() is None:
        raise InvalidJob(field, "must have a time zone, such as datetime.now(UTC)")


def max_attempts(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ATTEMPTS:
        raise InvalidJob("max_attempts", f"must be an integer from 1 to {MAX_ATTEMPTS:,}")


def priority(value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not -32_768 <= value <= 32_767:
        raise InvalidJob("priority", "must be an integer from -32,768 to 32,767")


def check_filters(**given: str | None) -> None:
    """Refuse texts that Postgres cannot take as a parameter."""
    for field, value in given.items():
        if value is not None:
            _check_text(field, value)


def check_texts(field: str, values: Sequence[str]) -> None:
    if isinstance(values, str):
        raise InvalidJob(field, "must be a list of strings, not one string")
    for index, value in enumerate(values):
        _check_text(f"{field}[{index}]", value)


def _check_text(field: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidJob(field, f"must be a string, not {type(value).__name__}")
    encode_json(value, field=field, max_bytes=10_000)


def reason(value: str | None) -> str | None:
    return None if value is None else sanitise_text(value)


def error_text(error: Mapping[str, Any] | BaseException | str) -> str:
    """Return the error of an attempt as JSON text that can always be stored."""
    if isinstance(error, Mapping):
        given = {str(key): value for key, value in cast("Mapping[Any, Any]", error).items()}
        code, message = given.pop("code", None) or "error", given.pop("message", "")
        made = error_object(code, message, **given)
    elif isinstance(error, BaseException):
        made = error_object(type(error).__name__, error)
    else:
        made = error_object("error", error)
    return encode_json(made, field="error")


# --- artifacts --------------------------------------------------------------------------------------------------------

# An instance of its own knows what comes with Python alone, and so the same on every machine.
_TYPES: Final = mimetypes.MimeTypes()


def artifact_name(value: Any) -> None:
    """Refuse what Postgres cannot take as text; what makes a name is functions/artifacts.sql's business."""
    if not isinstance(value, str):
        raise InvalidArtifact("name", f"must be a string, not {type(value).__name__}")
    if "\x00" in value:
        raise InvalidArtifact("name", "holds a NUL character")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InvalidArtifact("name", "holds a lone surrogate, which is not text")


def content_type(name: str, value: Any) -> str | None:
    """Return the content type given, else the one that the name suggests; None: neither."""
    if value is None:
        guessed, encoding = _TYPES.guess_type(name.rpartition("/")[2])
        # What is compressed is not of the type it will have.
        return guessed if encoding is None else None
    if not isinstance(value, str) or not value.isascii() or "\x00" in value:
        raise InvalidArtifact("content_type", "must look like text/plain")
    return value


def sha256(value: Any) -> str | None:
    """Return a hash given in hex, in lower case."""
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise InvalidArtifact("sha256", "must be 64 hexadecimal digits")
    return value.lower()


def check_content(found: str, found_size: int, *, sha256: str | None, size: int | None) -> None:
    """Refuse a content that is not the one that was announced."""
    if size is not None and found_size != size:
        raise InvalidArtifact("size", f"the content has {found_size:,} bytes, not {size:,}")
    if sha256 is not None and found != sha256:
        raise InvalidArtifact("sha256", f"the content has the hash {found}, not {sha256}")


# --- pages ------------------------------------------------------------------------------------------------------------


def page_size(limit: Any) -> int:
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_PAGE:
        raise InvalidJob("limit", f"must be an integer from 1 to {MAX_PAGE:,}")
    return limit


def page_offset(offset: Any, largest: int) -> int:
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset <= largest:
        raise InvalidJob("offset", f"must be an integer from 0 to {largest:,}; go on with a cursor")
    return offset


def before(cursor: str | None) -> UUID | None:
    """Return the id that a cursor of `page` stands for."""
    if cursor is None:
        return None
    try:
        found = base64.urlsafe_b64decode(cursor + "==")
        # Decoding skips foreign characters; encoding again shows whether there were any.
        if len(found) == 16 and cursor_of(UUID(bytes=found)) == cursor:
            return UUID(bytes=found)
    except (ValueError, TypeError, binascii.Error):
        pass
    raise InvalidJob("cursor", "is not a cursor of this list; give next_cursor of the page before, unchanged")


def page(jobs: list[Job], limit: int) -> Page:
    """Return the first `limit` of `jobs`, of which one more was read to know whether there is a next page."""
    shown = jobs[:limit]
    return Page(shown, cursor_of(shown[-1].id) if len(jobs) > limit else None)


def cursor_of(last: UUID) -> str:
    """Return what stands for the last id of a page."""
    return base64.urlsafe_b64encode(last.bytes).rstrip(b"=").decode()
