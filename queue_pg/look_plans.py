"""Schedules and job templates as people look at them: like looking.py, bounded, and without payloads in lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row

from queue_pg.errors import ScheduleNotFound, TemplateNotFound
from queue_pg.looking import Preview, preview
from queue_pg.payloads import decode_or_mark
from queue_pg.statements import statement

PREVIEW_CHARACTERS = 4_096
MAX_VERSIONS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLook:
    """A schedule. `payload` is None in lists; `now` is the database's time."""

    name: str
    cron: str | None
    every_seconds: float | None
    at: datetime | None
    time_zone: str
    starts_at: datetime | None
    ends_at: datetime | None
    jitter_seconds: float
    missed: str
    paused: bool
    kind: str
    queue: str
    priority: int
    max_attempts: int | None
    timeout_seconds: float | None
    tags: list[str]
    origin: str
    next_fires: list[datetime]
    last_fire_at: datetime | None
    last_job_id: UUID | None
    error_code: str | None
    error_message: str | None
    created_at: datetime
    payload: Preview | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLook:
    """A job template in one version. `names` are those of its first variables; `now` is the database's time.

    `variables` and `payload` are None in lists. What was stored past the library may be payloads.Unreadable.
    """

    name: str
    version: int
    kind: str
    queue: str
    priority: int
    max_attempts: int | None
    timeout_seconds: float | None
    caches: bool
    cache_for_seconds: float | None
    cache_version: str | None
    names: list[str]
    variables: Any
    description: str | None
    created_at: datetime
    payload: Preview | None
    now: datetime


async def _all(conn: AsyncConnection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)
        return await cursor.fetchall()


async def look_schedules(
    conn: AsyncConnection[Any], *, org: str, limit: int, after: str | None = None, fires: int = 3
) -> list[ScheduleLook]:
    """Return schedules by name, those after the name `after`."""
    return await _schedules(conn, org=org, name=None, after=after, limit=limit, fires=fires)


async def look_schedule(conn: AsyncConnection[Any], name: str, *, org: str, fires: int = 5) -> ScheduleLook:
    """Return one schedule with the beginning of its payload. Raises ScheduleNotFound."""
    found = await _schedules(conn, org=org, name=name, after=None, limit=1, fires=fires)
    if not found:
        raise ScheduleNotFound(name)
    return found[0]


async def _schedules(
    conn: AsyncConnection[Any], *, org: str, name: str | None, after: str | None, limit: int, fires: int
) -> list[ScheduleLook]:
    params = {
        "org": org,
        "name": name,
        "after": after,
        "limit": limit,
        "fires": fires,
        "characters": PREVIEW_CHARACTERS,
    }
    return [ScheduleLook(**_previewed(row)) for row in await _all(conn, "look_schedules", params)]


async def look_schedules_mark(conn: AsyncConnection[Any], *, org: str) -> str:
    """Return a text that changes whenever a schedule does, or fires."""
    [row] = await _all(conn, "look_schedules_mark", {"org": org})
    return str(row["mark"])


async def look_templates(
    conn: AsyncConnection[Any], *, org: str, limit: int, after: str | None = None
) -> list[TemplateLook]:
    """Return job templates by name in their newest versions, those after the name `after`."""
    return await _templates(conn, org=org, name=None, version=None, after=after, limit=limit)


async def look_template(conn: AsyncConnection[Any], name: str, *, org: str, version: int | None = None) -> TemplateLook:
    """Return one job template with the beginning of its payload, the newest unless told. Raises TemplateNotFound."""
    found = await _templates(conn, org=org, name=name, version=version, after=None, limit=1)
    if not found:
        raise TemplateNotFound(name, version)
    return found[0]


async def look_template_versions(conn: AsyncConnection[Any], name: str, *, org: str) -> list[tuple[int, datetime]]:
    """Return the newest versions of a job template, and when each was stored."""
    found = await _all(conn, "look_template_versions", {"org": org, "name": name, "limit": MAX_VERSIONS})
    return [(row["version"], row["created_at"]) for row in found]


async def _templates(
    conn: AsyncConnection[Any], *, org: str, name: str | None, version: int | None, after: str | None, limit: int
) -> list[TemplateLook]:
    params = {
        "org": org,
        "name": name,
        "version": version,
        "after": after,
        "limit": limit,
        "characters": PREVIEW_CHARACTERS,
    }
    found = await _all(conn, "look_templates", params)
    return [TemplateLook(**{**_previewed(row), "variables": decode_or_mark(row["variables"])}) for row in found]


def _previewed(row: DictRow) -> DictRow:
    row["payload"] = preview(row["payload"], row.pop("payload_bytes"))
    return row
