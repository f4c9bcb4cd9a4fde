# Generated from queue_pg/schedule_store.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""Schedules as seen by the library; like store.py, apart from it because it is long.

`schedule_store_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import DictRow, dict_row

from queue_pg import schedules
from queue_pg.schedules import Schedule
from queue_pg.statements import statement


def _all(conn: Connection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    with Cursor(conn, row_factory=dict_row) as cursor:
        cursor.execute(statement(name), params)
        return cursor.fetchall()


def put_schedule(conn: Connection[Any], params: Mapping[str, Any], *, create_only: bool) -> bool:
    """Make or change a schedule (NewSchedule.params); return whether it is new. With `create_only` raises QP021."""
    [row] = _all(conn, "put_schedule", {**params, "create_only": create_only})
    return bool(row["created"])


def get_schedules(
    conn: Connection[Any],
    *,
    org: str | None,
    name: str | None = None,
    after: str | None = None,
    limit: int = 1,
) -> list[Schedule]:
    """Return schedules by name, those after the name `after`."""
    params = {"org": org, "name": name, "after": after, "limit": limit}
    return [schedules.schedule(row) for row in _all(conn, "schedules", params)]


def preview_schedule(
    conn: Connection[Any], params: Mapping[str, Any], *, after: datetime | None, most: int
) -> list[datetime]:
    """Return when a schedule of this timing (Timing.params) would fire."""
    found = _all(conn, "preview_schedule", {**params, "after": after, "most": most})
    return [row["fire_at"] for row in found]


def register_schedule(conn: Connection[Any], params: Mapping[str, Any]) -> bool:
    """Make or change the schedule of a task (schedules.registration); False: people have made it theirs."""
    [row] = _all(conn, "register_schedule", params)
    return bool(row["registered"])


def unschedule(conn: Connection[Any], name: str, *, org: str) -> None:
    """Remove a schedule. Raises QP020, as the three below."""
    _all(conn, "unschedule", {"name": name, "org": org})


def pause_schedule(conn: Connection[Any], name: str, *, org: str) -> None:
    _all(conn, "pause_schedule", {"name": name, "org": org})


def resume_schedule(conn: Connection[Any], name: str, *, org: str) -> None:
    _all(conn, "resume_schedule", {"name": name, "org": org})


def run_schedule_now(conn: Connection[Any], name: str, *, org: str) -> UUID:
    [row] = _all(conn, "run_schedule_now", {"name": name, "org": org})
    job_id: UUID = row["id"]
    return job_id
