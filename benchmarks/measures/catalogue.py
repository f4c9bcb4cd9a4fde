"""All measures, in the order in which they run and appear in the report."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Protocol, cast

from benchmarks.bench import Bench
from benchmarks.measures import (
    artifacts,
    backlog,
    bulk,
    churn,
    commit_tax,
    cost,
    drain,
    event_latency,
    events,
    flow_latency,
    held_snapshot,
    http_single,
    idle_fleet,
    idle_streams,
    latency,
    latency_load,
    limits,
    submit_latency,
)
from benchmarks.model import Metric, Record, Target


class Measure(Protocol):
    """What a module of this package offers. METHOD says how it is measured and what the figures mean."""

    NAME: str
    TITLE: str
    METHOD: str
    METRICS: Sequence[Metric]
    TARGETS: Sequence[Target]

    def run(self, bench: Bench) -> Record:
        """Measure once, with as many runs as the bench says."""
        ...


_MODULES: list[ModuleType] = [
    drain,
    cost,
    latency,
    latency_load,
    flow_latency,
    commit_tax,
    bulk,
    http_single,
    submit_latency,
    held_snapshot,
    backlog,
    churn,
    idle_fleet,
    events,
    event_latency,
    idle_streams,
    artifacts,
    limits,
]

MEASURES: dict[str, Measure] = {measure.NAME: measure for measure in cast("list[Measure]", _MODULES)}
