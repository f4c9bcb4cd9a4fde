"""`doctor` and `stats` on who keeps dead rows from being removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from queue_pg import store_sync
from queue_pg.models import Horizon

HOLDER = Horizon(
    kind="session",
    pid=4711,
    name="report",
    username="analyst",
    database="shop",
    state="idle in transaction",
    visible=True,
    age_seconds=754.2,
    age_transactions=91_000,
    query="select * from orders \x1b[31m",
    dead_rows=45_000,
    jobs_bytes=300 * 2**20,
)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a holder of one's own the one that the database tells of."""

    def hold(**changed: Any) -> None:
        monkeypatch.setattr(store_sync, "horizon", lambda _: replace(HOLDER, **changed))

    return hold


def check(cli: Any) -> dict[str, Any]:
    shown = cli("doctor", "--json")
    assert shown.code == 0
    [found] = [item for item in shown.json["checks"] if item["check"] == "horizon"]
    return found


def test_doctor_warns_of_a_holder_that_costs_something_and_says_how_to_end_it(cli: Any, held: Any) -> None:
    assert check(cli)["status"] == "ok"
    held()
    found = check(cli)
    assert found["status"] == "warn"
    assert "pid 4711" in found["message"]
    assert "45,000 dead rows" in found["message"]
    assert "pg_terminate_backend(4711)" in found["hint"]
    assert "docs/operations.md" in found["hint"]


def test_doctor_lets_everyday_business_pass(cli: Any, held: Any) -> None:
    for changed in ({"age_seconds": 6.0}, {"dead_rows": 10}):
        held(**changed)
        assert check(cli)["status"] == "ok"
    held(kind="slot", age_seconds=None)
    assert check(cli)["status"] == "warn"


def test_stats_name_the_holder_safely(cli: Any, held: Any) -> None:
    assert cli("stats", "--json").json["horizon"] is None
    held()
    assert cli("stats", "--json").json["horizon"]["pid"] == 4711
    shown = cli("stats").out
    assert "pid 4711" in shown
    assert "\x1b" not in shown
