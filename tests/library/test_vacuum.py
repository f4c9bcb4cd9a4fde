"""Vacuums by the leader of maintenance: when, how long it rests, and that dead rows go. Statistics come when asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from queue_pg import store, vacuum
from queue_pg.maintenance import MaintenanceLoop
from queue_pg.models import DeadRows
from queue_pg.vacuum import Vacuum, VacuumPace

SOON = 20.0
BURST = 2_000
BOUND = 500


def rows(*, dead: int = 0, live: int = 0, counters: int = 0) -> list[DeadRows]:
    return [
        DeadRows(name="jobs", dead=dead, live=live, may_vacuum=True),
        DeadRows(name="queue_counters", dead=counters, live=0, may_vacuum=True),
    ]


def test_a_table_is_due_above_its_bound_and_half_of_its_live_rows() -> None:
    pace = VacuumPace()
    assert pace.due(rows(dead=200_000, counters=5_000), 0) == []
    assert pace.due(rows(dead=200_001), 1) == ["jobs"]
    assert pace.due(rows(dead=700_000, live=1_000_000), 2) == []
    assert pace.due(rows(dead=700_001, live=1_000_000, counters=5_001), 3) == ["jobs", "queue_counters"]
    assert pace.look_at == 4


def rest(pace: VacuumPace, *, before: int = 100_000, after: int = 0, took: float) -> float:
    pace.end(before, after, took, 1_000)
    return pace.look_at - 1_000


def test_vacuums_take_a_twentieth_of_the_time() -> None:
    assert rest(VacuumPace(), took=0.01) == 1
    assert rest(VacuumPace(), took=0.5) == 10
    assert rest(VacuumPace(), took=vacuum.MAX_SECONDS) == 600


def test_those_in_vain_rest_longer_and_longer_up_to_a_minute() -> None:
    pace = VacuumPace()
    assert [rest(pace, after=90_000, took=0.05) for _ in range(7)] == [2, 4, 8, 16, 32, 60, 60]
    assert rest(pace, after=90_000, took=10) == 200
    assert rest(pace, after=50_000, took=0.05) == 1
    assert rest(pace, after=50_001, took=0.05) == 2


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can afford to exceed."""
    monkeypatch.setattr(vacuum, "DEAD_ROWS", dict.fromkeys(vacuum.DEAD_ROWS, BOUND))


async def counted(conn: psycopg.AsyncConnection) -> tuple[int, int]:
    """Return the dead rows of `jobs` by the statistics, and how often somebody vacuumed it."""
    cursor = await conn.execute(
        "select pg_stat_get_dead_tuples(oid), pg_stat_get_vacuum_count(oid) from pg_class"
        " where oid = 'queue_pg.jobs'::regclass"
    )
    return (await cursor.fetchone()) or (0, 0)


async def churn(conn: psycopg.AsyncConnection, *, known: int) -> None:
    """Have many jobs come and go, until the statistics know of so many dead rows."""
    # The server's own vacuum may come by, and then there is nothing left to do.
    await conn.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, %s)", (BURST,))
    await conn.execute("delete from queue_pg.jobs")
    if conn.info.server_version >= 150000:
        await conn.execute("select pg_stat_force_next_flush()")
    async with asyncio.timeout(SOON):
        while (await counted(conn))[0] < known:
            await conn.execute("select pg_sleep(0.05)")


@pytest.fixture
async def burst(conn: psycopg.AsyncConnection, low: None) -> psycopg.AsyncConnection:
    """A connection to a database in which many jobs have come and gone."""
    await churn(conn, known=BURST)
    return conn


async def test_the_leader_vacuums_after_a_burst(dsn: str, burst: psycopg.AsyncConnection) -> None:
    stop = asyncio.Event()
    loop = asyncio.create_task(MaintenanceLoop(dsn).run(stop))
    async with asyncio.timeout(SOON):
        while (await counted(burst))[0] > BOUND:
            await burst.execute("select pg_sleep(0.05)")
    stop.set()
    await loop
    assert (await counted(burst))[1] >= 1  # more when other tests hold the horizon for a moment


@pytest.mark.usefixtures("low")
async def test_it_learns_that_somebody_holds_the_dead_rows(
    dsn: str, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[tuple[int, int]] = []

    class Told(VacuumPace):
        def end(self, before: int, after: int, took_seconds: float, now: float) -> None:
            ends.append((before, after))
            super().end(before, after, took_seconds, now)

    monkeypatch.setattr(vacuum, "VacuumPace", Told)
    async with await psycopg.AsyncConnection.connect(dsn) as holder:
        await holder.execute("set transaction isolation level repeatable read")
        await holder.execute("select 1")
        await churn(conn, known=BURST)
        one = Vacuum(dsn)
        await one.look(conn)
        assert one.task is not None
        await asyncio.wait_for(one.task, SOON)
    assert ends == [(BURST, BURST)]


@pytest.fixture
def stranger(dsn: str, admin: psycopg.Connection) -> Iterator[str]:
    """The DSN of a role that may read statistics and owns nothing."""
    name = f"{conninfo.conninfo_to_dict(dsn)['dbname']}_app"
    role = sql.Identifier(name)
    admin.execute(sql.SQL("create role {}").format(role))
    try:
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute(sql.SQL("grant usage on schema queue_pg to {}").format(role))
        yield conninfo.make_conninfo(dsn, options=f"-c role={name}")
    finally:
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute(sql.SQL("drop owned by {}").format(role))
        admin.execute(sql.SQL("drop role {}").format(role))


async def test_a_role_that_may_not_leaves_it_to_autovacuum_and_says_so_once(
    stranger: str, burst: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "queue_pg.vacuum")
    monkeypatch.setattr(vacuum, "_FORBIDDEN_SECONDS", 0.0)
    one = Vacuum(stranger)
    async with await psycopg.AsyncConnection.connect(stranger, autocommit=True) as app:
        await one.look(app)
        await one.look(app)
        assert one.task is None
        [told] = [record.getMessage() for record in caplog.records if record.name == "queue_pg.vacuum"]
        assert "grant maintain on queue_pg.jobs" in told
        if app.info.server_version >= 170000:
            role = sql.Identifier(f"{burst.info.dbname}_app")
            await burst.execute(sql.SQL("grant maintain on queue_pg.jobs, queue_pg.queue_counters to {}").format(role))
            await one.look(app)
            assert one.task is not None
            await asyncio.wait_for(one.task, SOON)
            assert (await counted(burst))[1] == 1


def slow(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Have vacuums take a minute; return what is set when one has begun."""
    begun = asyncio.Event()

    async def minute(conn: psycopg.AsyncConnection[Any], _: str) -> None:
        begun.set()
        await conn.execute("select pg_sleep(60)")

    monkeypatch.setattr(store, "vacuum", minute)
    return begun


VACUUMING = "select count(*) from pg_stat_activity where application_name = 'queue-pg vacuum' and datname = %s"


async def vacuuming(conn: psycopg.AsyncConnection) -> bool:
    return await (await conn.execute(VACUUMING, (conn.info.dbname,))).fetchone() != (0,)


async def gone(conn: psycopg.AsyncConnection) -> None:
    async with asyncio.timeout(SOON):
        while await vacuuming(conn):
            pass


async def test_it_delays_nothing_and_ends_with_the_loop(
    dsn: str, burst: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = slow(monkeypatch)
    stop = asyncio.Event()
    loop = MaintenanceLoop(dsn)
    running = asyncio.create_task(loop.run(stop))
    await asyncio.wait_for(begun.wait(), SOON)
    steps = loop.steps
    await loop.step()
    assert loop.steps > steps
    assert await vacuuming(burst)
    stop.set()
    await asyncio.wait_for(running, SOON)
    await gone(burst)


@pytest.mark.usefixtures("stopped")
async def test_it_ends_when_another_process_leads(
    dsn: str, burst: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = slow(monkeypatch)
    loop = MaintenanceLoop(dsn)
    await loop.step()
    await asyncio.wait_for(begun.wait(), SOON)
    await burst.execute("update queue_pg.maintenance set leader = 'another', leader_until = queue_pg.now() + '1.4 s'")
    await loop.step()
    assert not loop.leads
    await gone(burst)
    stopped = asyncio.Event()
    stopped.set()
    await loop.run(stopped)


async def test_one_that_takes_too_long_is_given_up(
    dsn: str, burst: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "queue_pg.vacuum")
    monkeypatch.setattr(vacuum, "MAX_SECONDS", 0.5)
    slow(monkeypatch)
    one = Vacuum(dsn)
    await one.look(burst)
    assert one.task is not None
    await asyncio.wait_for(one.task, SOON)
    assert "it took more than 0.5 s" in caplog.text
    await gone(burst)
