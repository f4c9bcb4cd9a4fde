"""What is said about who keeps dead rows from being removed, and how often."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from queue_pg.horizon import HorizonWatch, advice, describe
from queue_pg.models import Horizon

SESSION = Horizon(
    kind="session",
    pid=4711,
    name="report",
    username="analyst",
    database="shop",
    state="idle in transaction",
    visible=True,
    age_seconds=754.2,
    age_transactions=91_000,
    query="select * from orders",
    dead_rows=45_000,
    jobs_bytes=300 * 2**20,
)


def test_a_session_is_named_with_its_cost_and_how_to_end_it() -> None:
    assert describe(SESSION) == (
        "The transaction of pid 4711 (report, user analyst, idle in transaction): 'select * from orders',"
        " 754 s and 91,000 transactions old,"
        " keeps up to 45,000 dead rows of the queue from being removed (its table has 300 MiB)."
    )
    assert advice(SESSION).startswith("End it: select pg_terminate_backend(4711).")


def test_who_is_not_visible_is_named_as_far_as_known() -> None:
    hidden = replace(SESSION, visible=False, state=None, query=None, age_seconds=None)
    assert describe(hidden).startswith("The transaction of pid 4711 (report, user analyst), 91,000 transactions old")
    assert "pg_read_all_stats" in advice(hidden)


@pytest.mark.parametrize(
    ("kind", "who", "what"),
    [
        ("prepared", "The prepared transaction 'order-17' of analyst in database shop", "rollback prepared 'order-17'"),
        ("slot", "The replication slot 'order-17' (inactive)", "pg_drop_replication_slot('order-17')"),
        ("standby", "The standby 'order-17' with hot_standby_feedback (pid 4711)", "hot_standby_feedback = off"),
    ],
)
def test_every_kind_of_holder_has_its_words(kind: str, who: str, what: str) -> None:
    holder = replace(SESSION, kind=kind, name="order-17", state="inactive", query=None)
    assert describe(holder).startswith(who)
    assert what in advice(holder)


def test_it_warns_at_first_then_seldom_and_says_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "queue_pg.horizon")
    watch = HorizonWatch()

    def told(holder: Horizon | None, now: float) -> list[str]:
        caplog.clear()
        watch.look(holder, now)
        return [record.levelname for record in caplog.records]

    assert told(None, 0) == []
    assert told(replace(SESSION, age_seconds=29.0), 1) == []
    assert told(replace(SESSION, dead_rows=999), 2) == []
    assert told(SESSION, 3) == ["WARNING"]
    assert told(SESSION, 13) == []
    assert told(replace(SESSION, pid=4712), 23) == []
    assert told(replace(SESSION, pid=4712), 303) == ["WARNING"]
    assert told(None, 313) == ["INFO"]
    assert told(None, 323) == []
    assert told(SESSION, 333) == ["WARNING"]


def test_an_age_that_is_not_known_counts_from_the_first_look(caplog: pytest.LogCaptureFixture) -> None:
    watch = HorizonWatch()
    slot = replace(SESSION, kind="slot", name="s", age_seconds=None)
    watch.look(slot, 100)
    watch.look(slot, 129)
    assert caplog.records == []
    watch.look(slot, 130)
    assert len(caplog.records) == 1
