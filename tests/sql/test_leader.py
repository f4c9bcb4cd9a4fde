"""One leader at a time, by a row with a date; and looks that reach no further back than the last one."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    (row,) = await (await conn.execute(statement, args)).fetchall()
    return row[0] if len(row) == 1 else row


async def leads(conn: Connection, name: str) -> bool:
    return await one(conn, "select leads from queue_pg.lead_maintenance(%s)", name)


async def test_the_first_one_leads_while_it_comes_back(conn: Connection, clock: Clock) -> None:
    assert await leads(conn, "a")
    for _ in range(5):
        clock.advance(1)
        assert await leads(conn, "a")
        assert not await leads(conn, "b")
    clock.advance(1.6)
    assert await leads(conn, "b")
    assert not await leads(conn, "a")


async def test_a_leader_that_comes_late_goes_on_when_nobody_took_its_place(conn: Connection, clock: Clock) -> None:
    assert await leads(conn, "a")
    clock.advance(3600)
    assert await leads(conn, "a")


async def test_a_leader_that_resigns_is_replaced_at_once(conn: Connection) -> None:
    assert await leads(conn, "a")
    await conn.execute("select queue_pg.resign_maintenance('b')")  # not its own to give
    assert not await leads(conn, "b")
    await conn.execute("select queue_pg.resign_maintenance('a')")
    assert await leads(conn, "b")


async def test_appointments_are_a_second_apart_and_20_s_away_at_most(conn: Connection, stopped: Clock) -> None:
    look = "select next_look_seconds from queue_pg.lead_maintenance(%s)"
    assert await leads(conn, "a")
    given = [round(await one(conn, look, f"b{n}")) for n in range(80)]
    assert given[:4] == [1, 2, 3, 4]
    assert max(given) == 20
    stopped.advance(3600)
    assert await leads(conn, "a")
    assert round(await one(conn, look, "b")) == 1


@pytest.mark.usefixtures("stopped")
async def test_no_appointment_is_further_away_than_its_process_has_lived(conn: Connection) -> None:
    look = "select next_look_seconds from queue_pg.lead_maintenance(%s, age => %s::interval)"
    assert await leads(conn, "a")
    # Many that crash soon after their start make none that somebody else would stand behind.
    for number in range(50):
        assert 0.5 <= await one(conn, look, f"crashing {number}", "0.4 s") <= 1
    assert [round(await one(conn, look, f"b{number}", "1 hour")) for number in range(10)] == [*range(1, 11)]
    assert 2 <= await one(conn, look, "young", "4 s") <= 4
    assert round(await one(conn, look, "c", "11 s")) == 11


async def test_a_clock_that_goes_back_leaves_no_absent_leader(conn: Connection, clock: Clock) -> None:
    assert await leads(conn, "a")
    clock.advance(-3600)
    assert await leads(conn, "b")


async def test_nobody_waits_for_the_row(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn) as other:
        await other.execute("select * from queue_pg.maintenance for update")
        await conn.execute("set lock_timeout = '1ms'")
        found = await one(conn, "select leads, next_look_seconds from queue_pg.lead_maintenance('a')")
        assert not found[0]
        assert 0.5 <= found[1] <= 1
        await other.rollback()
    assert await leads(conn, "a")


async def test_a_row_that_was_lost_is_made_again(conn: Connection) -> None:
    await conn.execute("delete from queue_pg.maintenance")
    assert await leads(conn, "a")


async def test_the_leader_takes_steps_and_the_others_none(conn: Connection) -> None:
    assert await leads(conn, "a")
    await conn.execute("insert into queue_pg.jobs (kind, run_at) values ('k', queue_pg.now() + interval '1 hour')")
    await conn.execute("update queue_pg.jobs set run_at = queue_pg.now()")
    assert await one(conn, "select promoted from queue_pg.lead_maintenance('b')") is None
    assert await one(conn, "select promoted from queue_pg.lead_maintenance('a')") == 1


ARRANGE = {
    "promote": "update queue_pg.jobs set state = 'scheduled', run_at = queue_pg.now() - %s::interval",
    "reap": "update queue_pg.jobs set state = 'running', lease_expires_at = queue_pg.now() - %s::interval,"
    " claimed_at = queue_pg.now(), attempt = 1",
    "expire": "update queue_pg.jobs set expires_at = queue_pg.now() - %s::interval",
}


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("step", ARRANGE)
async def test_a_look_since_another_passes_over_what_is_older(conn: Connection, step: str) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    await conn.execute(ARRANGE[step], ("1 minute",))
    count = f"select count(*) from queue_pg.{step}(1000, %s) f where f::text <> '0'"
    since = await one(conn, "select queue_pg.now() - interval '50 s'")
    assert await one(conn, count, since) == 0
    # A second before is looked at again, for what was committed late.
    since = await one(conn, "select queue_pg.now() - interval '59.5 s'")
    assert await one(conn, count, since) == 1
    await conn.execute("delete from queue_pg.jobs")
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    await conn.execute(ARRANGE[step], ("1 minute",))
    assert await one(conn, count, None) == 1


@pytest.mark.usefixtures("stopped")
async def test_the_next_thing_due_is_looked_for_within_bounds(conn: Connection) -> None:
    await conn.execute("select queue_pg.submit('k', delay => '10 s')")
    due = "select next_due_seconds from queue_pg.maintain(within => %s::interval)"
    assert await one(conn, due, "1 s") is None
    assert await one(conn, due, "20 s") == 10
    assert await one(conn, due, None) == 10


ARMED = "select pg_sequence_last_value('queue_pg.armed') >> 62 & 1"


async def test_maintenance_arms_only_when_nothing_falls_due_in_a_moment(conn: Connection, dsn: str) -> None:
    await conn.execute("select * from queue_pg.maintain(arm => true)")
    assert await one(conn, ARMED) == 1
    await conn.execute("select * from queue_pg.maintain()")
    assert await one(conn, ARMED) == 1
    await conn.execute("select * from queue_pg.maintain(arm => false)")
    assert await one(conn, ARMED) == 0
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    await conn.execute("update queue_pg.jobs set state = 'scheduled'")
    async with await Connection.connect(dsn) as other:
        # Due now, and not to be had: the next look is a moment away.
        await other.execute("select * from queue_pg.jobs for update")
        await conn.execute("select * from queue_pg.maintain(arm => true)")
        assert await one(conn, ARMED) == 0
        await other.rollback()
    await conn.execute("select * from queue_pg.maintain(arm => true)")
    assert await one(conn, ARMED) == 1
