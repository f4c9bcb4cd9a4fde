"""The look for an answer reads a bounded number of rows, however long history is and whatever the statistics say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

ANSWERS = 100_000
DAYS = 20
WAITING = 3_000

# Rows that sequential scans and indexes handed out. Partitions of history and their indexes each by their own name.
COUNTERS = (
    "select c.relname, pg_stat_get_xact_numscans(c.oid), pg_stat_get_xact_tuples_returned(c.oid) from pg_class c"
    " where c.relnamespace = 'queue_pg'::regnamespace and c.relkind in ('r', 'i')"
    " and c.relname ~ '^(jobs|finished_jobs|cache_entries|unsettled_cache)'"
)
SUBMIT = "select queue_pg.submit('k', %s::jsonb, cache => true)"


def read(connection: psycopg.Connection, statement: str, args: Any = ()) -> dict[str, int]:
    """Run a statement; return the rows that each table (by sequential scans) and index it used handed out."""
    with connection.transaction():
        before = {name: (scans, rows) for name, scans, rows in connection.execute(COUNTERS)}
        connection.execute(statement, args).fetchall()
        after = {name: (scans, rows) for name, scans, rows in connection.execute(COUNTERS)}
    return {
        name: rows - before.get(name, (0, 0))[1]
        for name, (scans, rows) in after.items()
        if scans > before.get(name, (0, 0))[0]
    }


def total(found: dict[str, int]) -> int:
    return sum(found.values())


def of_history(found: dict[str, int]) -> dict[str, int]:
    return {name: rows for name, rows in found.items() if name.startswith("finished_jobs")}


@pytest.fixture(params=["never analysed", "analysed while empty", "analysed"])
def connection(dsn: str, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    """Answers {"n": 1} to {"n": 100000} in partitions of a day each, and jobs that wait for others' work."""
    with psycopg.connect(dsn, autocommit=True) as own:
        own.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
        own.execute("alter table queue_pg.cache_entries set (autovacuum_enabled = off)")
        own.execute("select queue_pg.maintain_history()")
        own.execute(
            "select c.* from generate_series(1, %s) d cross join lateral queue_pg.cover("
            "'finished_jobs', 'retain_until', queue_pg.now() + d * interval '1 day', '1 day') c",
            (DAYS,),
        )
        if request.param == "analysed while empty":
            own.execute("analyze queue_pg.jobs, queue_pg.finished_jobs, queue_pg.cache_entries")
        own.execute(
            "with made as ("
            " insert into queue_pg.finished_jobs (id, run_at, created_at, finished_at, retain_until, lease_token,"
            "  attempt, max_attempts, lease_losses, last_event_seq, cost, state, priority, org, queue, kind, payload,"
            "  result, timeout, tags, metadata, cache_key)"
            " select gen_random_uuid(), t.at, t.at, t.at, t.at + (1 + n %% %s) * interval '1 day', 1, 1, 4, 0, 0, 1,"
            "  'completed', 0, 'default', 'default', 'k', p.payload, to_jsonb(n), '5 min', '{}', '{}',"
            "  queue_pg.cache_key('default', 'k', p.payload)"
            " from (select queue_pg.now() as at) t, generate_series(1, %s) n"
            " cross join lateral (select jsonb_build_object('n', n) as payload) p"
            " returning *)"
            " insert into queue_pg.cache_entries (cache_key, org, kind, answer_id, answered_at, answer_until)"
            " select m.cache_key, m.org, m.kind, m.id, m.finished_at, m.retain_until from made m",
            (DAYS - 1, ANSWERS),
        )
        for payload in ('{"wait": 1}', '{"wait": 2}'):
            own.execute(
                "select count(*) from queue_pg.submit_many((select jsonb_agg(jsonb_build_object("
                "'kind', 'k', 'payload', %s::jsonb, 'cache', true)) from generate_series(1, %s)))",
                (payload, WAITING),
            )
        if request.param == "analysed":
            own.execute("analyze queue_pg.jobs, queue_pg.finished_jobs, queue_pg.cache_entries")
        yield own


def test_bounded_reads(connection: psycopg.Connection) -> None:
    assert connection.execute(
        "select count(*) from pg_inherits where inhparent = 'queue_pg.finished_jobs'::regclass"
    ).fetchone() >= (DAYS,)  # type: ignore[operator]
    for n in (1, 50_000, 50_001, ANSWERS, 7, 8):
        hit = read(connection, SUBMIT, (f'{{"n": {n}}}',))
        # The entry, its answer twice (is it there, what is it), and the new job on its way through the table.
        assert total(hit) <= 10, hit
        # By the end of its retention: one partition alone is looked at.
        assert len(of_history(hit)) == 1, hit
    for n in range(ANSWERS + 1, ANSWERS + 7):
        miss = read(connection, SUBMIT, (f'{{"n": {n}}}',))
        assert total(miss) <= 6, miss
        assert of_history(miss) == {}
    for _ in range(6):
        shared = read(connection, SUBMIT, ('{"wait": 1}',))
        assert total(shared) <= 10, shared
        assert of_history(shared) == {}


def test_ends_are_settled_by_their_keys(connection: psycopg.Connection) -> None:
    # One that nobody waits for: its entry and the job, whatever others wait for.
    for n in range(6):
        connection.execute("select queue_pg.submit('k', %s, cache => true, queue => 'mine')", (f'{{"alone": {n}}}',))
        [row] = connection.execute("select id, lease_token from queue_pg.claim('w', '{mine}')").fetchall()
        end = read(connection, "select queue_pg.complete(%s, %s, '1')", row)
        assert total(end) <= 15, end
    # A failure passes the work on to one, without a look at all that wait.
    for _ in range(3):
        [holder] = connection.execute(
            "select c.job_id from queue_pg.cache_entries c where c.cache_key = queue_pg.cache_key('default', 'k', %s)",
            ('{"wait": 1}',),
        ).fetchall()
        passed = read(connection, "select queue_pg.cancel(%s)", holder)
        assert total(passed) <= 60, passed
    # An answer reads those that it answers.
    [row] = connection.execute(
        "update queue_pg.jobs j set state = 'running', lease_token = 1, lease_expires_at = 'infinity'"
        " from queue_pg.cache_entries c where c.cache_key = queue_pg.cache_key('default', 'k', %s) and j.id = c.job_id"
        " returning j.id",
        ('{"wait": 2}',),
    ).fetchall()
    answered = read(connection, "select queue_pg.complete(%s, 1, '1')", row)
    assert total(answered) <= 100 * 10, answered
    assert connection.execute("select count(*) from queue_pg.finished_jobs where cached_from = %s", row).fetchone() == (
        100,
    )
