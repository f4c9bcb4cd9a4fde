"""What people type is read as they mean it, or refused with an example."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from queue_pg.cli.values import parse_duration, parse_priority, parse_time
from queue_pg.errors import InvalidJob


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0", 0),
        ("1.5", 1.5),
        ("30s", 30),
        ("250ms", 0.25),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        (" 5M ", 300),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, field="delay") == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "-5", "5 min", "m5", "5x", "1e3", "nan", "٣", "1h 30m", "999999999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        parse_duration(text, field="delay")
    assert refused.value.field == "delay"
    assert "5m" in (refused.value.hint or "")


def test_times_need_a_zone() -> None:
    assert parse_time("2026-01-31T09:00:00Z", field="run_at") == datetime(2026, 1, 31, 9, tzinfo=UTC)
    assert parse_time("2026-01-31T10:00+01:00", field="run_at") == datetime(2026, 1, 31, 9, tzinfo=UTC)
    for text in ("2026-01-31T09:00:00", "tomorrow", "infinity", ""):
        with pytest.raises(InvalidJob, match="run_at"):
            parse_time(text, field="run_at")


def test_priorities_have_numbers_and_names() -> None:
    assert [parse_priority(word) for word in ("critical", "HIGH", "normal", "low", "batch", "7", "-3")] == [
        *(20, 10, 0, -10, -20, 7, -3)
    ]
    for text in ("urgent", "1.5", "40000", ""):
        with pytest.raises(InvalidJob, match="priority"):
            parse_priority(text)
