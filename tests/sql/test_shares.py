"""Shares of a queue by weight and cost, and turns for those who have waited long."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg
import pytest

Connection = psycopg.AsyncConnection[Any]


async def add(
    conn: Connection, count: int, key: str | None, *, cost: int = 1, org: str = "default", **fields: Any
) -> None:
    values = {"queue": "default", "priority": 0, "age": 0.0, **fields}
    await conn.execute(
        "insert into queue_pg.jobs (kind, queue, limit_key, cost, org, priority, run_at)"
        " select 'k', %(queue)s, %(key)s, %(cost)s, %(org)s, %(priority)s,"
        " queue_pg.now() - make_interval(secs => %(age)s) from generate_series(1, %(count)s)",
        {**values, "key": key, "cost": cost, "org": org, "count": count},
    )


async def claim(conn: Connection, wanted: int = 1, queues: tuple[str, ...] = ("default",)) -> list[tuple[str, ...]]:
    """Claim and return queue, tenant, key and cost of each job."""
    found = await conn.execute(
        "with c as materialized (select id from queue_pg.claim('w', %s, max_jobs => %s))"
        " select j.queue, j.org, coalesce(j.limit_key::text, ''), j.cost from c join queue_pg.jobs j using (id)",
        (list(queues), wanted),
    )
    return await found.fetchall()


async def turns(conn: Connection, claims: int, wanted: int = 1, by: int = 2) -> Counter[Any]:
    """Count the jobs of each key (`by` 2; 0: queue, 1: tenant) over many claims."""
    seen: Counter[Any] = Counter()
    for _ in range(claims):
        seen.update([job[by] for job in await claim(conn, wanted)])
    return seen


async def share(conn: Connection, scope: str, name: str, weight: float | None, ageing: float | None = None) -> None:
    await conn.execute(
        "select queue_pg.set_limit(%s, %s, weight => %s, ageing => make_interval(secs => %s))",
        (scope, name, weight, ageing),
    )


@pytest.mark.parametrize("wanted", [1, 7])
async def test_keys_share_by_cost(conn: Connection, wanted: int) -> None:
    await add(conn, 300, "cheap")
    await add(conn, 300, "dear", cost=10)
    seen = await turns(conn, 220 // wanted, wanted)
    assert seen.total() == 220 // wanted * wanted
    assert seen["dear"] == pytest.approx(seen.total() / 11, abs=4)


async def test_a_mixed_key_pays_for_what_it_takes(conn: Connection) -> None:
    await add(conn, 300, "even", cost=5)
    await conn.execute(
        "insert into queue_pg.jobs (kind, limit_key, cost)"
        " select 'k', 'mixed', case when mod(n, 2) = 0 then 1 else 9 end from generate_series(1, 300) n"
    )
    spent: Counter[str] = Counter()
    for _ in range(25):
        for _, _, key, cost in await claim(conn, 8):
            spent[key] += int(cost)
    assert spent["mixed"] == pytest.approx(spent["even"], rel=0.1)


async def test_keys_share_by_weight(conn: Connection) -> None:
    await share(conn, "key", "paid", 3)
    await add(conn, 300, "paid")
    await add(conn, 300, "free")
    assert (await turns(conn, 100))["paid"] == pytest.approx(75, abs=4)
    await conn.execute("select queue_pg.remove_limit('key', 'paid')")
    assert (await turns(conn, 100))["paid"] == pytest.approx(50, abs=4)


async def test_weights_of_templates_are_of_each_key(conn: Connection) -> None:
    await share(conn, "key", "paid:*", 4)
    await share(conn, "key", "paid:c", 1)
    for key in ("paid:a", "paid:b", "paid:c", "free"):
        await add(conn, 200, key)
    seen = await turns(conn, 100)
    assert [seen[key] for key in ("paid:a", "paid:b", "paid:c", "free")] == pytest.approx([40, 40, 10, 10], abs=4)
    # A weight alone limits nothing: nothing is made of the template, and nothing is counted.
    found = await conn.execute("select name, running from queue_pg.limits order by 1")
    assert await found.fetchall() == [("paid:*", 0), ("paid:c", 0)]
    await conn.execute("select queue_pg.set_limit('key', 'paid:*', max_running => 50, weight => 4)")
    seen = await turns(conn, 50)
    assert [seen[key] for key in ("paid:a", "paid:b", "paid:c", "free")] == pytest.approx([20, 20, 5, 5], abs=4)


async def test_tenants_without_keys_share_by_cost_and_weight(conn: Connection) -> None:
    await add(conn, 400, None, org="cheap")
    await add(conn, 400, None, org="dear", cost=4)
    seen = await turns(conn, 100, by=1)
    assert seen["dear"] == pytest.approx(20, abs=4)
    await conn.execute("select queue_pg.set_limit('queue', 'default', weight => 4, org => 'dear')")
    seen = await turns(conn, 100, by=1)
    assert seen["dear"] == pytest.approx(50, abs=4)


async def test_jobs_with_and_without_keys_share_by_cost(conn: Connection) -> None:
    await add(conn, 300, None, cost=9)
    await add(conn, 300, "a")
    seen = await turns(conn, 200)
    assert seen[""] == pytest.approx(20, abs=5)


async def test_queues_of_one_worker_share_by_weight(conn: Connection) -> None:
    await share(conn, "queue", "fast", 3)
    await add(conn, 300, None, queue="fast")
    await add(conn, 300, None, queue="slow")
    seen: Counter[str] = Counter()
    for _ in range(40):
        seen.update([queue for queue, *_ in await claim(conn, 4, ("fast", "slow"))])
    assert seen["fast"] == pytest.approx(120, abs=20)


async def test_what_a_share_leaves_goes_to_the_others(conn: Connection) -> None:
    await share(conn, "key", "paid", 1000)
    await add(conn, 3, "paid")
    await add(conn, 300, "free", cost=1000)
    assert len(await claim(conn, 100)) == 100
    assert len(await claim(conn, 203)) == 203
    assert await claim(conn, 10) == []


@pytest.mark.parametrize("by", ["key", "tenant"])
@pytest.mark.parametrize("wanted", [1, 4])
async def test_ten_jobs_wait_for_a_handful_of_a_hundred_thousand(conn: Connection, by: str, wanted: int) -> None:
    big, small = ({"key": "big"}, {"key": "small"}) if by == "key" else ({"org": "big"}, {"org": "small"})
    await add(conn, 100_000, **{"key": None, **big})
    await add(conn, 10, **{"key": None, **small})
    foreign = own = 0
    while own < 10:
        for _, org, key, _ in await claim(conn, wanted):
            own += "small" in (org, key)
            foreign += "big" in (org, key)
    assert foreign <= 20


async def test_no_key_waits_longer_than_its_share_says(conn: Connection) -> None:
    for number in range(19):
        await add(conn, 60, f"key-{number:02}")
    await add(conn, 60, "zero", cost=0)
    gaps: Counter[str] = Counter()
    longest = 0
    for _ in range(600):
        [(_, _, key, _)] = await claim(conn)
        gaps.update([f"key-{number:02}" for number in range(19)] + ["zero"])
        longest = max(longest, gaps[key])
        gaps[key] = 0
    # Twenty keys, and never more than three rounds of them.
    assert max(longest, *gaps.values()) <= 60


async def test_a_weight_becomes_a_limit_and_a_limit_a_weight_while_jobs_run(conn: Connection) -> None:
    running = "select running, counts from queue_pg.limits where name = 'a'"
    await share(conn, "key", "a", 2)
    await add(conn, 20, "a")
    assert len(await claim(conn, 3)) == 3
    assert await (await conn.execute(running)).fetchall() == [(0, False)]
    await conn.execute("select queue_pg.set_limit('key', 'a', max_running => 5)")
    assert await (await conn.execute(running)).fetchall() == [(3, True)]
    assert len(await claim(conn, 20)) == 2
    await share(conn, "key", "a", 2)
    assert len(await claim(conn, 3)) == 3
    await conn.execute("select queue_pg.set_limit('key', 'a', max_running => 9)")
    assert await (await conn.execute(running)).fetchall() == [(8, True)]
    assert len(await claim(conn, 20)) == 1
    assert await (await conn.execute("select * from queue_pg.recount_limits()")).fetchall() == []


async def test_a_weight_alone_is_no_lock_between_claims(conn: Connection, dsn: str) -> None:
    await share(conn, "key", "a", 2)
    await add(conn, 5, "a")
    async with await Connection.connect(dsn) as other:
        assert len(await claim(other, 1)) == 1
        # Its transaction is open.
        assert len(await claim(conn, 4)) == 4
        await other.rollback()


# --- ageing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "a"])
async def test_who_has_waited_long_enough_gets_a_turn_of_eight(conn: Connection, key: str | None) -> None:
    await share(conn, "queue", "default", None, ageing=60)
    await add(conn, 3, key, cost=2, priority=-10, age=3600)
    await add(conn, 1, key, cost=3, priority=-20, age=7200)
    await add(conn, 100, key, cost=4, priority=-5, age=30)
    await add(conn, 300, key, priority=10)
    costs = [job[3] for _ in range(60) for job in await claim(conn)]
    aged = [(place, cost) for place, cost in enumerate(costs) if cost != 1]
    # The longest waiting first, whatever its priority; none that has not waited for so long.
    assert [cost for _, cost in aged] == [3, 2, 2, 2]
    # Never more than thirteen turns apart, eight on average.
    assert aged[0][0] <= 13
    assert aged[3][0] <= 4 * 13


@pytest.mark.parametrize("key", [None, "a"])
async def test_large_claims_give_an_eighth_to_who_has_waited(conn: Connection, key: str | None) -> None:
    await share(conn, "queue", "default", None, ageing=60)
    await add(conn, 100, key, cost=2, priority=-10, age=3600)
    await add(conn, 300, key, priority=10)
    seen = Counter([job[3] for _ in range(4) for job in await claim(conn, 40)])
    assert seen == {1: 140, 2: 20}
    # Nobody is handed out twice, and nobody is left.
    assert len(await claim(conn, 400)) == 240


async def test_without_ageing_priority_is_all(conn: Connection) -> None:
    await add(conn, 5, "a", cost=2, priority=-10, age=3600)
    await add(conn, 100, "a", priority=10)
    assert {job[3] for _ in range(50) for job in await claim(conn)} == {1}


async def test_ageing_takes_no_other_kind_and_nothing_expired(conn: Connection) -> None:
    await share(conn, "queue", "default", None, ageing=1)
    await add(conn, 5, None, cost=2, priority=-10, age=3600)
    await conn.execute("update queue_pg.jobs set kind = 'other'")
    await add(conn, 5, None, cost=3, priority=-10, age=3600)
    await conn.execute("update queue_pg.jobs set expires_at = queue_pg.now() where cost = 3")
    await add(conn, 50, None)
    taken = await conn.execute("select kind from queue_pg.claim('w', '{default}', '{k}', max_jobs => 100)")
    assert Counter(await taken.fetchall()) == {("k",): 50}


async def test_ageing_counts_against_the_limit(conn: Connection) -> None:
    await conn.execute("select queue_pg.set_limit('queue', 'default', max_running => 16, ageing => '1 minute')")
    await add(conn, 50, None, cost=2, priority=-10, age=3600)
    await add(conn, 50, None, priority=10)
    taken = Counter(job[3] for job in await claim(conn, 100))
    assert taken == {1: 14, 2: 2}
    assert await claim(conn, 100) == []


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ("'key', 'a', weight => 0", "weight"),
        ("'key', 'a', weight => -1", "weight"),
        ("'key', 'a', weight => 1000.1", "weight"),
        ("'key', 'a', weight => 'NaN'", "weight"),
        ("'key', 'a', weight => 'Infinity'", "weight"),
        ("'key', 'a', ageing => '1 minute'", "ageing"),
        ("'queue', 'a', ageing => '0'", "ageing"),
        ("'queue', 'a', ageing => '-1 minute'", "ageing"),
        ("'queue', 'a', ageing => '2 years'", "ageing"),
        ("'queue', 'a'", "max_running"),
    ],
)
async def test_a_bad_share_is_refused_by_the_name_of_its_field(conn: Connection, terms: str, field: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute(f"select queue_pg.set_limit({terms})")
    assert refused.value.sqlstate == "QP005"
    assert str(refused.value).startswith(f"{field}:")
