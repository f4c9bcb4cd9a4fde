"""Looking at jobs as people do: bounded in time and in size, so that a page can never hurt the queue.

Whoever looks for programs takes `Queue.get` and `Queue.list`; these here serve the console. Documents are handed out as
Postgres writes them, by their first characters: nothing is decoded, so no number loses a digit and no depth matters.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.errors import QueryCanceled
from psycopg.rows import DictRow, dict_row

from queue_pg import rows
from queue_pg.client import Queue
from queue_pg.errors import JobNotFound, TooSlow
from queue_pg.models import Job, JobState
from queue_pg.statements import statement

DOCUMENTS = ("payload", "result", "error", "metadata")


@dataclass(frozen=True, slots=True)
class Preview:
    """The first characters of a JSON document, and the size of the whole in bytes."""

    text: str
    size: int

    @property
    def whole(self) -> bool:
        return len(self.text.encode()) == self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLook:
    """A job whose documents (payload, result, error, metadata) are None; `previews` has what is asked for.

    `now` is the database's time, to tell ages by.
    """

    job: Job
    previews: Mapping[str, Preview]
    error_code: str | None
    error_message: str | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLook:
    """A stored event that tells of a job's state."""

    seq: int
    at: datetime
    type: str
    data: str | None
    bytes: int | None
    attempt: str | None
    worker_id: str | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptLook:
    """An attempt as `Queue.attempts` tells it; a first one with the outcome forgotten stands for all before it."""

    seq: int | None
    attempt: int | None
    worker_id: str | None
    outcome: str | None
    started_at: datetime | None
    ended_at: datetime | None
    ended_seq: int | None
    ran_seconds: float | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidLook:
    """Something that the handler has said: a log line, a chunk of output, progress, or an event of its own."""

    seq: int
    at: datetime
    type: str
    stream: str | None
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLook:
    """A step of a job, with the first characters of its result. `waits`: the job waits for it now."""

    name: str
    type: str
    timed_out: bool
    until: datetime | None
    attempt: int
    begun_at: datetime
    finished_at: datetime | None
    waits: bool
    result: Preview | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """A job of a family. `kind` and `state` are None when it is forgotten."""

    id: UUID
    kind: str | None
    state: JobState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Whom a job of a family waits for, by what name, and how that one ended (None: it has not)."""

    parent: UUID
    child: UUID
    name: str
    on_unsuccessful: str
    outcome: JobState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The jobs around a job, the nearest; itself among them when there are any."""

    relatives: Mapping[UUID, Relative]
    edges: Sequence[Edge]


@asynccontextmanager
async def looking(queue: Queue, seconds: float) -> AsyncGenerator[AsyncConnection[Any]]:
    """Lend a connection on which no statement takes longer than `seconds`. Raises TooSlow when one would."""
    async with queue.connection() as conn:
        try:
            # In a transaction, so that the limit goes with it, whoever gets the connection next.
            async with conn.transaction():
                await _all(conn, "look_limit", {"milliseconds": str(round(seconds * 1000))})
                yield conn
        except QueryCanceled:
            raise TooSlow(f"The database did not have the answer within {seconds:g} s.") from None


async def now(conn: AsyncConnection[Any]) -> datetime:
    """Return the database's time."""
    [row] = await _all(conn, "now", {})
    found: datetime = row["now"]
    return found


async def look_job(
    conn: AsyncConnection[Any],
    job_id: UUID,
    *,
    org: str | None,
    documents: Collection[str] = (),
    characters: int = 4_096,
) -> JobLook:
    """Return a job, and of the named documents the first characters. Raises JobNotFound."""
    params = {"id": job_id, "org": org, "documents": list(documents), "characters": characters}
    found = await _all(conn, "look_job", params)
    if not found:
        raise JobNotFound(job_id)
    row = found[0]
    previews = {name: Preview(row[name], row[f"{name}_bytes"]) for name in DOCUMENTS if row[name] is not None}
    return JobLook(
        job=rows.job({**row, **dict.fromkeys(DOCUMENTS)}),
        previews=previews,
        error_code=row["error_code"],
        error_message=row["error_message"],
        now=row["now"],
    )


async def look_events(
    conn: AsyncConnection[Any], job_id: UUID, *, org: str | None, limit: int, characters: int = 1_000
) -> list[EventLook]:
    """Return the newest stored events that tell of the job's state, oldest of them first."""
    params = {"id": job_id, "org": org, "limit": limit, "characters": characters}
    return [EventLook(**row) for row in reversed(await _all(conn, "look_events", params))]


async def look_attempts(
    conn: AsyncConnection[Any], job_id: UUID, *, org: str | None, after: int, limit: int
) -> list[AttemptLook]:
    """Return the attempts of a job that started after an event, oldest first."""
    params = {"id": job_id, "org": org, "after": after, "limit": limit}
    return [AttemptLook(**row) for row in await _all(conn, "look_attempts", params)]


async def look_said(
    conn: AsyncConnection[Any],
    job_id: UUID,
    *,
    org: str | None,
    limit: int,
    stream: str | None = None,
    characters: int = 4_000,
) -> list[SaidLook]:
    """Return the newest of what the job's handler has said, oldest of them first; with `stream` its lines alone."""
    params = {"id": job_id, "org": org, "limit": limit, "stream": stream, "characters": characters}
    return [SaidLook(**row) for row in reversed(await _all(conn, "look_said", params))]


async def look_steps(
    conn: AsyncConnection[Any], job_id: UUID, *, org: str | None, limit: int, characters: int = 1_000
) -> list[StepLook]:
    """Return the newest steps of a job in the order in which they were begun."""
    params = {"id": job_id, "org": org, "limit": limit, "characters": characters}
    found = list(reversed(await _all(conn, "look_steps", params)))
    for row in found:
        row["result"] = preview(row["result"], row.pop("result_bytes"))
    return [StepLook(**row) for row in found]


async def look_family(conn: AsyncConnection[Any], job_id: UUID, *, org: str | None, limit: int) -> Family:
    """Return whom a job waits for and who waits for it, and so on, up to `limit` edges either way."""
    found = await _all(conn, "look_family", {"id": job_id, "org": org, "limit": limit})
    if not found:
        raise JobNotFound(job_id)
    nodes, edges = json.loads(found[0]["nodes"]), json.loads(found[0]["edges"])
    return Family(
        relatives={
            UUID(each["id"]): Relative(id=UUID(each["id"]), kind=each["kind"], state=_state(each["state"]))
            for each in nodes
        },
        edges=[
            Edge(
                parent=UUID(each["parent"]),
                child=UUID(each["child"]),
                name=each["name"],
                on_unsuccessful=each["on_unsuccessful"],
                outcome=_state(each["outcome"]),
            )
            for each in edges
        ],
    )


def _state(word: str | None) -> JobState | None:
    return None if word is None else JobState(word)


def preview(text: str | None, size: int | None) -> Preview | None:
    return None if text is None or size is None else Preview(text, size)


async def look_marks(conn: AsyncConnection[Any], ids: Sequence[UUID], *, org: str) -> dict[UUID, str]:
    """Return for each job that exists a text that changes whenever something happens to it."""
    return {row["id"]: row["mark"] for row in await _all(conn, "look_marks", {"ids": list(ids), "org": org})}


async def _all(conn: AsyncConnection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)
        return await cursor.fetchall()
