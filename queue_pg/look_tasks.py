"""Tasks as people look at them: like looking.py, bounded, and without payloads in lists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row

from queue_pg.errors import JobNotFound
from queue_pg.models import JobState
from queue_pg.statements import statement


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLook:
    """A task in a list. `about` are the first characters of its description or prompt; `subtasks` says how many."""

    id: UUID
    kind: str
    status: str
    name: str | None
    about: str | None
    subtasks: int
    parent_task_id: UUID | None
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubtaskLook:
    """A subtask. `state` is None when it is forgotten."""

    id: UUID
    about: str
    state: JobState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLook:
    """What of a job makes it a task: what it is about, who planned it, and its subtasks."""

    id: UUID
    kind: str
    status: str
    name: str | None
    about: str | None
    planner: str | None
    parent_task_id: UUID | None
    subtasks: Sequence[SubtaskLook]


async def _all(conn: AsyncConnection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)
        return await cursor.fetchall()


async def look_tasks(
    conn: AsyncConnection[Any], *, org: str, limit: int, state: str | None = None, before: UUID | None = None
) -> list[TaskLook]:
    """Return tasks newest first, those with an id below `before`; `state` is a task's status."""
    params = {"org": org, "state": state, "before": before, "limit": limit}
    return [TaskLook(**row) for row in await _all(conn, "look_tasks", params)]


async def look_task(conn: AsyncConnection[Any], job_id: UUID, *, org: str) -> PlanLook:
    """Return what a job is as a task. Raises JobNotFound."""
    found = await _all(conn, "look_task", {"id": job_id, "org": org})
    if not found:
        raise JobNotFound(job_id)
    row = found[0]
    row["subtasks"] = [
        SubtaskLook(
            id=UUID(each["id"]),
            about=each["about"],
            state=None if each["state"] is None else JobState(each["state"]),
        )
        for each in json.loads(row["subtasks"])
    ]
    return PlanLook(**row)
