"""How often the leader looks and how far back, decided without a clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from queue_pg.models import MaintenanceRound, MaintenanceStep
from queue_pg.pace import Pace

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
QUIET = {"reaped": 0, "promoted": 0, "expired": 0, "busy": False, "next_due_seconds": None}


def answer(*, at: datetime = NOON, took: float = 0.0001, **step: Any) -> MaintenanceRound:
    return MaintenanceRound(step=MaintenanceStep(**{**QUIET, **step}), at=at, took_seconds=took, next_look_seconds=0.0)


def pause(**given: Any) -> float:
    pace = Pace()
    pace.begin(0)
    pace.end(answer(**given), 0)
    return pace.pause_seconds


def test_it_sleeps_until_the_next_thing_falls_due_but_a_second_at_most() -> None:
    assert pause() == 1.0
    assert pause(next_due_seconds=0.3) == 0.301
    assert pause(next_due_seconds=100.0) == 1.0
    assert pause(next_due_seconds=0.0) == 0.01
    assert pause(next_due_seconds=0.0, busy=True) == 0.25
    assert pause(promoted=1000) == 0


def test_who_does_not_lead_sleeps_as_told_whatever_the_hints() -> None:
    pace = Pace()
    pace.begin(0)
    pace.end(MaintenanceRound(step=None, at=NOON, took_seconds=0.0, next_look_seconds=17.5), 0)
    assert (pace.pause_seconds, pace.rest_seconds) == (17.5, 17.5)
    assert pace.begin(1) is None  # should it lead then, it has not looked yet


def test_looks_are_full_while_that_is_cheap() -> None:
    pace = Pace()
    for now in (0.0, 0.1, 0.2, 5.0):
        assert pace.begin(now) is None
        pace.end(answer(took=0.001), now)


def test_where_full_looks_are_slow_quick_ones_come_between() -> None:
    pace = Pace()
    assert pace.begin(0) is None
    pace.end(answer(took=0.2), 0)
    # Sixty times 0.2 s until the next full one.
    assert pace.begin(1) == NOON
    pace.end(answer(at=NOON + timedelta(seconds=1), took=0.01), 1)
    assert pace.begin(2) == NOON + timedelta(seconds=1)
    assert pace.begin(13) is None


def test_a_slow_look_is_followed_by_a_long_rest_within_bounds() -> None:
    pace = Pace()
    pace.begin(0)
    pace.end(answer(took=0.2), 0)
    for took, rest in ((0.0001, 0.01), (0.01, 0.3), (3.0, 2.0)):
        pace.begin(1)
        pace.end(answer(took=took, next_due_seconds=0.0), 1)
        assert (pace.pause_seconds, pace.rest_seconds) == (rest, rest)


def test_what_a_full_batch_left_is_looked_for_again() -> None:
    pace = Pace()
    pace.begin(0)
    pace.end(answer(took=0.2), 0)
    assert pace.begin(1) == NOON
    pace.end(answer(at=NOON + timedelta(seconds=1), promoted=1000), 1)
    assert pace.begin(1) == NOON
    pace.end(answer(at=NOON + timedelta(seconds=2), busy=True), 1)
    assert pace.begin(2) == NOON
    pace.end(answer(at=NOON + timedelta(seconds=3)), 2)
    assert pace.begin(3) == NOON + timedelta(seconds=3)


def test_a_full_batch_of_a_full_look_is_followed_by_another_full_look() -> None:
    pace = Pace()
    pace.begin(0)
    pace.end(answer(took=0.5, reaped=1000), 0)
    assert pace.begin(0.5) is None
