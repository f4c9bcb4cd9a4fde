from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, field_serializer

from queue_pg import Cancel, Fail, Snooze
from queue_pg.outcomes import of_error, of_return
from queue_pg.payloads import decode_json

ID = uuid4()


@dataclasses.dataclass
class Point:
    x: int
    at: datetime


class Hostile(BaseModel):
    n: int = 1

    @field_serializer("n")
    def _refuse(self, value: int) -> int:
        raise KeyError("no")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, None),
        ("text", "text"),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (Point(1, datetime(2026, 1, 2, tzinfo=UTC)), {"x": 1, "at": "2026-01-02T00:00:00Z"}),
        ({1: "keys become text"}, {"1": "keys become text"}),
    ],
)
def test_values_are_results(value: Any, result: Any) -> None:
    outcome = of_return(ID, 3, value)
    assert (outcome.id, outcome.lease_token, outcome.outcome, outcome.error) == (ID, 3, "complete", None)
    assert (None if outcome.result is None else decode_json(outcome.result)) == result


@pytest.mark.parametrize(
    "value",
    [math.nan, {"a": "\x00"}, "\ud800", object(), Hostile(), Snooze("soon"), Fail("x", delay=5), 10**400],  # type: ignore[arg-type]
)
def test_what_cannot_be_stored_fails_for_good(value: Any) -> None:
    outcome = of_return(ID, 3, value)
    assert outcome.outcome == "discard"
    assert outcome.error is not None
    assert decode_json(outcome.error)["code"] == "result_invalid"


def test_returned_outcomes() -> None:
    assert of_return(ID, 1, Snooze(timedelta(seconds=5))).delay == timedelta(seconds=5)
    assert of_return(ID, 1, Snooze(timedelta(seconds=-5))).delay == timedelta(0)
    assert of_return(ID, 1, Snooze(timedelta.max)).delay == timedelta(days=365)
    assert of_return(ID, 1, Cancel("why\x00")).outcome == "cancel"
    failed = of_return(ID, 1, Fail("m", code="c", details={"code": 1, "message": 2, "status": 3, "details": 4}))
    assert failed.outcome == "fail"
    assert failed.error is not None
    assert decode_json(failed.error) == {"code": "c", "message": "m", "status": 3, "details": 4}
    assert of_return(ID, 1, Fail("m", retry=False)).outcome == "discard"


def test_exceptions_are_failed_attempts() -> None:
    for error in (ValueError("bad \ud800"), Unprintable(), ExceptionGroup("g", [ValueError("x")])):
        outcome = of_error(ID, 1, error)
        assert outcome.outcome == "fail"
        assert outcome.error is not None
        assert decode_json(outcome.error)["code"] == type(error).__name__
