"""A scrape reads a bounded part of the live jobs, whatever the statistics say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

JOBS = 20_000
EXACT = 100

COUNTERS = (
    "select c.relname, pg_stat_get_xact_tuples_returned(c.oid), pg_stat_get_xact_blocks_fetched(c.oid) from pg_class c"
    " where c.oid = 'queue_pg.jobs'::regclass"
    " or c.oid in (select i.indexrelid from pg_index i where i.indrelid = 'queue_pg.jobs'::regclass)"
)


@pytest.fixture(params=["never analysed", "analysed", "analysed while empty"])
def connection(dsn: str, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as own:
        own.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
        if request.param == "analysed while empty":
            own.execute("vacuum analyze queue_pg.jobs")
        for queue, delay in (("a", "0"), ("b", "0"), ("b", "1 day")):
            own.execute(
                "insert into queue_pg.jobs (kind, queue, run_at)"
                " select 'k', %s, queue_pg.now() + %s::interval from generate_series(1, %s)",
                (queue, delay, JOBS),
            )
        own.execute("select count(*) from queue_pg.claim('w', '{a}', max_jobs => 500)")
        if request.param == "analysed":
            own.execute("analyze queue_pg.jobs")
        yield own


def read(connection: psycopg.Connection[Any], statement: str) -> dict[str, int]:
    with connection.transaction():
        before = {name: rows for name, rows, _ in connection.execute(COUNTERS)}
        connection.execute(statement).fetchall()
        return {name: rows - before[name] for name, rows, _ in connection.execute(COUNTERS) if rows > before[name]}


def test_the_walk_of_the_queues_is_bounded(connection: psycopg.Connection[Any]) -> None:
    found = read(connection, f"select * from queue_pg.queued_counts(null, {EXACT})")
    # Of each of the two queues so many and one, the probes that find the queues, their priorities and the oldest.
    # What was claimed lies at the head, where one probe of the oldest passes it.
    assert set(found) == {"jobs_claim"}
    assert found["jobs_claim"] <= 2 * (EXACT + 1) + 10 + 500


def test_of_running_and_scheduled_jobs_no_more_are_read(connection: psycopg.Connection[Any]) -> None:
    found = read(connection, f"select * from queue_pg.dated_counts({EXACT})")
    assert found == {"jobs_lease": EXACT + 1, "jobs_due": EXACT + 1}
