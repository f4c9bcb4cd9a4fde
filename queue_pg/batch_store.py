"""Batches as seen by the library: one function a statement, as in store.py.

`batch_store_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row

from queue_pg import batch_model
from queue_pg.batch_model import Batch
from queue_pg.statements import statement


async def _all(conn: AsyncConnection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)
        return await cursor.fetchall()


async def create_batch(
    conn: AsyncConnection[Any],
    *,
    name: str | None,
    on_complete: str | None,
    on_failed: str | None,
    on_all: str | None,
    on_first_failed: str | None,
    metadata: str,
    org: str,
) -> UUID:
    """Make an open batch; callbacks and metadata are JSON text."""
    params = {
        "name": name,
        "on_complete": on_complete,
        "on_failed": on_failed,
        "on_all": on_all,
        "on_first_failed": on_first_failed,
        "metadata": metadata,
        "org": org,
    }
    [row] = await _all(conn, "create_batch", params)
    return UUID(str(row["id"]))


async def get_batch(
    conn: AsyncConnection[Any], batch_id: UUID, *, org: str | None, with_states: bool = True
) -> Batch | None:
    found = await _all(conn, "get_batch", {"id": batch_id, "org": org, "with_states": with_states})
    return batch_model.batch(found[0]) if found else None


async def list_batches(
    conn: AsyncConnection[Any],
    *,
    limit: int,
    org: str | None,
    state: str | None = None,
    name: str | None = None,
    before: UUID | None = None,
) -> list[Batch]:
    """Return up to `limit` batches newest first, those with an id below `before`. Filters that are None don't apply."""
    params = {"org": org, "state": state, "name": name, "before": before, "limit": limit}
    return [batch_model.batch(row) for row in await _all(conn, "list_batches", params)]


async def close_batch(conn: AsyncConnection[Any], batch_id: UUID, *, org: str | None) -> bool:
    """Say that no more jobs will be added; False: no such batch in this org."""
    return bool(await _all(conn, "close_batch", {"id": batch_id, "org": org}))


async def cancel_batch(
    conn: AsyncConnection[Any],
    batch_id: UUID,
    *,
    reason: str | None,
    max_jobs: int,
    after: UUID | None,
    org: str | None,
) -> tuple[int, UUID | None] | None:
    """Cancel some jobs behind `after`; return how many, and the last id if there may be more. None: no such batch."""
    params = {"id": batch_id, "reason": reason, "max_jobs": max_jobs, "after": after, "org": org}
    found = await _all(conn, "cancel_batch", params)
    return (found[0]["jobs"], found[0]["last_id"]) if found else None


async def retry_failed(
    conn: AsyncConnection[Any],
    batch_id: UUID,
    *,
    max_attempts: int | None,
    and_cancelled: bool,
    max_jobs: int,
    after: UUID | None,
    org: str | None,
) -> tuple[int, UUID | None] | None:
    """Retry some failed jobs behind `after`; return what `cancel_batch` does."""
    params = {
        "id": batch_id,
        "max_attempts": max_attempts,
        "and_cancelled": and_cancelled,
        "max_jobs": max_jobs,
        "after": after,
        "org": org,
    }
    found = await _all(conn, "retry_failed", params)
    return (found[0]["jobs"], found[0]["last_id"]) if found else None
