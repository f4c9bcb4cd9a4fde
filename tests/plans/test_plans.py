"""Hot statements read through their index just the rows they need, whatever the statistics say.

Counted by Postgres itself, per index and within the transaction: how many rows each index handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from queue_pg.testing import Clock

JOBS = 3_000

# The statistics that the planner is made to believe: none, of an empty table, of a table of a million rows, or those
# that a vacuum leaves while the queue is short: many pages with next to nothing in them.
STATISTICS = ("never analysed", "analysed while empty", "a million rows", "vacuumed while short")

COUNTERS = (
    "select c.relname, pg_stat_get_xact_numscans(c.oid), pg_stat_get_xact_tuples_returned(c.oid)"
    " from pg_class c where c.oid = 'queue_pg.jobs'::regclass"
    " or c.oid in (select i.indexrelid from pg_index i where i.indrelid = 'queue_pg.jobs'::regclass)"
)


def rows_read(connection: psycopg.Connection, statement: str, args: Any = ()) -> dict[str, int]:
    """Run a statement; return the rows that each index of `jobs` it used handed out.

    The name `jobs` itself stands for sequential scans.
    """
    # In one transaction, because counters are reset when a session reports them between two.
    with connection.transaction():
        before = {name: (scans, rows) for name, scans, rows in connection.execute(COUNTERS)}
        connection.execute(statement, args).fetchall()
        after = {name: (scans, rows) for name, scans, rows in connection.execute(COUNTERS)}
    return {name: after[name][1] - before[name][1] for name in after if after[name][0] > before[name][0]}


@pytest.fixture(params=STATISTICS)
def connection(dsn: str, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    """A queue with jobs in every live state, other queues and tenants in front, and the given statistics."""
    with psycopg.connect(dsn, autocommit=True) as own:
        own.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
        own.execute("select queue_pg.maintain_history()")
        if request.param == "analysed while empty":
            own.execute("vacuum analyze queue_pg.jobs")
        insert = (
            "insert into queue_pg.jobs (kind, queue, org, priority, run_at, expires_at)"
            " select 'k', %s, %s, %s, queue_pg.now() + %s::interval, queue_pg.now() + %s::interval"
            " from generate_series(1, %s)"
        )
        own.execute(insert, ("aaa", "default", 20, "0", None, JOBS))
        own.execute(insert, ("default", "aaa", 20, "0", None, JOBS))
        own.execute(insert, ("default", "default", 20, "1 day", "2 days", JOBS))
        own.execute(insert, ("default", "default", 0, "0", None, JOBS))
        if request.param == "a million rows":
            own.execute("analyze queue_pg.jobs")
            own.execute("update pg_class set relpages = 40000, reltuples = 1e6 where oid = 'queue_pg.jobs'::regclass")
        if request.param == "vacuumed while short":
            own.execute("update pg_class set relpages = 40000, reltuples = 2 where oid = 'queue_pg.jobs'::regclass")
        yield own


CLAIM = "select id, lease_token from queue_pg.claim('w', '{default}', '{k}', 10, only_org => 'default')"


def test_claim_reads_what_it_takes(connection: psycopg.Connection) -> None:
    claims = 30
    for _ in range(claims):
        read = rows_read(connection, CLAIM)
        # Besides the ten at most what earlier claims left behind: it is skipped as soon as no transaction anywhere in
        # the cluster is old enough to see it, and other tests may run one. Never the thousands around them.
        assert read["jobs_claim"] <= 10 * claims
        # One probe tells that no job has a key.
        assert read == {"jobs_claim": read["jobs_claim"], "jobs_keyed": 0, "jobs_pkey": 10}


def test_claim_finds_the_tenants_of_a_queue_by_probing(connection: psycopg.Connection) -> None:
    read = rows_read(connection, "select id from queue_pg.claim('w', '{default}', null, 4)")
    # A probe for each of the two tenants besides the four jobs.
    assert read == {"jobs_claim": 4 + 2, "jobs_keyed": 0, "jobs_pkey": 4}


@pytest.mark.parametrize(
    "statement",
    [
        "select * from queue_pg.heartbeat(%s, %s)",
        "select * from queue_pg.held(%s, %s)",
        "select * from queue_pg.finish(%s, %s, array_fill('complete'::text, array[10]))",
        "select * from queue_pg.finish(%s, %s, array_fill('fail'::text, array[10]))",
        "select * from queue_pg.finish(%s, %s, array_fill('snooze'::text, array[10]))",
        "select * from queue_pg.finish(%s, %s, array_fill('wait'::text, array[10]))",
    ],
)
def test_finish_and_heartbeat_go_by_id(connection: psycopg.Connection, statement: str) -> None:
    for _ in range(7):
        claimed = connection.execute(CLAIM).fetchall()
        read = rows_read(connection, statement, ([row[0] for row in claimed], [row[1] for row in claimed]))
        assert set(read) == {"jobs_pkey"}
        # Looked up to be locked, logged (read, counted), changed, moved; each time with the versions just left behind.
        assert read["jobs_pkey"] <= 12 * 10


def test_the_leases_of_a_worker_are_found_among_leases(connection: psycopg.Connection) -> None:
    held = {row[0] for row in connection.execute(CLAIM)}
    found = "select id from queue_pg.leases_of('w')"
    assert {row[0] for row in connection.execute(found)} >= held
    [(running,)] = connection.execute("select count(*) from queue_pg.jobs where state = 'running'").fetchall()
    read = rows_read(connection, found)
    assert set(read) == {"jobs_lease"}
    assert read["jobs_lease"] <= 2 * running


def test_the_leases_of_a_worker_are_not_looked_for_among_what_renewals_leave_behind(
    connection: psycopg.Connection, dsn: str, clock: Clock
) -> None:
    with psycopg.connect(dsn) as report:
        report.execute("set transaction isolation level repeatable read")
        report.execute("select count(*) from queue_pg.jobs")
        claimed = connection.execute(CLAIM).fetchall()
        held = [row[0] for row in claimed], [row[1] for row in claimed]
        for _ in range(25):
            clock.advance(10)
            connection.execute("select id from queue_pg.heartbeat(%s, %s)", held).fetchall()
        read = rows_read(connection, "select id from queue_pg.leases_of('w')")
        # The lease of 30 s, and what its renewals of the last minute have left: none of the others.
        assert len(claimed) <= read["jobs_lease"] <= 10 * len(claimed)


STEPS = "select id, queue_pg.{} from unnest(%s::uuid[], %s::bigint[]) as held (id, token)"


def test_steps_go_by_id(connection: psycopg.Connection) -> None:
    connection.execute(
        "insert into queue_pg.job_steps (job_id, name, type, attempt, lease_token)"
        " select id, 'old', 'event', 1, 0 from queue_pg.jobs"
    )
    for call in ("save_step(id, token, 'a', '1')", "wait_for_event(id, token, 'go')", "signal(id, 'go')"):
        claimed = connection.execute(CLAIM).fetchall()
        held = [row[0] for row in claimed], [row[1] for row in claimed]
        for _ in range(2):
            read = rows_read(connection, STEPS.format(call), held)
            assert set(read) == {"jobs_pkey"}, call
            assert read["jobs_pkey"] <= 6 * 10
        steps = (
            "select seq_scan from pg_stat_xact_user_tables where relname = any ('{job_steps,job_signals,stepped_jobs}')"
        )
        with connection.transaction():
            before = connection.execute(steps).fetchall()
            connection.execute(STEPS.format(call), held)
            assert connection.execute(steps).fetchall() == before


def test_maintenance_goes_by_what_is_due(connection: psycopg.Connection) -> None:
    connection.execute(CLAIM)
    due = (
        "update queue_pg.jobs set lease_expires_at = queue_pg.now() - interval '1 s' where state = 'running'",
        "update queue_pg.jobs set run_at = queue_pg.now() where id in"
        " (select id from queue_pg.jobs where state = 'scheduled' limit 10)",
        "update queue_pg.jobs set expires_at = queue_pg.now() where id in"
        " (select id from queue_pg.jobs where state = 'scheduled' and run_at > queue_pg.now() limit 10)",
    )
    for statement in due:
        connection.execute(statement)
    read = rows_read(connection, "select * from queue_pg.maintain()")
    assert set(read) == {"jobs_lease", "jobs_due", "jobs_expiry", "jobs_pkey"}
    # Some thirty jobs fall due among thousands.
    assert all(rows <= 300 for rows in read.values()), read


def test_maintenance_since_a_look_reads_nothing_older(connection: psycopg.Connection) -> None:
    connection.execute("select id from queue_pg.claim('w', '{default}', '{k}', 1000)")
    connection.execute(
        "update queue_pg.jobs set lease_expires_at = queue_pg.now() - interval '1 minute' where state = 'running'"
    )
    connection.execute(
        "update queue_pg.jobs set run_at = queue_pg.now() - interval '1 minute',"
        " expires_at = queue_pg.now() - interval '1 minute' where state = 'scheduled'"
    )
    look = "select * from queue_pg.lead_maintenance('me', since => queue_pg.now() - interval '10 seconds')"
    for _ in range(7):
        read = rows_read(connection, look)
        assert set(read) <= {"jobs_lease", "jobs_due", "jobs_expiry"}
        assert not any(read.values()), read


def test_looking_at_one_job_goes_by_id(connection: psycopg.Connection) -> None:
    (claimed, *_) = connection.execute(CLAIM).fetchall()
    read = rows_read(connection, "select * from queue_pg.job(%s)", claimed[:1])
    # With the version that the claim has left behind.
    assert read.keys() == {"jobs_pkey"}
    assert read["jobs_pkey"] <= 2
    assert rows_read(connection, "select * from queue_pg.watch(array[%s::uuid])", claimed[:1]).keys() == {"jobs_pkey"}


def test_every_pinned_plan_is_safe_from_jit_and_from_replanning(connection: psycopg.Connection) -> None:
    """Pinning makes a plan look dear; with JIT on, compiling it took a thousand times longer than the claim."""
    pinned = connection.execute(
        "select proname, proconfig from pg_proc where pronamespace = 'queue_pg'::regnamespace"
        " and proconfig::text like '%enable_%'"
    ).fetchall()
    assert {"claim", "finish", "retire", "heartbeat", "reap", "promote", "expire"} <= {name for name, _ in pinned}
    for name, settings in pinned:
        assert {"jit=off", "plan_cache_mode=force_generic_plan"} <= set(settings), name


FULL_KEY = (
    "insert into queue_pg.jobs (kind, queue, limit_key, priority)"
    " select 'k', 'default', 'full', 20 from generate_series(1, %s)"
)


def test_a_claim_leaps_over_the_jobs_of_a_full_key(connection: psycopg.Connection) -> None:
    connection.execute("select queue_pg.set_limit('key', 'full', max_running => 1)")
    connection.execute(FULL_KEY, (JOBS,))
    connection.execute("insert into queue_pg.jobs (kind, limit_key) select 'k', 'open' from generate_series(1, 50)")
    read = rows_read(connection, "select id from queue_pg.claim('w', '{default}', '{k}', 8, only_org => 'default')")
    taken = 8
    for _ in range(5):
        read = rows_read(connection, CLAIM)
        # A leap to each key, the jobs it takes, what earlier claims left behind; not the thousands of the full key.
        assert read["jobs_keyed"] <= 2 * 2 + 2 * taken + 10
        assert set(read) <= {"jobs_claim", "jobs_keyed", "jobs_pkey"}
        taken += 10


def test_ends_of_limited_attempts_go_by_id(connection: psycopg.Connection) -> None:
    connection.execute("select queue_pg.set_limit('key', 'full', max_running => 20)")
    connection.execute(FULL_KEY, (JOBS,))
    claimed = connection.execute("select id, lease_token from queue_pg.claim('w', '{default}', '{k}', 40)").fetchall()
    for outcome in ("complete", "fail"):
        some, claimed = claimed[:10], claimed[10:]
        read = rows_read(
            connection,
            "select * from queue_pg.finish(%s, %s, array_fill(%s::text, array[10]))",
            ([row[0] for row in some], [row[1] for row in some], outcome),
        )
        # Besides, whom to wake is found by two probes for each queue.
        assert set(read) <= {"jobs_pkey", "jobs_keyed"}
        assert read["jobs_pkey"] <= 16 * 10
        assert read.get("jobs_keyed", 0) <= 2 + 20
