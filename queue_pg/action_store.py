"""Actions on many jobs, the deletion of one, and the scale of a queue as seen by the library, as in store.py.

`action_store_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row

from queue_pg.action_model import ActionBite
from queue_pg.scale_model import Scale
from queue_pg.statements import statement


async def _all(conn: AsyncConnection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)
        return await cursor.fetchall()


async def act_on_jobs(
    conn: AsyncConnection[Any],
    action: str,
    filter: str,  # noqa: A002
    *,
    org: str | None,
    reason: str | None,
    priority: int | None,
    max_attempts: int | None,
    fresh: bool,
    dry_run: bool,
    max_jobs: int,
    after: UUID | None,
    as_of: datetime | None,
) -> ActionBite:
    """Do one bite of an action; `filter` is JSON text."""
    params = {
        "action": action,
        "filter": filter,
        "org": org,
        "reason": reason,
        "priority": priority,
        "max_attempts": max_attempts,
        "fresh": fresh,
        "dry_run": dry_run,
        "max_jobs": max_jobs,
        "after": after,
        "as_of": as_of,
    }
    [row] = await _all(conn, "act_on_jobs", params)
    return ActionBite(**{**row, "skipped": json.loads(row["skipped"])})


async def delete(conn: AsyncConnection[Any], job_id: UUID, *, cancel: bool, org: str | None) -> bool:
    """Delete a job; False: no such job in this org. One that may not be deleted raises QP002."""
    return bool(await _all(conn, "delete", {"id": job_id, "cancel": cancel, "org": org}))


async def scale(
    conn: AsyncConnection[Any],
    queue: str,
    *,
    slots: int | None,
    jobs_per_worker: float | None,
    target_wait: timedelta | None,
    job_seconds: float | None,
    min_workers: int,
    max_workers: int,
    org: str | None,
) -> Scale:
    params = {
        "queue": queue,
        "slots": slots,
        "jobs_per_worker": jobs_per_worker,
        "target_wait": target_wait,
        "job_seconds": job_seconds,
        "min_workers": min_workers,
        "max_workers": max_workers,
        "org": org,
    }
    [row] = await _all(conn, "scale", params)
    return Scale(queue=queue, **row)
