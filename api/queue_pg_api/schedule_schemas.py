"""Bodies, queries and answers of /schedules, and how a schedule is written."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from queue_pg.models import NewJob
from queue_pg.schedules import MAX_FIRES, MAX_SCHEDULES_PAGE, NewSchedule, Schedule, Timing
from queue_pg_api.answers import Answer
from queue_pg_api.errors import invalid
from queue_pg_api.rendering import json_or_mark, text_or_none, timestamp
from queue_pg_api.schemas import Attempts, Body, Cost, Key, Name, Priority, Query, TimeoutSeconds, Timestamp

MAX_EVERY_SECONDS = 3_650 * 86_400
MAX_JITTER_SECONDS = 86_400

Missed = Literal["skip", "once", "all"]


class TimingBody(Body):
    """When a schedule fires: exactly one of `cron`, `every_seconds` and `at`."""

    cron: Annotated[str, Field(max_length=300)] | None = Field(
        None, description="Minute, hour, day, month, weekday; read in `time_zone`.", examples=["0 9 * * mon-fri"]
    )
    every_seconds: Annotated[float, Field(ge=1, le=MAX_EVERY_SECONDS)] | None = Field(
        None, description="Counted from `starts_at`, else from the making of the schedule."
    )
    at: Timestamp | None = Field(None, description="Once.")
    time_zone: Annotated[str, Field(max_length=100)] = Field("UTC", examples=["Europe/Berlin"])
    starts_at: Timestamp | None = Field(None, description="No fire before.")
    ends_at: Timestamp | None = Field(None, description="No fire after.")

    def timing(self) -> Timing:
        if sum(each is not None for each in (self.cron, self.every_seconds, self.at)) != 1:
            raise invalid("cron", "give exactly one of cron, every_seconds and at", code="invalid_job")
        return Timing(
            cron=self.cron,
            every=self.every_seconds,
            at=self.at,
            time_zone=self.time_zone,
            starts_at=self.starts_at,
            ends_at=self.ends_at,
        )


class ScheduleBody(TimingBody):
    """A schedule: when it fires, and what jobs it makes."""

    kind: Name = Field(description="Which handler runs the jobs.", examples=["report"])
    payload: Any = Field(
        default_factory=dict[str, Any],
        description="`{{ schedule.fire_at }}` and `{{ schedule.name }}` in its texts are filled in.",
    )
    jitter_seconds: Annotated[float, Field(ge=0, le=MAX_JITTER_SECONDS)] = Field(
        0, description="Each job starts up to this long after its fire, at random."
    )
    missed: Missed = Field("once", description="Fires that nobody was there for: none, one job for all, one each.")
    paused: bool | None = Field(None, description="Absent: as it is.")
    queue: Name = "default"
    priority: Priority = 0
    max_attempts: Attempts | None = None
    timeout_seconds: TimeoutSeconds | None = None
    tags: Annotated[list[Name], Field(max_length=64)] = Field(default_factory=list[str])
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    limit_key: Key | None = Field(None, description="The jobs' limit key.")
    cost: Cost = Field(1, description="Units each attempt takes from a rate.")

    def new_schedule(self, name: str) -> NewSchedule:
        """Build the library's form."""
        job = NewJob(
            kind=self.kind,
            payload=self.payload,
            queue=self.queue,
            priority=self.priority,
            max_attempts=self.max_attempts,
            timeout=None if self.timeout_seconds is None else timedelta(seconds=self.timeout_seconds),
            tags=self.tags,
            metadata=self.metadata,
            limit_key=self.limit_key,
            cost=self.cost,
        )
        return NewSchedule(
            name=name,
            timing=self.timing(),
            job=job,
            jitter=self.jitter_seconds,
            missed=self.missed,
            paused=self.paused,
        )


class NewScheduleBody(ScheduleBody):
    """A schedule to make."""

    name: Name = Field(description="One of its name; without slashes.", examples=["report"])


class PreviewBody(TimingBody):
    """When would it fire?"""

    after: Timestamp | None = Field(None, description="Default: now.")
    count: Annotated[int, Field(ge=1, le=MAX_FIRES)] = 5


class ScheduleList(Query):
    """Which schedules to list, by name."""

    limit: int = Field(50, ge=1, le=MAX_SCHEDULES_PAGE)
    cursor: Name | None = Field(None, description="`next_cursor` of the page before.")


class ScheduleAnswer(Answer):
    """A schedule."""

    id: UUID
    name: str
    org: str
    cron: str | None
    every_seconds: float | None
    at: datetime | None
    time_zone: str
    starts_at: datetime | None
    ends_at: datetime | None
    jitter_seconds: float
    missed: Missed
    paused: bool
    kind: str
    queue: str
    payload: Any
    priority: int
    max_attempts: int | None
    timeout_seconds: float | None
    tags: list[str]
    metadata: dict[str, Any]
    limit_key: str | None
    cost: int
    origin: Literal["user", "code"] = Field(description="code: workers keep it as the code of a task says.")
    next_fires: list[datetime] = Field(description="The five to come; none: paused, or there are none.")
    last_fire_at: datetime | None
    last_job_id: UUID | None
    error: dict[str, Any] | None = Field(description="Why the last fire made no job.")
    created_at: datetime


class SchedulePage(Answer):
    schedules: list[ScheduleAnswer]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null: this is the last.")


class PreviewAnswer(Answer):
    next_fires: list[datetime]


def schedule_json(schedule: Schedule) -> dict[str, Any]:
    """Render a schedule."""
    return {
        "id": str(schedule.id),
        "name": schedule.name,
        "org": schedule.org,
        "cron": schedule.cron,
        "every_seconds": None if schedule.every is None else schedule.every.total_seconds(),
        "at": timestamp(schedule.at),
        "time_zone": schedule.time_zone,
        "starts_at": timestamp(schedule.starts_at),
        "ends_at": timestamp(schedule.ends_at),
        "jitter_seconds": schedule.jitter.total_seconds(),
        "missed": schedule.missed,
        "paused": schedule.paused,
        "kind": schedule.kind,
        "queue": schedule.queue,
        "payload": json_or_mark(schedule.payload),
        "priority": schedule.priority,
        "max_attempts": schedule.max_attempts,
        "timeout_seconds": None if schedule.timeout is None else schedule.timeout.total_seconds(),
        "tags": schedule.tags,
        "metadata": json_or_mark(schedule.metadata),
        "limit_key": schedule.limit_key,
        "cost": schedule.cost,
        "origin": schedule.origin,
        "next_fires": [timestamp(fire) for fire in schedule.next_fires],
        "last_fire_at": timestamp(schedule.last_fire_at),
        "last_job_id": text_or_none(schedule.last_job_id),
        "error": json_or_mark(schedule.error),
        "created_at": timestamp(schedule.created_at),
    }
