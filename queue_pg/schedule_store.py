"""Schedules as seen by the library; like store.py, apart from it because it is long.

`schedule_store_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row

from queue_pg import schedules
from queue_pg.schedules import Schedule
from queue_pg.statements import statement


async def _all(conn: AsyncConnection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)
        return await cursor.fetchall()


async def put_schedule(conn: AsyncConnection[Any], params: Mapping[str, Any], *, create_only: bool) -> bool:
    """Make or change a schedule (NewSchedule.params); return whether it is new. With `create_only` raises QP021."""
    [row] = await _all(conn, "put_schedule", {**params, "create_only": create_only})
    return bool(row["created"])


async def get_schedules(
    conn: AsyncConnection[Any],
    *,
    org: str | None,
    name: str | None = None,
    after: str | None = None,
    limit: int = 1,
) -> list[Schedule]:
    """Return schedules by name, those after the name `after`."""
    params = {"org": org, "name": name, "after": after, "limit": limit}
    return [schedules.schedule(row) for row in await _all(conn, "schedules", params)]


async def preview_schedule(
    conn: AsyncConnection[Any], params: Mapping[str, Any], *, after: datetime | None, most: int
) -> list[datetime]:
    """Return when a schedule of this timing (Timing.params) would fire."""
    found = await _all(conn, "preview_schedule", {**params, "after": after, "most": most})
    return [row["fire_at"] for row in found]


async def register_schedule(conn: AsyncConnection[Any], params: Mapping[str, Any]) -> bool:
    """Make or change the schedule of a task (schedules.registration); False: people have made it theirs."""
    [row] = await _all(conn, "register_schedule", params)
    return bool(row["registered"])


async def unschedule(conn: AsyncConnection[Any], name: str, *, org: str) -> None:
    """Remove a schedule. Raises QP020, as the three below."""
    await _all(conn, "unschedule", {"name": name, "org": org})


async def pause_schedule(conn: AsyncConnection[Any], name: str, *, org: str) -> None:
    await _all(conn, "pause_schedule", {"name": name, "org": org})


async def resume_schedule(conn: AsyncConnection[Any], name: str, *, org: str) -> None:
    await _all(conn, "resume_schedule", {"name": name, "org": org})


async def run_schedule_now(conn: AsyncConnection[Any], name: str, *, org: str) -> UUID:
    [row] = await _all(conn, "run_schedule_now", {"name": name, "org": org})
    job_id: UUID = row["id"]
    return job_id
