"""Postgres as seen by the library: one function a statement, rows in, models out.

Every function takes a connection, runs one file of `sql/` and returns models; psycopg's errors pass through and are
translated by whoever runs it (sqlstates.py). `store_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row, tuple_row

from queue_pg import callers, rows
from queue_pg.arrays import plain_array, sparse_interval_array, sparse_text_array, text_array
from queue_pg.attempt_model import AttemptPage
from queue_pg.attempt_model import page as attempt_page
from queue_pg.models import (
    Appended,
    ClaimedJob,
    DeadRows,
    Dependencies,
    EventsRead,
    Finished,
    HistoryRound,
    Horizon,
    InstanceDefaults,
    Job,
    KindInfo,
    LeasedJob,
    LogLine,
    MaintenanceRound,
    MaintenanceStep,
    NewEvent,
    Outcome,
    QueueStats,
    Renewed,
    Submitted,
    WhyWaiting,
    WorkerInfo,
)
from queue_pg.sqlstates import translate_error as translate_error
from queue_pg.statements import statement

Params = Mapping[str, Any]


async def _all(conn: AsyncConnection[Any], name: str, params: Params) -> list[DictRow]:
    # The cursor is made here and not by `conn.cursor()`, whose factories belong to whoever made the connection.
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)
        return await cursor.fetchall()


async def _run(conn: AsyncConnection[Any], name: str, params: Params) -> None:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)


# --- submitting -------------------------------------------------------------------------------------------------------


async def submit(conn: Any, jobs: str, *, own_transaction: bool) -> tuple[Job, bool]:
    """Store the one job in the JSON array `jobs`; return it and whether it is new. Takes any caller's connection."""
    params = {"pin": "on" if own_transaction else "off", "jobs": jobs}
    [row] = await callers.fetch_async(conn, statement("submit"), params)
    return rows.job(row), bool(row["created"])


async def submit_many(conn: Any, jobs: str, *, own_transaction: bool) -> list[Submitted]:
    """Store all jobs of the JSON array `jobs` or none, and return their ids in order. Takes any caller's connection."""
    params = {"pin": "on" if own_transaction else "off", "jobs": jobs}
    found = await callers.fetch_async(conn, statement("submit_many"), params)
    return [Submitted(UUID(row["id"]), bool(row["created"])) for row in found]


# --- reading ----------------------------------------------------------------------------------------------------------


async def get_job(conn: AsyncConnection[Any], job_id: UUID, *, org: str | None = None) -> Job | None:
    found = await _all(conn, "get_job", {"id": job_id, "org": org})
    return rows.job(found[0]) if found else None


async def get_jobs(conn: AsyncConnection[Any], ids: Sequence[UUID], *, org: str | None = None) -> list[Job]:
    return [rows.job(row) for row in await _all(conn, "get_jobs", {"ids": list(ids), "org": org})]


async def list_jobs(
    conn: AsyncConnection[Any],
    *,
    limit: int,
    with_payload: bool = False,
    org: str | None = None,
    state: str | None = None,
    queue: str | None = None,
    kind: str | None = None,
    tag: str | None = None,
    batch_id: UUID | None = None,
    parent_id: UUID | None = None,
    unique_key: str | None = None,
    rerun_of: UUID | None = None,
    error_code: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    before: UUID | None = None,
) -> list[Job]:
    """Return up to `limit` jobs newest first, those with an id below `before`. Filters that are None don't apply."""
    params = {
        "org": org,
        "state": state,
        "queue": queue,
        "kind": kind,
        "tag": tag,
        "batch_id": batch_id,
        "parent_id": parent_id,
        "unique_key": unique_key,
        "rerun_of": rerun_of,
        "error_code": error_code,
        "created_after": created_after,
        "created_before": created_before,
        "before": before,
        "limit": limit,
        "with_payload": with_payload,
    }
    return [rows.job(row) for row in await _all(conn, "list_jobs", params)]


async def watch(conn: AsyncConnection[Any], ids: Sequence[UUID]) -> dict[UUID, str]:
    """Ask for a notification at the end of each live job; return the states of those that exist."""
    return {row["id"]: row["state"] for row in await _all(conn, "watch", {"ids": list(ids)})}


async def job_states(conn: AsyncConnection[Any], ids: Sequence[UUID]) -> dict[UUID, str]:
    """Return the states of those jobs that exist."""
    return {row["id"]: row["state"] for row in await _all(conn, "job_states", {"ids": list(ids)})}


async def queue_stats(conn: AsyncConnection[Any], *, org: str | None = None) -> list[QueueStats]:
    return [QueueStats(**row) for row in await _all(conn, "queue_stats", {"org": org})]


async def workers(conn: AsyncConnection[Any]) -> list[WorkerInfo]:
    return [WorkerInfo(**row) for row in await _all(conn, "workers", {})]


async def kinds(conn: AsyncConnection[Any]) -> list[KindInfo]:
    return [rows.kind(row) for row in await _all(conn, "kinds", {})]


async def why_waiting(conn: AsyncConnection[Any], job_id: UUID, *, org: str | None = None) -> list[WhyWaiting]:
    return [WhyWaiting(**row) for row in await _all(conn, "why_waiting", {"id": job_id, "org": org})]


async def dependencies(
    conn: AsyncConnection[Any], job_id: UUID, *, limit: int, org: str | None = None
) -> Dependencies | None:
    """Return up to `limit` parents and children of a job; None: no such job in this org."""
    found = await _all(conn, "dependencies", {"id": job_id, "limit": limit, "org": org})
    return rows.dependencies(found[0]) if found else None


async def task_description(conn: AsyncConnection[Any], subtask_id: UUID) -> str | None:
    """Return the description of the task whose subtask this job is."""
    found = await _all(conn, "task_description", {"id": subtask_id})
    return found[0]["description"] if found else None


# --- events -----------------------------------------------------------------------------------------------------------


async def follow(conn: AsyncConnection[Any], ids: Sequence[UUID]) -> None:
    """Ask for a notification of each event of these jobs."""
    await _run(conn, "follow", {"ids": plain_array(ids)})


async def read_events(
    conn: AsyncConnection[Any], jobs: Sequence[tuple[UUID, int]], *, max_events: int = 1000, max_bytes: int = 1_048_576
) -> list[EventsRead | None]:
    """Read of each job the events after a number; None stands for a job that nobody knows."""
    params = {
        "ids": plain_array([job_id for job_id, _ in jobs]),
        "after": plain_array([after for _, after in jobs]),
        "max_events": max_events,
        "max_bytes": max_bytes,
    }
    async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(statement("read_events"), params)
        return rows.events_read(await cursor.fetchall(), len(jobs))


async def append_events(conn: AsyncConnection[Any], events: Sequence[NewEvent]) -> list[Appended]:
    """Append events to running jobs, each fenced by its lease; answers once for each job, in no particular order."""
    if not events:
        return []
    ids, lease_tokens, types, data = zip(*events, strict=True)
    params = {
        "ids": plain_array(ids),
        "lease_tokens": plain_array(lease_tokens),
        "types": text_array(types),
        "data": text_array(data),
    }
    async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(statement("append_events"), params)
        return [Appended(*row) for row in await cursor.fetchall()]


async def appended(
    conn: AsyncConnection[Any], ids: Sequence[UUID | str], lease_tokens: Sequence[int]
) -> dict[str, tuple[bool, int]]:
    """Tell of leases that still stand whether anything was appended by them, and how much to the job in all."""
    found = await _all(conn, "appended", {"ids": plain_array(ids), "lease_tokens": plain_array(lease_tokens)})
    return {row["id"]: (row["logged"], row["appended"]) for row in found}


async def logs(
    conn: AsyncConnection[Any], job_id: UUID, *, from_seq: int, limit: int, stream: str | None
) -> list[LogLine]:
    params = {"id": job_id, "from_seq": from_seq, "limit": limit, "stream": stream}
    return [rows.log_line(row) for row in await _all(conn, "logs", params)]


async def attempts(
    conn: AsyncConnection[Any],
    job_id: UUID,
    *,
    after: int,
    limit: int,
    org: str | None = None,
    max_bytes: int = 1_048_576,
) -> AttemptPage | None:
    """Return attempts of a job that started after an event, as many as fit; None: no such job in this org."""
    params = {"id": job_id, "org": org, "after": after, "max_rows": limit + 1, "max_bytes": max_bytes}
    found = await _all(conn, "attempts", params)
    return attempt_page(found, limit) if found else None


async def observe(conn: AsyncConnection[Any], observer: str) -> bool:
    """Ask for a notification of every transition, for the next 30 s; return whether they are sent."""
    return bool((await _all(conn, "observe", {"id": observer}))[0]["observed"])


async def unobserve(conn: AsyncConnection[Any], observer: str) -> None:
    await _run(conn, "unobserve", {"id": observer})


# --- steering ---------------------------------------------------------------------------------------------------------


async def cancel(
    conn: AsyncConnection[Any], job_id: UUID, *, reason: str | None = None, org: str | None = None
) -> Job | None:
    """Cancel an unfinished job; None: no such job in this org. A finished one raises QP002."""
    found = await _all(conn, "cancel", {"id": job_id, "reason": reason, "org": org})
    return rows.job(found[0]) if found else None


async def retry(
    conn: AsyncConnection[Any],
    job_id: UUID,
    *,
    max_attempts: int | None = None,
    fresh: bool = False,
    org: str | None = None,
) -> Job | None:
    """Put a failed or cancelled job back; None: no such job in this org. Another state raises QP002."""
    found = await _all(conn, "retry", {"id": job_id, "max_attempts": max_attempts, "fresh": fresh, "org": org})
    return rows.job(found[0]) if found else None


async def reprioritize(
    conn: AsyncConnection[Any], job_id: UUID, priority: int, *, org: str | None = None
) -> Job | None:
    """Give an unfinished job another priority; None: no such job in this org. A finished one raises QP002."""
    found = await _all(conn, "reprioritize", {"id": job_id, "priority": priority, "org": org})
    return rows.job(found[0]) if found else None


async def configure(conn: AsyncConnection[Any], defaults: InstanceDefaults) -> None:
    await _run(conn, "configure", asdict(defaults))


async def pause_queue(conn: AsyncConnection[Any], queue: str, *, until: datetime | None, org: str) -> None:
    await _run(conn, "pause_queue", {"queue": queue, "until": until, "org": org})


async def drain_queue(conn: AsyncConnection[Any], queue: str, *, org: str) -> None:
    await _run(conn, "drain_queue", {"queue": queue, "org": org})


async def resume_queue(conn: AsyncConnection[Any], queue: str, *, org: str) -> None:
    await _run(conn, "resume_queue", {"queue": queue, "org": org})


# --- working ----------------------------------------------------------------------------------------------------------


async def claim(
    conn: AsyncConnection[Any],
    worker_id: str,
    queues: Sequence[str],
    *,
    kinds: Sequence[str] | None = None,
    max_jobs: int = 1,
    lease_seconds: float | None = None,
    org: str | None = None,
    arm: bool | None = None,
) -> list[ClaimedJob]:
    """Lease up to `max_jobs` jobs. None means any kind, any tenant, and the queue's own lease.

    With `arm` an empty-handed claim asks for a notification of the next job, and looks once more.
    """
    params = {
        "worker_id": worker_id,
        "queues": list(queues),
        "kinds": None if kinds is None else list(kinds),
        "max_jobs": max_jobs,
        "lease_seconds": lease_seconds,
        "org": org,
        "arm": arm,
    }
    return [ClaimedJob(**row) for row in await _all(conn, "claim", params)]


async def claim_for_worker(
    conn: AsyncConnection[Any],
    worker_id: str,
    queues: Sequence[str],
    *,
    kinds: Sequence[str],
    max_jobs: int,
    lease_seconds: float | None = None,
    arm: bool | None = None,
) -> list[LeasedJob]:
    """Lease like `claim`, of any tenant, at little cost a job."""
    params = {
        "worker_id": worker_id,
        "queues": text_array(queues),
        "kinds": text_array(kinds),
        "max_jobs": max_jobs,
        "lease_seconds": lease_seconds,
        "arm": arm,
    }
    async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(statement("claim_for_worker"), params)
        return [LeasedJob._make(row) for row in await cursor.fetchall()]


async def arm(conn: AsyncConnection[Any], queues: Sequence[str]) -> None:
    """Ask for a notification of the next job, for others who wait for it."""
    await _run(conn, "arm", {"queues": text_array(queues)})


async def disarm(conn: AsyncConnection[Any], queues: Sequence[str]) -> None:
    """Take back what `arm` of a claim asked for: nobody here waits for these queues any more."""
    await _run(conn, "disarm", {"queues": text_array(queues)})


async def heartbeat(
    conn: AsyncConnection[Any],
    ids: Sequence[UUID | str],
    lease_tokens: Sequence[int],
    *,
    lease_seconds: float | None = None,
) -> list[Renewed]:
    """Extend leases in one statement; an id that is absent from the answer has lost its lease."""
    params = {"ids": plain_array(ids), "lease_tokens": plain_array(lease_tokens), "lease_seconds": lease_seconds}
    return [Renewed(row["id"], row["lease_expires_at"]) for row in await _all(conn, "heartbeat", params)]


async def held(conn: AsyncConnection[Any], ids: Sequence[UUID | str], lease_tokens: Sequence[int]) -> set[UUID]:
    """Return which of these leases still stand; reads only."""
    found = await _all(conn, "held", {"ids": plain_array(ids), "lease_tokens": plain_array(lease_tokens)})
    return {row["id"] for row in found}


async def leases_of(conn: AsyncConnection[Any], worker_id: str) -> list[tuple[UUID, int, float]]:
    """Return id and token of each lease that a worker has, and for how many seconds it has had it; reads only."""
    found = await _all(conn, "leases_of", {"worker_id": worker_id})
    return [(row["id"], row["lease_token"], row["age"]) for row in found]


async def finish(conn: AsyncConnection[Any], outcomes: Sequence[Outcome]) -> list[Finished]:
    """Record how attempts ended, in one statement.

    Answers come in no particular order, and only for jobs that are not simply completed now.
    """
    if not outcomes:
        return []
    ids, lease_tokens, words, results, errors, delays = zip(*outcomes, strict=True)
    params = {
        "ids": plain_array(ids),
        "lease_tokens": plain_array(lease_tokens),
        "outcomes": plain_array(words),
        "results": sparse_text_array(results),
        "errors": sparse_text_array(errors),
        "delays": sparse_interval_array(delays),
    }
    async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(statement("finish"), params)
        return [Finished(*row) for row in await cursor.fetchall()]


async def complete(conn: AsyncConnection[Any], job_id: UUID, lease_token: int, result: str | None) -> str:
    """End a job as completed with `result` as JSON text; return the new state. A lost lease raises QP003."""
    params = {"id": job_id, "lease_token": lease_token, "result": result}
    return str((await _all(conn, "complete", params))[0]["state"])


async def fail(
    conn: AsyncConnection[Any],
    job_id: UUID,
    lease_token: int,
    error: str,
    *,
    retry: bool = True,
    delay: timedelta | None = None,
) -> str:
    """End an attempt as failed with `error` as JSON text; return the new state. A lost lease raises QP003."""
    params = {"id": job_id, "lease_token": lease_token, "error": error, "retry": retry, "delay": delay}
    return str((await _all(conn, "fail", params))[0]["state"])


async def snooze(conn: AsyncConnection[Any], job_id: UUID, lease_token: int, delay: timedelta) -> str:
    params = {"id": job_id, "lease_token": lease_token, "delay": delay}
    return str((await _all(conn, "snooze", params))[0]["state"])


async def release(conn: AsyncConnection[Any], job_id: UUID, lease_token: int) -> str:
    return str((await _all(conn, "release", {"id": job_id, "lease_token": lease_token}))[0]["state"])


async def suspend(conn: AsyncConnection[Any], job_id: UUID, lease_token: int) -> str:
    return str((await _all(conn, "wait", {"id": job_id, "lease_token": lease_token}))[0]["state"])


async def plan(
    conn: AsyncConnection[Any],
    job_id: UUID,
    lease_token: int,
    subtasks: Sequence[str],
    *,
    queue: str | None,
    kind: str | None,
    max_attempts: int | None,
    timeout_seconds: float | None,
) -> str:
    params = {
        "id": job_id,
        "lease_token": lease_token,
        "subtasks": text_array(subtasks),
        "queue": queue,
        "kind": kind,
        "max_attempts": max_attempts,
        "timeout_seconds": timeout_seconds,
    }
    return str((await _all(conn, "plan", params))[0]["state"])


async def cancel_claimed(conn: AsyncConnection[Any], job_id: UUID, lease_token: int, reason: str | None) -> str:
    params = {"id": job_id, "lease_token": lease_token, "reason": reason}
    return str((await _all(conn, "cancel_claimed", params))[0]["state"])


async def register_worker(
    conn: AsyncConnection[Any],
    worker_id: str,
    *,
    host: str,
    pid: int,
    version: str,
    queues: Sequence[str],
    kinds: Sequence[str],
    capacity: int,
) -> None:
    """Add or refresh the row of a worker process."""
    params = {
        "id": worker_id,
        "host": host,
        "pid": pid,
        "version": version,
        "queues": list(queues),
        "kinds": list(kinds),
        "capacity": capacity,
    }
    await _run(conn, "register_worker", params)


async def worker_heartbeat(
    conn: AsyncConnection[Any], worker_id: str, *, active: int, processed: int, failed: int, stopping: bool = False
) -> int | None:
    """Report a worker's counters; return how many live workers share its queues. None: its row is gone."""
    params = {"id": worker_id, "active": active, "processed": processed, "failed": failed, "stopping": stopping}
    fleet: int | None = (await _all(conn, "worker_heartbeat", params))[0]["fleet"]
    return fleet


async def forget_worker(conn: AsyncConnection[Any], worker_id: str) -> None:
    await _run(conn, "forget_worker", {"id": worker_id})


async def register_kinds(conn: AsyncConnection[Any], kinds: str) -> None:
    """Add or refresh kinds; `kinds` is a JSON array as `queue_pg.register_kinds` takes it (Tasks.kinds_json)."""
    await _run(conn, "register_kinds", {"kinds": kinds})


# --- maintenance ------------------------------------------------------------------------------------------------------


async def maintain(conn: AsyncConnection[Any], *, max_jobs: int = 1000) -> MaintenanceStep:
    """Take one step of reaping, promotion and expiry."""
    return MaintenanceStep(**(await _all(conn, "maintain", {"max_jobs": max_jobs}))[0])


async def lead_maintenance(
    conn: AsyncConnection[Any],
    leader: str,
    *,
    max_jobs: int,
    arm: bool,
    since: datetime | None,
    within_seconds: float,
    age_seconds: float,
) -> MaintenanceRound:
    """Take or keep the lead and take one step, or learn when to look again; see functions/leader.sql."""
    params = {
        "leader": leader,
        "max_jobs": max_jobs,
        "arm": arm,
        "since": since,
        "within_seconds": within_seconds,
        "age_seconds": age_seconds,
    }
    [row] = await _all(conn, "lead_maintenance", params)
    about = {name: row.pop(name) for name in ("at", "took_seconds", "next_look_seconds")}
    return MaintenanceRound(step=MaintenanceStep(**row) if row.pop("leads") else None, **about)


async def resign_maintenance(conn: AsyncConnection[Any], leader: str) -> None:
    await _run(conn, "resign_maintenance", {"leader": leader})


async def maintain_history(conn: AsyncConnection[Any]) -> HistoryRound:
    """Create partitions ahead and drop a forgotten one."""
    return HistoryRound(**(await _all(conn, "maintain_history", {}))[0])


async def horizon(conn: AsyncConnection[Any]) -> Horizon | None:
    """Return who has kept dead rows from being removed for some seconds; None: nobody."""
    found = await _all(conn, "horizon", {})
    return Horizon(**found[0]) if found else None


async def dead_rows(conn: AsyncConnection[Any]) -> list[DeadRows]:
    """Return what the statistics know of the tables that `vacuum` takes."""
    return [DeadRows(**row) for row in await _all(conn, "dead_rows", {})]


async def vacuum(conn: AsyncConnection[Any], table: str) -> None:
    """Remove the dead rows of `jobs` or `queue_counters`. A table that is being vacuumed already is passed over."""
    await _run(conn, {"jobs": "vacuum_jobs", "queue_counters": "vacuum_queue_counters"}[table], {})
