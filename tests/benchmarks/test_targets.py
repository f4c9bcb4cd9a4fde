"""Every target of the project's table is a measure with the number as data."""

from __future__ import annotations

import pytest

from benchmarks.measures.catalogue import MEASURES
from benchmarks.model import Record, Target
from benchmarks.stats import judge

# measure, metric, relation, at least, at most
WANTED = [
    ("drain", "rate", "ratio", 1.2, None),
    ("drain", "rate", "ratio", 3.0, None),
    ("drain", "rate", "ratio", 1.0, None),
    ("drain", "rate", "ratio", 1.5, None),
    ("drain", "pg_us", "ratio", None, 1.25),
    ("drain", "wal", "ratio", None, 1.25),
    ("latency", "p50", "difference", None, 1.0),
    ("latency", "p99", "ratio", None, 1.5),
    ("latency", "max", "value", None, 1000),
    ("latency_load", "p99", "ratio", None, 3.0),
    ("latency_load", "p99", "ratio", None, 3.0),
    ("flow_latency", "p99", "value", None, 100),
    ("commit_tax", "ratio", "value", 0.95, None),
    ("commit_tax", "ratio", "value", 0.95, None),
    ("commit_tax", "ratio", "value", 0.95, None),
    ("commit_tax", "ratio", "value", 0.95, None),
    ("bulk", "rate", "ratio", 0.8, None),
    ("bulk", "rate", "value", 10_000, None),
    ("bulk", "rate", "value", 10_000, None),
    ("http_single", "rate", "ratio", 0.6, None),
    ("submit_latency", "p50", "value", None, 1),
    ("held_snapshot", "last_to_first", "value", 0.9, None),
    ("held_snapshot", "rate", "ratio", 0.85, None),
    ("backlog", "p99", "ratio", None, 1.5),
    ("churn", "last_to_first", "value", 0.95, None),
    ("churn", "table_growth", "value", None, 1.1),
    ("churn", "indexes_growth", "value", None, 1.1),
    ("churn", "rss", "value", None, 100),
    ("churn", "rss_growth", "value", None, 1.05),
    ("idle_fleet", "statements", "value", None, 200),
    ("idle_fleet", "cpu", "value", None, 2),
    ("events", "rate", "value", 50_000, None),
    ("event_latency", "p99", "value", None, 10),
    ("idle_streams", "rss", "value", None, 200),
    ("artifacts", "rss", "value", None, 100),
    ("limits", "rate", "ratio", 0.3, None),
    ("limits", "foreign", "value", None, 20),
]


def test_every_target_is_there() -> None:
    found = [
        (name, target.metric, target.relation, target.at_least, target.at_most)
        for name, measure in MEASURES.items()
        for target in measure.TARGETS
    ]
    assert found == WANTED


@pytest.mark.parametrize("name", MEASURES)
def test_targets_name_columns_of_the_measure(name: str) -> None:
    measure = MEASURES[name]
    assert {target.metric for target in measure.TARGETS} <= {metric.name for metric in measure.METRICS}
    assert all(target.pairs for target in measure.TARGETS)


RATIO = Target(text="", metric="rate", pairs=[("own", "raw")], at_least=1.2)
DIFFERENCE = Target(text="", metric="p50", pairs=[("own", "raw")], relation="difference", at_most=1.0)
WORST = Target(text="", metric="p99", pairs=[("slow", "own"), ("fast", "own")], at_most=3.0)


def _record(**figures: dict[str, list[float]]) -> Record:
    return Record(figures=figures)


def test_a_ratio_is_taken_inside_each_run() -> None:
    # The machine was twice as fast in the last run; the medians alone would say 1.0.
    verdict = judge(RATIO, _record(own={"rate": [10, 13, 26]}, raw={"rate": [10, 10, 20]}))
    assert verdict.spread is not None
    assert (verdict.spread.median, verdict.spread.low, verdict.spread.high) == (1.3, 1.0, 1.3)
    assert verdict.met


def test_a_difference_has_the_unit_of_its_metric() -> None:
    verdict = judge(DIFFERENCE, _record(own={"p50": [3.0, 4.5]}, raw={"p50": [2.5, 2.0]}))
    assert verdict.spread is not None
    assert verdict.spread.median == 1.5
    assert not verdict.met


def test_the_worst_pair_decides() -> None:
    verdict = judge(WORST, _record(own={"p99": [1.0]}, fast={"p99": [2.0]}, slow={"p99": [4.0]}))
    assert verdict.pair == ("slow", "own")
    assert not verdict.met


def test_what_was_not_measured_is_not_met() -> None:
    verdict = judge(WORST, _record(own={"p99": [1.0]}, fast={"p99": [2.0]}))
    assert verdict.spread is None
    assert not verdict.met
