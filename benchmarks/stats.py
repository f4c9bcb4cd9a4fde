"""Medians with ranges, percentiles, and what they say about a target."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.model import Record, Target


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some runs and the lowest and highest of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a target was met: the figure of its worst pair, which pair that was, and the spread over the runs.

    `spread` is None when something the target needs was not measured.
    """

    target: Target
    spread: Spread | None
    pair: tuple[str, str] | None = None

    @property
    def met(self) -> bool:
        """Whether the worst pair is on the right side; what was not measured is not met."""
        return self.spread is not None and self.target.met_by(self.spread.median)


def spread(values: Sequence[float]) -> Spread:
    """Return median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


def judge(target: Target, record: Record) -> Verdict:
    """Hold a record against a target: the pair that does worst decides."""
    worst: Verdict | None = None
    for pair in target.pairs:
        values = compare(target, record, pair)
        if not values:
            return Verdict(target, None, pair)
        found = Verdict(target, spread(values), pair)
        if worst is None or _shortfall(target, found) > _shortfall(target, worst):
            worst = found
    return worst or Verdict(target, None)


def compare(target: Target, record: Record, pair: tuple[str, str]) -> list[float]:
    """Return the ratio, difference or value of each run; empty when one side was not measured."""
    own = record.figures.get(pair[0], {}).get(target.metric, [])
    if target.relation == "value":
        return list(own)
    other = record.figures.get(pair[1], {}).get(target.metric, [])
    both = zip(own, other, strict=False)  # a contestant that failed in one run has fewer values
    if target.relation == "difference":
        return [a - b for a, b in both]
    return [a / b for a, b in both if b]


def _shortfall(target: Target, verdict: Verdict) -> float:
    assert verdict.spread is not None
    return verdict.spread.median if target.at_most is not None else -verdict.spread.median
