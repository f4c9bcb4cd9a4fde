"""Claims behind dead index entries that a long transaction keeps: they are not walked over again and again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest

JOBS = 12_000
TAKE = 50


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as own:
        own.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
        insert(own, JOBS)
        yield own


@pytest.fixture
def held(dsn: str, connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A transaction with a snapshot of all these jobs, as a report or a backup holds it."""
    with psycopg.connect(dsn) as reader:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from queue_pg.jobs")
        yield reader
        reader.rollback()


def insert(conn: psycopg.Connection, count: int, *, priority: int = 0, age: str = "1 h", org: str = "default") -> None:
    conn.execute(
        "insert into queue_pg.jobs (kind, payload, priority, run_at, org)"
        " select 'k', to_jsonb(n), %s, clock_timestamp() - %s::interval + n * interval '1 us', %s"
        " from generate_series(1, %s) n",
        (priority, age, org, count),
    )


def claim(conn: psycopg.Connection, take: int = TAKE) -> tuple[list[int], int]:
    """Claim; return the payloads in order and how many entries of the claim index were read."""
    with conn.transaction():
        counter = "select pg_stat_get_xact_tuples_returned('queue_pg.jobs_claim'::regclass)"
        (before,) = conn.execute(counter).fetchone() or (0,)
        jobs = conn.execute("select payload from queue_pg.claim('w', '{default}', '{k}', %s)", (take,)).fetchall()
        (after,) = conn.execute(counter).fetchone() or (0,)
    return [int(payload) for (payload,) in jobs], after - before


def take_some(conn: psycopg.Connection, jobs: int) -> list[int]:
    taken: list[int] = []
    while len(taken) < jobs:
        taken += claim(conn, min(500, jobs - len(taken)))[0]
    return taken


def sweep(conn: psycopg.Connection) -> None:
    """Make the next claim sweep from the start, as it does by itself after 20 times the duration of the last sweep."""
    conn.execute("select set_config('queue_pg.floors', '', false)")


def put_off_the_sweep(conn: psycopg.Connection) -> None:
    """Keep the clock out of a test: the floors stay, the sweep that is due by now does not come."""
    conn.execute(
        "select set_config('queue_pg.floors', regexp_replace("
        "current_setting('queue_pg.floors'), '[0-9.]+, ([0-9.]+)]', '9999999999, \\1]', 'g'), false)"
    )


def test_claims_do_not_walk_over_what_a_long_transaction_keeps(
    connection: psycopg.Connection, held: psycopg.Connection
) -> None:
    assert take_some(connection, 10_000) == list(range(1, 10_001))
    put_off_the_sweep(connection)
    reads: list[int] = []
    for start in range(10_001, 11_501, TAKE):
        jobs, read = claim(connection)
        assert jobs == list(range(start, start + TAKE))
        reads.append(read)
    assert max(reads) <= 2 * TAKE, reads


def test_claims_that_find_few_of_many_wanted_do_not_walk_either(
    connection: psycopg.Connection, held: psycopg.Connection
) -> None:
    take_some(connection, JOBS)
    sweep(connection)
    reads: list[int] = []
    for _ in range(5):
        insert(connection, 1, age="0 s")
        jobs, read = claim(connection, 10_000)
        assert jobs == [1]
        put_off_the_sweep(connection)
        reads.append(read)
    assert reads[0] > JOBS / 2
    assert max(reads[1:]) <= 2 * TAKE, reads


def test_without_a_long_transaction_every_claim_is_exact(connection: psycopg.Connection) -> None:
    [*_, last] = take_some(connection, 3_000)
    # Until nothing of this server's own (autovacuum) has a snapshot either.
    while claim(connection, 1)[1] > 3:
        last += 1
    insert(connection, 1, priority=5)
    insert(connection, 1, age="2 h")
    assert claim(connection, 3)[0] == [1, 1, last + 2]
    (floors,) = connection.execute("select current_setting('queue_pg.floors', true)").fetchone() or ("?",)
    # Of a lane that had one while autovacuum was at work, an empty entry may be left.
    assert [org for queues in json.loads(floors or "{}").values() for orgs in queues.values() for org in orgs] == []


def test_a_higher_priority_is_seen_at_once(connection: psycopg.Connection, held: psycopg.Connection) -> None:
    take_some(connection, 10_000)
    claim(connection)
    insert(connection, 2, priority=5)
    put_off_the_sweep(connection)
    jobs, read = claim(connection, 3)
    assert jobs == [1, 2, 10_051]
    assert read <= 2 * TAKE


def test_with_other_lanes_higher_priorities_come_first_too(
    connection: psycopg.Connection, held: psycopg.Connection
) -> None:
    take_some(connection, 10_000)
    claim(connection)
    insert(connection, 20, priority=5)
    # A second lane, which needs little of its share: what it leaves goes to the first one.
    insert(connection, 1, org="other", priority=5)
    put_off_the_sweep(connection)
    assert max(claim(connection, 20)[0]) <= 20


def test_a_floor_ahead_of_the_clock_is_forgotten(connection: psycopg.Connection, held: psycopg.Connection) -> None:
    take_some(connection, 10_000)
    claim(connection)
    put_off_the_sweep(connection)
    connection.execute(
        "create or replace function queue_pg.now() returns timestamptz language sql volatile parallel safe"
        " return clock_timestamp() - interval '1 day'"
    )
    insert(connection, 1, age="1 day")
    assert claim(connection, 1)[0] == [1]


def test_what_gets_in_before_the_floor_is_found_by_the_next_sweep(
    connection: psycopg.Connection, held: psycopg.Connection
) -> None:
    take_some(connection, 10_000)
    claim(connection)
    insert(connection, 1, priority=5)
    insert(connection, 1, age="2 h")
    sweep(connection)
    assert claim(connection, 3)[0] == [1, 1, 10_051]


def test_lower_priorities_are_reached_from_the_floor(connection: psycopg.Connection, held: psycopg.Connection) -> None:
    insert(connection, 3, priority=-5)
    taken = take_some(connection, JOBS - 100)
    assert len(taken) == JOBS - 100
    assert claim(connection, 200)[0] == [*range(JOBS - 99, JOBS + 1), 1, 2, 3]


def test_new_jobs_behind_the_floor_are_seen_at_once(connection: psycopg.Connection, held: psycopg.Connection) -> None:
    take_some(connection, JOBS)
    assert claim(connection)[0] == []
    insert(connection, 2, age="20 ms")
    put_off_the_sweep(connection)
    jobs, read = claim(connection)
    assert jobs == [1, 2]
    assert read <= 2 * TAKE


def test_a_fresh_session_finds_new_jobs_behind_the_dead(
    connection: psycopg.Connection, held: psycopg.Connection, dsn: str
) -> None:
    take_some(connection, JOBS)
    with psycopg.connect(dsn, autocommit=True) as fresh:
        assert claim(fresh)[0] == []
        insert(connection, 2, age="20 ms")
        put_off_the_sweep(fresh)
        jobs, read = claim(fresh)
        assert jobs == [1, 2]
        assert read <= 2 * TAKE


def test_other_tenants_are_found_behind_a_floor(connection: psycopg.Connection, held: psycopg.Connection) -> None:
    take_some(connection, 10_000)
    claim(connection)
    insert(connection, 10, org="another", age="20 ms")
    insert(connection, 10, org="zeta", age="20 ms")
    put_off_the_sweep(connection)
    jobs, read = claim(connection, 30)
    assert sorted(jobs)[:20] == sorted([*range(1, 11), *range(1, 11)])
    assert read <= 200


def test_claims_of_other_kinds_do_not_share_a_floor(connection: psycopg.Connection, held: psycopg.Connection) -> None:
    connection.execute("insert into queue_pg.jobs (kind, run_at) values ('other', queue_pg.now() - interval '2 h')")
    take_some(connection, 10_000)
    claim(connection)
    found = connection.execute("select kind from queue_pg.claim('w', '{default}', '{other}')").fetchall()
    assert found == [("other",)]
