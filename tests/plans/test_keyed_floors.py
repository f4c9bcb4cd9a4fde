"""Lanes of limit keys and of limited queues behind dead index entries that a long transaction keeps.

As for ordinary lanes (test_floors.py): claims do not walk over them again and again, and nothing stays hidden by that.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

JOBS = 12_000
TAKE = 50


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as own:
        own.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
        yield own


@pytest.fixture
def held(dsn: str, connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A transaction that keeps whatever is claimed from now on in the indexes."""
    with psycopg.connect(dsn) as reader:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from queue_pg.jobs")
        yield reader
        reader.rollback()


def insert(
    conn: psycopg.Connection, count: int, key: str | None, *, keys: int = 1, priority: int = 0, age: str = "1 h"
) -> None:
    """Insert jobs in the order of their numbers; `keys` > 1: spread over so many keys that begin so."""
    conn.execute(
        "insert into queue_pg.jobs (kind, payload, limit_key, priority, run_at)"
        " select 'k', to_jsonb(n),"
        " case when %(keys)s = 1 then %(key)s else %(key)s || lpad(mod(n, %(keys)s)::text, 6, '0') end,"
        " %(priority)s, clock_timestamp() - %(age)s::interval + n * interval '1 us'"
        " from generate_series(1, %(count)s) n",
        {"count": count, "key": key, "keys": keys, "priority": priority, "age": age},
    )


def claim(conn: psycopg.Connection, take: int = TAKE) -> tuple[list[int], int]:
    """Claim; return the payloads in order and how many entries of the indexes of claims were read."""
    with conn.transaction():
        counter = (
            "select pg_stat_get_xact_tuples_returned('queue_pg.jobs_claim'::regclass)"
            " + pg_stat_get_xact_tuples_returned('queue_pg.jobs_keyed'::regclass)"
        )
        (before,) = conn.execute(counter).fetchone() or (0,)
        jobs = conn.execute("select payload from queue_pg.claim('w', '{default}', '{k}', %s)", (take,)).fetchall()
        (after,) = conn.execute(counter).fetchone() or (0,)
    return [int(payload) for (payload,) in jobs], after - before


def take_some(conn: psycopg.Connection, jobs: int) -> list[int]:
    taken: list[int] = []
    while len(taken) < jobs:
        found = claim(conn, min(500, jobs - len(taken)))[0]
        assert found
        taken += found
    return taken


def forget(conn: psycopg.Connection) -> None:
    """Do what the passing of 20 times the duration of a sweep does: make the next claim look at everything."""
    for name in ("keyed", "floors", "limited_after"):
        conn.execute("select set_config('queue_pg.' || %s, '', false)", (name,))


def put_off(conn: psycopg.Connection) -> None:
    """Keep the clock out of a test: what is remembered counts a little longer."""
    conn.execute(
        "select set_config('queue_pg.keyed', regexp_replace(regexp_replace(current_setting('queue_pg.keyed', true),"
        " '\"sweep\": [0-9.]+', '\"sweep\": 9999999999', 'g'),"
        " '\"at\": [0-9.]+', '\"at\": ' || extract(epoch from clock_timestamp()) + 10, 'g'), false)"
    )


# A key alone, a key with a limit, and jobs without a key in a limited queue.
LANES = {
    "key": ("a", "select 1"),
    "limited key": ("a", "select queue_pg.set_limit('key', 'a', max_running => 100000)"),
    "limited queue": (None, "select queue_pg.set_limit('queue', 'default', max_running => 100000)"),
    "rate": ("a", "select queue_pg.set_limit('key', 'a', rate => 1000000)"),
}


@pytest.fixture(params=LANES)
def lane(connection: psycopg.Connection, request: pytest.FixtureRequest) -> str | None:
    key, arrange = LANES[request.param]
    connection.execute(arrange)
    insert(connection, JOBS, key)
    return key


def test_claims_do_not_walk_over_what_a_long_transaction_keeps(
    connection: psycopg.Connection, lane: str | None, held: psycopg.Connection
) -> None:
    assert take_some(connection, 10_000) == list(range(1, 10_001))
    reads: list[int] = []
    for start in range(10_001, 11_001, TAKE):
        put_off(connection)
        jobs, read = claim(connection)
        assert jobs == list(range(start, start + TAKE))
        reads.append(read)
    assert max(reads) <= 3 * TAKE, reads
    # Without what the session remembers it is all walked over.
    forget(connection)
    assert claim(connection)[1] > 10_000


def test_higher_and_lower_priorities_are_reached(
    connection: psycopg.Connection, lane: str | None, held: psycopg.Connection
) -> None:
    insert(connection, 3, lane, priority=-5)
    take_some(connection, JOBS - 10)
    insert(connection, 2, lane, priority=5)
    put_off(connection)
    jobs, read = claim(connection, 30)
    assert jobs == [1, 2, *range(JOBS - 9, JOBS + 1), 1, 2, 3]
    assert read <= 3 * TAKE
    put_off(connection)
    insert(connection, 2, lane, age="20 ms")
    # Above the floor's priority, and behind dead ones: this look is made, and then seldom.
    assert claim(connection)[0] == [1, 2]


def test_what_gets_in_before_the_floor_is_found_by_the_next_sweep(
    connection: psycopg.Connection, lane: str | None, held: psycopg.Connection
) -> None:
    take_some(connection, 10_000)
    insert(connection, 1, lane, age="2 h")
    forget(connection)
    assert claim(connection, 2)[0] == [1, 10_001]


def test_what_a_rate_has_left_is_not_passed_over(connection: psycopg.Connection, held: psycopg.Connection) -> None:
    connection.execute("select queue_pg.set_limit('key', 'a', rate => 1000000, per => 'day')")
    insert(connection, JOBS, "a")
    take_some(connection, 10_000)
    connection.execute("select queue_pg.set_limit('key', 'a', rate => 5, per => 'day')")
    connection.execute("update queue_pg.limits set full_at = '-infinity', opens_at = '-infinity'")
    put_off(connection)
    assert claim(connection)[0] == list(range(10_001, 10_006))
    connection.execute("select queue_pg.set_limit('key', 'a', max_running => 100000)")
    put_off(connection)
    assert claim(connection, 3)[0] == [10_006, 10_007, 10_008]
    # A sweep that may take nothing sets no floor behind what is there.
    forget(connection)
    connection.execute("select queue_pg.set_limit('key', 'a', rate => 1, per => 'day')")
    connection.execute("update queue_pg.jobs set cost = 1000 where state = 'queued'")
    connection.execute("update queue_pg.limits set full_at = queue_pg.now() + '1 h', opens_at = '-infinity'")
    assert claim(connection)[0] == []
    connection.execute("select queue_pg.remove_limit('key', 'a')")
    put_off(connection)
    assert claim(connection, 2)[0] == [10_009, 10_010]


def test_dead_keys_are_leapt_over_once(connection: psycopg.Connection, held: psycopg.Connection) -> None:
    insert(connection, JOBS, "dead-", keys=3_000)
    insert(connection, 1_000, "live")
    taken = 0
    while taken < JOBS:
        taken += len(claim(connection, 2_000)[0])
    forget(connection)
    (left,) = connection.execute("select count(*) from queue_pg.jobs where state = 'queued'").fetchone() or (0,)
    assert left == JOBS + 1_000 - taken
    if left < 200:
        insert(connection, 500, "live")
    connection.execute("update queue_pg.jobs set state = 'scheduled' where state = 'queued' and limit_key <> 'live'")
    assert claim(connection)[1] > JOBS / 2
    reads: list[int] = []
    for _ in range(3):
        put_off(connection)
        jobs, read = claim(connection)
        assert len(jobs) == TAKE
        reads.append(read)
    # Its own dead entries are few as yet.
    assert max(reads) <= 10 * TAKE, reads


def test_a_queue_that_has_only_dead_keys_costs_ordinary_claims_nothing(
    connection: psycopg.Connection, held: psycopg.Connection
) -> None:
    insert(connection, JOBS, "a")
    take_some(connection, JOBS)
    insert(connection, 500, None)
    forget(connection)
    assert claim(connection)[1] > JOBS
    for _ in range(3):
        put_off(connection)
        jobs, read = claim(connection)
        assert len(jobs) == TAKE
        # Its own dead entries are few as yet.
        assert read <= 10 * TAKE
    # A new key is found by the next look.
    insert(connection, 1, "b", priority=100, age="2 h")
    forget(connection)
    assert 1 in claim(connection, 450)[0]


def test_more_keys_than_are_remembered_are_all_reached(
    connection: psycopg.Connection, held: psycopg.Connection
) -> None:
    insert(connection, JOBS, "a-", keys=1_000)
    seen = 0
    for _ in range(10_000):
        put_off(connection)
        jobs = claim(connection, 100)[0]
        assert jobs, seen
        seen += len(jobs)
        if seen == JOBS:
            break
    assert seen == JOBS


def test_a_memory_from_before_the_clock_went_back_is_none(
    connection: psycopg.Connection, lane: str | None, held: psycopg.Connection
) -> None:
    take_some(connection, 10_000)
    connection.execute("update queue_pg.limits set full_at = '-infinity', opens_at = '-infinity'")
    connection.execute(
        "create or replace function queue_pg.now() returns timestamptz language sql volatile parallel safe"
        " return clock_timestamp() - interval '1 day'"
    )
    insert(connection, 1, lane, age="1 day")
    assert claim(connection, 1)[0] == [1]


def test_without_a_long_transaction_nothing_is_remembered(connection: psycopg.Connection) -> None:
    insert(connection, 300, "a")
    for _ in range(5):
        assert len(claim(connection)[0]) == TAKE
    (kept,) = connection.execute("select current_setting('queue_pg.keyed', true)").fetchone() or ("?",)
    assert "at" not in (kept or "")
    assert "key" not in (kept or "")
