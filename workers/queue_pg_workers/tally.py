"""What one worker process counts of its work, and the port where Prometheus reads it (docs/metrics.md).

Counted in plain numbers, written by the worker's loop alone and read by the thread that answers a scrape: an attempt
costs a fraction of a microsecond. Without a port nothing is counted.
"""

from __future__ import annotations

import errno
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from queue_pg.errors import ConfigError
from queue_pg.models import LeasedJob

if TYPE_CHECKING:
    from queue_pg_workers.leases import Held

# Of attempts: model calls take seconds to minutes, and some handlers milliseconds.
ATTEMPT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
WAIT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600, 1800, 3600, 21600)
STATEMENT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# How an attempt ended that has no outcome of its own: its lease had passed to another worker.
LOST: Final = "lease_lost"


class Distribution:
    """How many values fell below each of the bounds, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts as Prometheus takes them."""
        found: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], list(self.counts), strict=True):
            below += count
            found.append((bound, below))
        return found


class Tally:
    """The counts of one worker process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self.attempts: dict[tuple[str, str], int] = {}
        self.durations: dict[str, Distribution] = {}
        self.waits: dict[str, Distribution] = {}
        self.claims = Distribution(STATEMENT_BUCKETS)
        self.finishes = Distribution(STATEMENT_BUCKETS)
        self.claimed = 0
        self.errors: dict[str, int] = {}

    def started(self, batch: Sequence[Held]) -> None:
        """Count that the handlers of these jobs start now."""
        now = self._wall()
        for held in batch:
            if held.job.attempt == 1 and (submitted_at := _submitted_at(held.job)) is not None:
                _of(self.waits, held.job.kind, WAIT_BUCKETS).add(max(now - submitted_at, 0.0))

    def ended(self, held: Held) -> None:
        """Count an attempt that has its outcome, or whose lease is lost."""
        job = held.job
        outcome = held.outcome
        key = (job.kind, LOST if held.lost or outcome is None else outcome.outcome)
        self.attempts[key] = self.attempts.get(key, 0) + 1
        # It was to time out so much after its start.
        seconds = self._clock() - (held.times_out_at - job.timeout_seconds)
        _of(self.durations, job.kind, ATTEMPT_BUCKETS).add(max(seconds, 0.0))

    def failed(self, what: str) -> None:
        """Count that the database could not be used for something."""
        self.errors[what] = self.errors.get(what, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What is read when it is asked for."""

    worker_id: str
    version: str
    capacity: int
    busy: Callable[[], int]
    unrecorded: Callable[[], int]
    listening: Callable[[], bool]


class TallyCollector(Collector):
    """The counts in the form of prometheus_client."""

    def __init__(self, tally: Tally, gauges: Gauges) -> None:
        self._tally = tally
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        tally, gauges = self._tally, self._gauges
        busy = gauges.busy()
        yield _gauge("info", "1; which worker this is.", {"worker": gauges.worker_id, "version": gauges.version}, 1)
        slots = GaugeMetricFamily("queue_pg_worker_process_slots", "Jobs it can run at once.", labels=["status"])
        slots.add_metric(["busy"], busy)
        slots.add_metric(["free"], max(gauges.capacity - busy, 0))
        yield slots
        unrecorded = gauges.unrecorded()
        yield _gauge("unrecorded_outcomes", "Outcomes that the database has not taken yet.", {}, unrecorded)
        yield _gauge("listening", "1 while notifications get through.", {}, gauges.listening())
        attempts = CounterMetricFamily(
            "queue_pg_worker_attempts", "Attempts that ended, by kind and outcome.", labels=["kind", "outcome"]
        )
        for (kind, outcome), count in sorted(tally.attempts.items()):
            attempts.add_metric([kind, outcome], count)
        yield attempts
        yield _histogram("attempt_seconds", "Seconds that attempts took.", tally.durations)
        yield _histogram(
            "pickup_seconds",
            "Seconds from submission to the first attempt, a delay that was asked for included.",
            tally.waits,
        )
        yield _statements("claim_seconds", "Seconds that claims took.", tally.claims)
        yield _statements("finish_seconds", "Seconds that recording a batch of outcomes took.", tally.finishes)
        yield CounterMetricFamily("queue_pg_worker_claimed_jobs", "Jobs claimed.", value=tally.claimed)
        errors = CounterMetricFamily(
            "queue_pg_worker_database_errors", "Times that the database could not be used.", labels=["during"]
        )
        for what, count in sorted(tally.errors.items()):
            errors.add_metric([what], count)
        yield errors


class MetricsServer:
    """Answers Prometheus on a port of its own, from a thread."""

    def __init__(self, tally: Tally, gauges: Gauges, *, host: str, port: int) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(TallyCollector(tally, gauges))
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except (OSError, OverflowError) as error:
            raise _refusal(error, host, port) from None

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _refusal(error: Exception, host: str, port: int) -> ConfigError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"Port {port} on {host}, for the worker's metrics, is in use.",
            setting="QUEUE_PG_METRICS_PORT",
            hint="Choose another one, or unset QUEUE_PG_METRICS_PORT: the worker then has no metrics of its own.",
        )
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(
        f"The worker's metrics cannot listen on {host!r}, port {port}: {reason}.",
        setting="QUEUE_PG_METRICS_HOST",
        hint="Give an address of this machine: 127.0.0.1 for itself alone, 0.0.0.0 for all its networks.",
    )


def _of(found: dict[str, Distribution], kind: str, bounds: Sequence[float]) -> Distribution:
    if (one := found.get(kind)) is None:
        one = found[kind] = Distribution(bounds)
    return one


def _submitted_at(job: LeasedJob) -> float | None:
    """Return when the job was submitted, which is in its id; None when somebody chose the id otherwise (no UUIDv7)."""
    return int(job.id[:8] + job.id[9:13], 16) / 1000 if job.id[14] == "7" else None


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(f"queue_pg_worker_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _histogram(name: str, text: str, found: dict[str, Distribution]) -> Metric:
    family = HistogramMetricFamily(f"queue_pg_worker_{name}", text, labels=["kind"])
    for kind, one in sorted(found.items()):
        family.add_metric([kind], buckets=one.buckets(), sum_value=one.total)
    return family


def _statements(name: str, text: str, one: Distribution) -> Metric:
    family = HistogramMetricFamily(f"queue_pg_worker_{name}", text)
    family.add_metric([], buckets=one.buckets(), sum_value=one.total)
    return family
