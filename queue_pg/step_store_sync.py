# Generated from queue_pg/step_store.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""Statements about steps, signals and reruns: one function a statement, like store.py.

`step_store_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import DictRow, dict_row

from queue_pg import rows
from queue_pg.models import Job, Step
from queue_pg.statements import statement


def _all(conn: Connection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    with Cursor(conn, row_factory=dict_row) as cursor:
        cursor.execute(statement(name), params)
        return cursor.fetchall()


def steps(conn: Connection[Any], job_id: UUID, *, org: str | None = None) -> list[Step]:
    """Return the steps of a job in the order in which they were begun."""
    return [rows.step(row) for row in _all(conn, "steps", {"id": job_id, "org": org})]


def save_step(conn: Connection[Any], job_id: UUID, lease_token: int, name: str, result: str | None) -> None:
    """Keep the result of a step, as JSON text. A lost lease raises QP003."""
    _all(conn, "save_step", {"id": job_id, "lease_token": lease_token, "name": name, "result": result})


def sleep(
    conn: Connection[Any],
    job_id: UUID,
    lease_token: int,
    name: str,
    *,
    delay: timedelta | None = None,
    until: datetime | None = None,
) -> Step:
    """Begin or look at a sleep; without `finished_at` it is not over. A lost lease raises QP003."""
    params = {"id": job_id, "lease_token": lease_token, "name": name, "delay": delay, "until": until}
    return rows.step((_all(conn, "sleep", params))[0])


def wait_for_event(
    conn: Connection[Any], job_id: UUID, lease_token: int, name: str, *, timeout: timedelta | None = None
) -> Step:
    """Begin or look at the wait for an event; without `finished_at` it is not over. A lost lease raises QP003."""
    params = {"id": job_id, "lease_token": lease_token, "name": name, "timeout": timeout}
    return rows.step((_all(conn, "wait_for_event", params))[0])


def signal(
    conn: Connection[Any], job_id: UUID, name: str, payload: str | None, *, org: str | None = None
) -> bool | None:
    """Tell a job that an event has come; return whether it is the first of its name. None: no such job in this org."""
    found = _all(conn, "signal", {"id": job_id, "name": name, "payload": payload, "org": org})
    return bool(found[0]["created"]) if found else None


def rerun(
    conn: Connection[Any], job_id: UUID, changes: Mapping[str, Any], *, org: str | None = None
) -> Job | None:
    """Submit a job like another one; None: no such job in this org. `changes` are the other parameters of the SQL."""
    found = _all(conn, "rerun", {"id": job_id, "org": org, **changes})
    return rows.job(found[0]) if found else None
