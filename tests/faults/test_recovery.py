"""How soon work goes on, from ledgers made by hand."""

from __future__ import annotations

import math

import pytest

from tests.faults.ledgers import Edge, Run
from tests.faults.recovery import Outage, back_after, broken_back, broken_reclaims, percentile, reclaims

SECOND = 1_000_000_000
OUTAGE = Outage(0, 10 * SECOND, 12 * SECOND, 30 * SECOND)


def work(begin: float, end: float, rate: float) -> list[Run]:
    count = int((end - begin) * rate)
    return [Run(n, "a", 1, 1, 0, int((begin + n / rate) * SECOND)) for n in range(count)]


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        (work(12, 30, 100), 0.0),
        (work(16, 30, 100), 3.9),
        # A burst of what has waited is not yet a recovery.
        ([*work(12, 12.5, 400), *work(12.5, 20, 20), *work(20, 30, 100)], 7.5),
        (work(12, 30, 90), math.inf),
        ([], math.inf),
    ],
)
def test_throughput_is_back_when_it_stays(after: list[Run], seconds: float) -> None:
    [found] = back_after([*work(0, 10, 100), *after], [OUTAGE])
    assert found == pytest.approx(seconds, abs=0.5)


def test_one_slow_outage_is_no_broken_promise_and_most_are() -> None:
    assert broken_back([]) is None
    assert broken_back([1.0, 2.0, math.inf]) is None
    assert broken_back([1.0, 11.0, math.inf]) is not None


def edge(seq: int, at: float, job: str, before: str, after: str, losses: int, worker: str | None) -> Edge:
    return Edge(seq, at, seq, job, "changed", before, after, seq, losses, worker, None, None)


def test_jobs_of_a_killed_worker_are_found_with_the_next() -> None:
    edges = [
        edge(1, 10.0, "a", "queued", "running", 0, "w1"),
        edge(2, 10.0, "b", "queued", "running", 0, "w2"),
        edge(3, 13.0, "a", "running", "queued", 1, None),
        edge(4, 13.0, "b", "running", "queued", 1, None),
        edge(5, 13.5, "a", "queued", "running", 1, "w3"),
        edge(6, 14.0, "b", "queued", "running", 1, "w3"),
        # That one lives, and its job was not that of a killed one any more.
        edge(7, 20.0, "a", "running", "queued", 2, None),
        edge(8, 25.0, "a", "queued", "running", 2, "w4"),
    ]
    assert reclaims(edges, {"w1": 11.0}) == {"w1": [2.5]}
    assert reclaims(edges, {"w1": 11.0, "w9": 1.0})["w9"] == []


def test_late_claims_are_told_when_they_are_not_chance() -> None:
    assert broken_reclaims([], 2.0) is None
    assert broken_reclaims([2.5] * 99 + [9.0], 2.0) is None
    assert broken_reclaims([2.5] * 90 + [9.0] * 10, 2.0) is not None
    assert percentile([], 0.5) == 0.0
    assert percentile([1.0, 2.0, 3.0], 0.99) == 3.0
