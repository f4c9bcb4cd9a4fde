"""Actions on many jobs: what they are about, how far they have come, and the cursor by which they go on."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast
from uuid import UUID

from queue_pg.errors import InvalidJob
from queue_pg.models import JobState
from queue_pg.payloads import encode_json

JobAction = Literal["cancel", "retry", "reprioritize", "delete"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST_FILTER: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs an action is for: those to which all that is given applies. `all` alone means every job.

    `created_after` is inclusive, `created_before` is not. `error_code` is that of the job's error, its last one if it
    has not ended.
    """

    state: JobState | str | None = None
    kind: str | None = None
    queue: str | None = None
    tag: str | None = None
    batch_id: UUID | str | None = None
    parent_id: UUID | str | None = None
    unique_key: str | None = None
    rerun_of: UUID | str | None = None
    error_code: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    all: bool = False

    def to_json(self) -> str:
        """Return it as `queue_pg.act_on_jobs` takes it, which says what is wrong in it."""
        given: dict[str, Any] = {}
        for name in FILTERS:
            value = getattr(self, name)
            if isinstance(value, datetime):
                if value.utcoffset() is None:
                    raise InvalidJob(f"filter.{name}", "must have a time zone, such as datetime.now(UTC)")
                given[name] = value.isoformat()
            elif isinstance(value, UUID):
                given[name] = str(value)
            elif value is not None and value is not False:
                given[name] = value
        return encode_json(given, field="filter", max_bytes=_LARGEST_FILTER)


FILTERS: Final = tuple(each.name for each in fields(JobFilter))


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionResult:
    """What an action on many jobs has done.

    Of `matched` jobs `changed` were changed, and the others skipped, counted by reason. If `done` is false it stopped
    for its time: give `cursor` to go on.
    """

    action: str
    dry_run: bool
    matched: int
    changed: int
    skipped: dict[str, int] = field(default_factory=dict[str, int])
    done: bool
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionBite:
    """What one transaction of it has done; `last_id` None: there is no more."""

    matched: int
    changed: int
    skipped: dict[str, int]
    last_id: UUID | None
    as_of: datetime


def job_filter(value: JobFilter | Mapping[str, Any]) -> JobFilter:
    """Return a filter, given as one or as a mapping with its fields."""
    if isinstance(value, JobFilter):
        return value
    if not isinstance(cast("Any", value), Mapping):
        raise InvalidJob("filter", "must be a JobFilter, or a mapping with its fields")
    for name in value:
        if name not in FILTERS:
            raise InvalidJob(f"filter.{str(name)[:100]}", f"is no filter; there are {', '.join(FILTERS)}")
    return JobFilter(**value)


def cursor_of(after: UUID, as_of: datetime) -> str:
    """Return what stands for the place where an action stopped."""
    since = (as_of - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(after.bytes + since.to_bytes(8, "big", signed=True)).decode()


def place_of(cursor: str | None) -> tuple[UUID | None, datetime | None]:
    """Return the last id and the moment that a cursor stands for."""
    if cursor is None:
        return None, None
    try:
        found = base64.urlsafe_b64decode(cursor)
        if len(found) == 24:
            after = UUID(bytes=found[:16])
            as_of = _EPOCH + timedelta(microseconds=int.from_bytes(found[16:], "big", signed=True))
            if cursor_of(after, as_of) == cursor:
                return after, as_of
    except (ValueError, TypeError, OverflowError, binascii.Error):
        pass
    raise InvalidJob("cursor", "is not a cursor of an action; give the one it answered with, unchanged")
