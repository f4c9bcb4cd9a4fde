"""Schedules as the library hands them out and takes them; Postgres judges when they fire (functions/schedules.sql)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from queue_pg import arguments
from queue_pg.models import NewJob
from queue_pg.payloads import decode_or_mark
from queue_pg.submission import JobChecker, seconds

Missed = Literal["skip", "once", "all"]

MAX_SCHEDULES_PAGE: Final = 200
MAX_FIRES: Final = 1_000
# The ranges proper are in queue_pg.check_schedule(); these are what an interval can hold.
_LONGEST: Final = timedelta(days=36_500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a schedule fires: exactly one of `cron`, `every` and `at`."""

    cron: str | None = None
    every: timedelta | float | None = None
    at: datetime | None = None
    time_zone: str = "UTC"
    starts_at: datetime | None = None
    ends_at: datetime | None = None

    def params(self) -> dict[str, Any]:
        """Return the parameters of SQL statements. Raises InvalidJob for what cannot be one."""
        arguments.check_filters(cron=self.cron, time_zone=self.time_zone)
        for name in ("at", "starts_at", "ends_at"):
            arguments.aware(name, getattr(self, name))
        return {
            "cron": self.cron,
            "every_seconds": seconds("every", self.every, shortest=timedelta(0), longest=_LONGEST),
            "at": self.at,
            "time_zone": self.time_zone,
            "starts_at": self.starts_at,
            "ends_at": self.ends_at,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """A schedule to make, or to change the one of its name into. `paused` None leaves a pause as it is."""

    name: str
    timing: Timing
    job: NewJob
    jitter: timedelta | float = 0
    missed: Missed = "once"
    paused: bool | None = None

    def params(self, check: JobChecker) -> dict[str, Any]:
        """Return the parameters of sql/put_schedule.sql. Raises InvalidJob and PayloadTooLarge."""
        arguments.check_filters(name=self.name, missed=self.missed)
        terms, payload = check(self.job)
        return {
            **self.timing.params(),
            "name": self.name,
            "jitter_seconds": seconds("jitter", self.jitter, shortest=timedelta(0), longest=_LONGEST),
            "missed": self.missed,
            "paused": self.paused,
            "kind": terms.kind,
            "payload": payload.decode(),
            "queue": terms.queue,
            "priority": terms.priority,
            "max_attempts": terms.max_attempts,
            "timeout_seconds": terms.timeout_seconds,
            "tags": terms.tags,
            "metadata": terms.metadata,
            "limit_key": terms.limit_key,
            "cost": terms.cost,
            "org": terms.org,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as stored. `next_fires` are the five to come; none while it is paused or when it has ended.

    `origin` is "code" for the schedule of a task that workers keep as the code says, else "user". `error` says why the
    last fire made no job.
    """

    id: UUID
    org: str
    name: str
    cron: str | None
    every: timedelta | None
    at: datetime | None
    time_zone: str
    starts_at: datetime | None
    ends_at: datetime | None
    jitter: timedelta
    missed: Missed
    paused: bool
    kind: str
    queue: str
    payload: Any
    priority: int
    max_attempts: int | None
    timeout: timedelta | None
    tags: list[str]
    metadata: dict[str, Any]
    origin: Literal["user", "code"]
    next_fires: list[datetime]
    last_fire_at: datetime | None
    last_job_id: UUID | None
    error: dict[str, Any] | None
    created_at: datetime
    limit_key: str | None
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSchedule:
    """The schedule in the code of a task, by `@task(cron=...)` or `@task(every=...)`. It is named for its kind."""

    kind: str
    queue: str
    priority: int
    timing: Timing
    missed: Missed
    limit_key: str | None = None
    cost: int = 1

    def params(self) -> dict[str, Any]:
        """Return the parameters of sql/register_schedule.sql."""
        return {
            **{name: self.timing.params()[name] for name in ("cron", "every_seconds", "time_zone")},
            "kind": self.kind,
            "queue": self.queue,
            "priority": self.priority,
            "missed": self.missed,
            "limit_key": self.limit_key,
            "cost": self.cost,
        }


def schedule(row: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a row of sql/schedules.sql."""
    found = dict(row)
    for name in ("every", "jitter", "timeout"):
        length = found.pop(f"{name}_seconds")
        found[name] = None if length is None else timedelta(seconds=length)
    for name in ("payload", "metadata", "error"):
        found[name] = decode_or_mark(found[name])
    return Schedule(**found)
