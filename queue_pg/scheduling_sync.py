# Generated from queue_pg/scheduling.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""What Queue does with schedules: work that starts by the clock.

`scheduling_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import Connection

from queue_pg import arguments, schedule_store_sync as schedule_store
from queue_pg.errors import InvalidJob, ScheduleNotFound
from queue_pg.models import NewJob
from queue_pg.schedules import MAX_FIRES, MAX_SCHEDULES_PAGE, Missed, NewSchedule, Schedule, Timing
from queue_pg.submission import JobChecker


class SyncScheduling(ABC):
    """What Queue inherits for schedules. Those of another tenant are invisible."""

    org: str | None
    max_payload_bytes: int

    @abstractmethod
    def connection(self) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection."""

    def schedule(
        self,
        name: str,
        kind: str,
        payload: Any = None,
        *,
        cron: str | None = None,
        every: timedelta | float | None = None,
        at: datetime | None = None,
        time_zone: str = "UTC",
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        jitter: timedelta | float = 0,
        missed: Missed = "once",
        paused: bool | None = None,
        queue: str = "default",
        priority: int = 0,
        max_attempts: int | None = None,
        timeout: timedelta | float | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        limit_key: str | None = None,
        cost: int = 1,
    ) -> Schedule:
        """Make a schedule, or change the one of that name, and return it; the same again changes nothing.

        Give one of `cron` (read in `time_zone`), `every` (a timedelta or seconds) and `at`. `missed` says what becomes
        of fires that nobody was there for: "skip", "once" (one job for all), "all" (one each, the latest 1,000). The
        jobs have `metadata["schedule"]` with name and fire_at. Raises InvalidJob.
        """
        job = NewJob(
            kind=kind,
            payload=payload,
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            timeout=arguments.duration("timeout", timeout),
            tags=tags,
            metadata={} if metadata is None else metadata,
            limit_key=limit_key,
            cost=cost,
        )
        timing = Timing(cron=cron, every=every, at=at, time_zone=time_zone, starts_at=starts_at, ends_at=ends_at)
        new = NewSchedule(name=name, timing=timing, job=job, jitter=jitter, missed=missed, paused=paused)
        made, _ = self.put_schedule(new)
        return made

    def put_schedule(self, new: NewSchedule, *, create_only: bool = False) -> tuple[Schedule, bool]:
        """Make or change a schedule as `schedule` does; return it and whether it is new.

        With `create_only` raises ScheduleExists when there is one of that name.
        """
        org = self.org or "default"
        params = new.params(JobChecker(org=org, max_payload_bytes=self.max_payload_bytes))
        with self.connection() as conn:
            created = schedule_store.put_schedule(conn, params, create_only=create_only)
            found = schedule_store.get_schedules(conn, org=org, name=new.name)
        if not found:  # somebody has removed it since
            raise ScheduleNotFound(new.name)
        return found[0], created

    def schedules(self, *, limit: int = 50, after: str | None = None) -> list[Schedule]:
        """Return schedules by name, at most 200; give the last name as `after` for the next ones."""
        arguments.check_filters(after=after)
        _whole("limit", limit, MAX_SCHEDULES_PAGE)
        with self.connection() as conn:
            return schedule_store.get_schedules(conn, org=self.org, after=after, limit=limit)

    def get_schedule(self, name: str) -> Schedule:
        """Return a schedule with its next fires. Raises ScheduleNotFound, as all that follow."""
        arguments.check_filters(name=name)
        with self.connection() as conn:
            found = schedule_store.get_schedules(conn, org=self.org or "default", name=name)
        if not found:
            raise ScheduleNotFound(name)
        return found[0]

    def unschedule(self, name: str) -> None:
        """Remove a schedule; jobs it has made stay."""
        arguments.check_filters(name=name)
        with self.connection() as conn:
            schedule_store.unschedule(conn, name, org=self.org or "default")

    def pause_schedule(self, name: str) -> Schedule:
        """Stop a schedule until `resume_schedule`."""
        arguments.check_filters(name=name)
        with self.connection() as conn:
            schedule_store.pause_schedule(conn, name, org=self.org or "default")
        return self.get_schedule(name)

    def resume_schedule(self, name: str) -> Schedule:
        """Let a paused schedule fire again, from now on: what it would have done meanwhile is not made up for."""
        arguments.check_filters(name=name)
        with self.connection() as conn:
            schedule_store.resume_schedule(conn, name, org=self.org or "default")
        return self.get_schedule(name)

    def run_schedule_now(self, name: str) -> UUID:
        """Make an extra job at once and return its id; the fires stay as they are."""
        arguments.check_filters(name=name)
        with self.connection() as conn:
            return schedule_store.run_schedule_now(conn, name, org=self.org or "default")

    def preview_schedule(self, timing: Timing, *, after: datetime | None = None, most: int = 5) -> list[datetime]:
        """Return when a schedule of this timing would fire, without making one. Raises InvalidJob."""
        params = timing.params()
        arguments.aware("after", after)
        _whole("most", most, MAX_FIRES)
        with self.connection() as conn:
            return schedule_store.preview_schedule(conn, params, after=after, most=most)


def _whole(field: str, value: Any, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidJob(field, f"must be an integer from 1 to {most:,}")
