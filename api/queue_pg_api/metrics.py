"""`GET /metrics`: what Prometheus scrapes. Names and meanings are listed in docs/metrics.md.

Totals come from Postgres, so they are the same whichever process of the API is asked, and grow across restarts. No
label holds an id, and none a text that a client has chosen, but for the names of queues and limits, of which the
busiest are listed (functions/metrics.sql).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from queue_pg.client import Queue
from queue_pg.errors import QueuePgError
from queue_pg.looking import looking
from queue_pg.metrics import InstanceMetrics, LimitMetrics, Metrics, QueueMetrics, read_metrics
from queue_pg_api.pages.pulse import Rest

LOOK_SECONDS: Final = 2.0
# Scrapers that come at the same time are told the same.
FRESH_SECONDS: Final = 0.5
SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LIVE_STATES: Final = ("scheduled", "waiting", "queued", "running")
END_STATES: Final = ("completed", "failed", "cancelled")


class HttpMetrics:
    """What this process measures of its requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "queue_pg_http_requests",
            "Requests answered, by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "queue_pg_http_request_seconds",
            "Seconds until the answer began, the waits of long polls included.",
            ["method", "route"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        streams = Gauge(
            "queue_pg_http_open_streams", "Streams of events that are open.", ["type"], registry=self.registry
        )
        self.event_streams = streams.labels("sse")
        self.sockets = streams.labels("websocket")

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is the template of a path, never a path."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class DatabaseMetrics:
    """What the database is asked for scrapes, once for all that come together, and after slow looks more seldom."""

    def __init__(self, queue: Queue, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._lock = asyncio.Lock()
        self._rest = Rest()
        self._found: Metrics | None = None
        self._took = 0.0
        self._fresh_until = float("-inf")

    async def families(self) -> list[Metric]:
        """Return the figures of the database; when it does not answer, only that it does not."""
        async with self._lock:
            if self._clock() >= self._fresh_until:
                await self._look()
            return [*_database(self._found is not None, self._took), *(_families(self._found) if self._found else ())]

    async def _look(self) -> None:
        self._found = None
        began = self._clock()
        try:
            async with looking(self._queue, LOOK_SECONDS) as conn:
                began = self._clock()  # having a connection, which may have had to be opened
                self._found = await read_metrics(conn, org=self._queue.org)
        except QueuePgError:
            # Away, overloaded, or not migrated yet: told as queue_pg_database_up 0, and in full by /readyz.
            pass
        ended = self._clock()
        self._took = ended - began
        self._fresh_until = ended + max(FRESH_SECONDS, self._rest.after(self._took))


class _Collected:
    """What an encoder of prometheus_client takes for a registry."""

    def __init__(self, families: Sequence[Metric], registry: CollectorRegistry) -> None:
        self._families = families
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        yield from self._families
        yield from self._registry.collect()


def write(accept: str, families: Sequence[Metric], registry: CollectorRegistry) -> tuple[bytes, str]:
    """Return the text in the format that a scraper asks for, and its media type."""
    encode, media_type = choose_encoder(accept)
    collected: Any = _Collected(families, registry)
    return encode(collected), media_type


def _gauge(name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(f"queue_pg_{name}", text, labels=labels)
    for found, value in values:
        family.add_metric(found, value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = CounterMetricFamily(f"queue_pg_{name}", text, labels=labels)
    for found, value in values:
        family.add_metric(found, value)
    return family


def _database(up: bool, took: float) -> Iterator[Metric]:
    yield _gauge("database_up", "1 when the database had the figures, else 0: they are missing then.", (), [((), up)])
    yield _gauge("database_look_seconds", "Seconds that the database took for these figures.", (), [((), took)])


def _families(found: Metrics) -> Iterator[Metric]:
    yield from _of_queues(found.queues)
    yield from _of_limits(found.limits)
    yield from _of_instance(found.instance)


def _of_queues(queues: Sequence[QueueMetrics]) -> Iterator[Metric]:
    names = ("org", "queue")

    def each(field: str) -> list[tuple[Sequence[str], float]]:
        return [((one.org, one.queue), getattr(one, field)) for one in queues]

    def states(words: Sequence[str]) -> list[tuple[Sequence[str], float]]:
        return [((one.org, one.queue, word), getattr(one, word)) for one in queues for word in words]

    yield _gauge("queue_jobs", "Live jobs by state.", (*names, "state"), states(LIVE_STATES))
    yield _gauge("queue_estimated", "1 when the live jobs are too many to count all of them.", names, each("estimated"))
    yield _gauge(
        "queue_oldest_queued_seconds",
        "How long the oldest claimable job has been due; 0 when there is none.",
        names,
        each("oldest_queued_seconds"),
    )
    yield _gauge("queue_paused", "1 when the queue is paused.", names, each("paused"))
    yield _gauge("queue_workers", "Live workers that serve the queue.", names, each("workers"))
    yield _counter("jobs_finished", "Jobs that ended, by state.", (*names, "state"), states(END_STATES))
    yield _counter("attempts_retried", "Failed attempts followed by another one.", names, each("retried"))
    yield _counter("lease_losses", "Leases that ran out because a worker vanished.", names, each("lease_losses"))
    yield _counter("webhooks_failed", "Webhooks that failed for good.", names, each("failed_webhooks"))
    unlisted = max((one.unlisted for one in queues), default=0)
    yield _gauge("queues_unlisted", "Queues without figures, because there are too many.", (), [((), unlisted)])


def _of_limits(limits: Sequence[LimitMetrics]) -> Iterator[Metric]:
    names = ("org", "scope", "name")
    yield _gauge(
        "limit_running",
        "Attempts that count against the limit; of a template, those of all its keys.",
        names,
        [((one.org, one.scope, one.name), one.running) for one in limits],
    )
    yield _gauge(
        "limit_max_running",
        "Most attempts at once; of a template, of all keys in use together.",
        names,
        [((one.org, one.scope, one.name), one.max_running) for one in limits if one.max_running is not None],
    )
    yield _gauge(
        "limit_full",
        "1 when the limit is used up; of a template, how many of its keys are.",
        names,
        [((one.org, one.scope, one.name), one.full_limits) for one in limits],
    )


def _of_instance(one: InstanceMetrics) -> Iterator[Metric]:
    yield _gauge(
        "workers", "Live workers.", ("status",), [(("working",), one.workers), (("stopping",), one.stopping_workers)]
    )
    free = max(one.slots - one.busy_slots, 0)
    yield _gauge(
        "worker_slots",
        "Jobs that the live workers can run at once.",
        ("status",),
        [(("busy",), one.busy_slots), (("free",), free)],
    )
    active = max(one.schedules - one.paused_schedules, 0)
    yield _gauge("schedules", "Schedules.", ("status",), [(("active",), active), (("paused",), one.paused_schedules)])
    yield _gauge("schedules_failing", "Schedules whose last fire made no job.", (), [((), one.failing_schedules)])
    yield _gauge(
        "schedule_lag_seconds", "How late the most overdue fire of a schedule is.", (), [((), one.schedule_lag_seconds)]
    )
    yield _gauge(
        "due_lag_seconds", "How late the most overdue scheduled job is promoted.", (), [((), one.due_lag_seconds)]
    )
    leads = one.maintenance_leads
    yield _gauge("maintenance_up", "1 while a process does the maintenance.", (), [((), leads)])
    yield _gauge(
        "horizon_age_seconds",
        "Age of the oldest transaction that keeps dead rows from being removed.",
        (),
        [((), one.horizon_age_seconds)],
    )
    yield _gauge(
        "horizon_age_transactions",
        "Age of what keeps dead rows from being removed, in transactions begun since.",
        (),
        [((), one.horizon_age_transactions)],
    )
    tables = [(("jobs",), one.dead_jobs), (("queue_counters",), one.dead_counters)]
    yield _gauge("dead_rows", "Dead rows as far as the statistics know.", ("table",), tables)
    yield _gauge("live_rows", "Live rows as far as the statistics know.", ("table",), [(("jobs",), one.live_jobs)])
    yield _gauge("jobs_bytes", "Size of the table of live jobs with its indexes.", (), [((), one.jobs_bytes)])
