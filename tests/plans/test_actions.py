"""A bite of an action reads a bounded number of rows, however many jobs there are and whatever the statistics say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

JOBS = 6_000
BITE = 20

COUNTERS = (
    "select c.relname, pg_stat_get_xact_numscans(c.oid), pg_stat_get_xact_tuples_returned(c.oid) from pg_class c"
    " where c.relnamespace = 'queue_pg'::regnamespace and c.relkind in ('r', 'i')"
    " and c.relname ~ '^(jobs|finished_jobs|dependencies|job_events|unique_keys)'"
)
ACT = "select changed, matched from queue_pg.act_on_jobs(%s, %s::jsonb, priority => %s, max_jobs => %s)"


def act(connection: psycopg.Connection, action: str, wanted: str, priority: int | None = None) -> int:
    """Do one bite, which changes all it may; return how many rows of tables and indexes it read."""
    with connection.transaction():
        before = {name: rows for name, _, rows in connection.execute(COUNTERS)}
        assert connection.execute(ACT, (action, wanted, priority, BITE)).fetchone() == (BITE, BITE)
        after = {name: rows for name, _, rows in connection.execute(COUNTERS)}
    return sum(rows - before.get(name, 0) for name, rows in after.items())


@pytest.fixture(params=["never analysed", "analysed while empty", "analysed"])
def connection(dsn: str, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    """As many jobs that have failed in one queue and completed in another as are live, and as many that wait."""
    with psycopg.connect(dsn, autocommit=True) as own:
        for table in ("jobs", "dependencies"):
            own.execute(f"alter table queue_pg.{table} set (autovacuum_enabled = off)")
        own.execute("select queue_pg.maintain_history()")
        if request.param == "analysed while empty":
            own.execute("analyze queue_pg.jobs, queue_pg.finished_jobs, queue_pg.dependencies")
        made = (
            "insert into queue_pg.finished_jobs (id, run_at, created_at, finished_at, retain_until, lease_token,"
            " attempt, max_attempts, lease_losses, last_event_seq, cost, state, priority, org, queue, kind, payload,"
            " timeout, tags, metadata) select queue_pg.uuid7(), t.at, t.at, t.at, t.at + '30 days', 1, 1, 4, 0, 1, 1,"
            " %s, 0, 'default', %s, 'k', '{}', '5 min', '{}', '{}'"
            " from (select queue_pg.now() as at) t, generate_series(1, %s) n"
        )
        own.execute(made, ("completed", "done", JOBS))
        own.execute(made, ("failed", "mail", JOBS))
        own.execute("insert into queue_pg.queue_counters (org, queue) values ('default', 'done'), ('default', 'mail')")
        own.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, %s)", (JOBS,))
        own.execute(
            "with made as (insert into queue_pg.jobs (kind, queue, state, parents_left)"
            " select 'k', 'children', 'waiting', 1 from generate_series(1, %s) returning id)"
            " insert into queue_pg.dependencies (child_id, name, parent_id)"
            " select id, 'p', gen_random_uuid() from made",
            (JOBS,),
        )
        if request.param == "analysed":
            own.execute("analyze queue_pg.jobs, queue_pg.finished_jobs, queue_pg.dependencies")
        yield own


@pytest.mark.parametrize(
    ("action", "wanted", "priority"),
    [
        ("cancel", '{"queue": "default"}', None),
        ("reprioritize", '{"queue": "default"}', 7),
        ("retry", '{"state": "failed"}', None),
        ("retry", '{"state": "failed", "queue": "mail"}', None),
        ("delete", '{"state": "failed"}', None),
        ("delete", '{"queue": "done"}', None),
    ],
)
def test_a_bite_reads_what_it_may_look_at(
    connection: psycopg.Connection, action: str, wanted: str, priority: Any
) -> None:
    for nr in range(3):
        # Ten times as many as it changes are looked at, in one index or in that of each of two queues and of each of
        # three partitions; then come the statements for those it changes.
        assert act(connection, action, wanted, priority and priority + nr) < 10 * BITE * 2 + 60 * BITE
