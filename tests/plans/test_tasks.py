"""Lists of tasks read what they show, and not the history behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from queue_pg.statements import statement

JOBS = 20_000
NOBODY = "018f0000-0000-7000-8000-000000000000"
READ = """
select coalesce(sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)), 0)::bigint
from pg_class c where c.relname ~ '^(finished_)?jobs|dependencies' and c.relnamespace = 'queue_pg'::regnamespace
"""


@pytest.fixture(params=["never analysed", "analysed"])
def connection(dsn: str, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    """A history of completed jobs with a few failed ones among them, as long a queue, and a task with subtasks."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, %s)", (JOBS,))
        for _ in range(JOBS // 1000):
            conn.execute(
                "select count(*) from (select array_agg(id) as ids, array_agg(lease_token) as tokens"
                " from queue_pg.claim('w', '{default}', max_jobs => 1000)) c cross join lateral queue_pg.finish("
                "c.ids, c.tokens, array_fill('complete'::text, array[cardinality(c.ids)])) f"
            )
        conn.execute("select queue_pg.submit_task('Old')")
        conn.execute("select queue_pg.cancel(id) from queue_pg.jobs where kind = 'subtask'")
        conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, %s)", (JOBS,))
        conn.execute("select queue_pg.submit_task('New')")
        if request.param == "analysed":
            conn.execute("analyze")
        yield conn


@pytest.mark.parametrize(
    ("wanted", "shown", "most"),
    [
        ({}, 50, 2_000),
        ({"state": "queued"}, 50, 2_000),
        ({"state": "completed"}, 50, 2_000),
        ({"state": "failed"}, 1, 2_000),
        ({"state": "cancelled"}, 3, 2_000),
        ({"offset": 1_000}, 50, 8_000),
    ],
)
def test_a_page_costs_what_it_shows(
    connection: psycopg.Connection, wanted: dict[str, Any], shown: int, most: int
) -> None:
    assert look(connection, "list_tasks", wanted, shown) < most


@pytest.mark.parametrize("kind", ["plan", "k"])
def test_the_children_of_a_task_cost_what_there_are(connection: psycopg.Connection, kind: str) -> None:
    found = connection.execute("select max(id::text) from queue_pg.all_jobs where kind = %s", (kind,)).fetchone()
    assert found is not None
    assert look(connection, "list_child_tasks", {"parent": found[0]}, 3 if kind == "plan" else 0) < 500


def look(connection: psycopg.Connection, name: str, wanted: dict[str, Any], shown: int) -> int:
    """Return how many rows and index entries the list reads."""
    params = {"org": "default", "state": None, "before": None, "limit": 50, "offset": 0, "parent": NOBODY, **wanted}
    with connection.transaction():
        before = connection.execute(READ).fetchone()
        assert len(connection.execute(statement(name), params).fetchall()) == shown
        after = connection.execute(READ).fetchone()
    assert before is not None
    assert after is not None
    return after[0] - before[0]
