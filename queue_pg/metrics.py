"""What monitoring asks of the database, at a bounded cost (migrations/functions/metrics.sql)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row

from queue_pg.statements import statement


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMetrics:
    """One queue. From `completed` to `failed_webhooks` totals since the beginning; they only grow.

    `estimated`: not all live jobs were counted. `unlisted`: how many queues are left out, the same in each.
    """

    org: str
    queue: str
    paused: bool
    scheduled: int
    waiting: int
    queued: int
    running: int
    estimated: bool
    oldest_queued_seconds: float
    completed: int
    failed: int
    cancelled: int
    retried: int
    lease_losses: int
    failed_webhooks: int
    workers: int
    unlisted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitMetrics:
    """A limit, or all that a template has made. `max_running` is None when only the rate is limited."""

    org: str
    scope: str
    name: str
    running: int
    max_running: int | None
    full_limits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceMetrics:
    """The whole instance. Nobody holds dead rows: `horizon_kind` is None."""

    workers: int
    stopping_workers: int
    slots: int
    busy_slots: int
    schedules: int
    paused_schedules: int
    failing_schedules: int
    schedule_lag_seconds: float
    due_lag_seconds: float
    horizon_age_seconds: float
    horizon_age_transactions: int
    horizon_kind: str | None
    dead_jobs: int
    dead_counters: int
    live_jobs: int
    jobs_bytes: int
    maintenance_leads: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """All of it."""

    queues: Sequence[QueueMetrics]
    limits: Sequence[LimitMetrics]
    instance: InstanceMetrics


async def read_metrics(conn: AsyncConnection[Any], *, org: str | None) -> Metrics:
    """Return what monitoring asks: the queues and limits of an organisation (None: of all), and the instance."""
    queues = await _all(conn, "queue_metrics", {"org": org})
    limits = await _all(conn, "limit_metrics", {"org": org})
    [instance] = await _all(conn, "instance_metrics", {})
    return Metrics(
        queues=[QueueMetrics(**row) for row in queues],
        limits=[LimitMetrics(**row) for row in limits],
        instance=InstanceMetrics(**instance),
    )


async def _all(conn: AsyncConnection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params)
        return await cursor.fetchall()
