"""Another priority: in every state, in the order of claims, as an event, and beside others who have the job."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    row = await (await conn.execute(statement, args)).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


async def submit(conn: Connection, **fields: Any) -> UUID:
    named = "".join(f", {name} => %s" for name in fields)
    made: UUID = await one(conn, f"select queue_pg.submit('k'{named})", *fields.values())
    return made


async def claimed(conn: Connection, jobs: int = 1) -> list[UUID]:
    cursor = await conn.execute("select id from queue_pg.claim('w', '{default}', max_jobs => %s)", (jobs,))
    return [row[0] for row in await cursor.fetchall()]


async def told(conn: Connection, job: UUID) -> list[Any]:
    cursor = await conn.execute("select seq, type, data from queue_pg.events(%s)", (job,))
    return [(seq, name, data.get("was"), data.get("priority")) for seq, name, data in await cursor.fetchall()]


async def test_claims_follow_the_new_order(conn: Connection) -> None:
    ids = [await submit(conn) for _ in range(4)]
    assert await one(conn, "select priority from queue_pg.reprioritize(%s, 20)", ids[2]) == 20
    assert await one(conn, "select priority from queue_pg.reprioritize(%s, -1)", ids[0]) == -1
    assert await claimed(conn, 4) == [ids[2], ids[1], ids[3], ids[0]]


async def test_a_session_that_has_claimed_much_finds_the_one_put_first(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 300)")
    for _ in range(25):
        await claimed(conn, 10)
    last = await one(conn, "select id from queue_pg.jobs where state = 'queued' order by id desc limit 1")
    await conn.execute("select queue_pg.reprioritize(%s, 5)", (last,))
    assert await claimed(conn) == [last]


async def test_it_is_an_event_once(conn: Connection) -> None:
    job = await submit(conn, priority=3)
    for _ in range(2):
        await conn.execute("select queue_pg.reprioritize(%s, 7)", (job,))
    await conn.execute("select queue_pg.reprioritize(%s, 3)", (job,))
    await claimed(conn)
    assert await told(conn, job) == [
        (1, "submitted", None, None),
        (2, "reprioritized", 3, 7),
        (3, "reprioritized", 7, 3),
        (4, "started", None, None),
    ]


@pytest.mark.parametrize("state", ["scheduled", "waiting", "running"])
async def test_what_is_not_queued_has_it_when_it_is(conn: Connection, clock: Clock, state: str) -> None:
    parent = await submit(conn, priority=9) if state == "waiting" else None
    if state == "waiting":
        job = await one(conn, "select queue_pg.submit('k', depends_on => jsonb_build_array(%s::text))", str(parent))
    else:
        job = await submit(conn, **({"delay": "1 hour"} if state == "scheduled" else {}))
    if state == "running":
        await claimed(conn)
    assert await one(conn, "select state, priority from queue_pg.reprioritize(%s, 8)", job) == (state, 8)
    first = await submit(conn, priority=1)
    if state == "scheduled":
        clock.advance(3601)
        await conn.execute("select queue_pg.maintain()")
    elif state == "waiting":
        assert await claimed(conn) == [parent]
        await conn.execute("select queue_pg.complete(id, lease_token) from queue_pg.jobs where id = %s", (parent,))
    else:
        await conn.execute("select queue_pg.release(id, lease_token) from queue_pg.jobs where id = %s", (job,))
    assert await claimed(conn, 2) == [job, first]


async def test_a_lease_outlives_it(conn: Connection) -> None:
    job = await submit(conn)
    await claimed(conn)
    before = await one(conn, "select lease_token, lease_expires_at, attempt from queue_pg.jobs")
    await conn.execute("select queue_pg.reprioritize(%s, 8)", (job,))
    assert await one(conn, "select lease_token, lease_expires_at, attempt from queue_pg.jobs") == before
    assert await one(conn, "select queue_pg.complete(id, lease_token) from queue_pg.jobs") == "completed"
    assert [name for _, name, *_ in await told(conn, job)] == ["submitted", "started", "reprioritized", "completed"]


@pytest.mark.parametrize("outcome", ["complete", "discard", "cancel"])
async def test_what_has_ended_has_none_to_change(conn: Connection, outcome: str) -> None:
    job = await submit(conn)
    await claimed(conn)
    await conn.execute(
        "select queue_pg.finish(array[id], array[lease_token], array[%s]) from queue_pg.jobs", (outcome,)
    )
    before = await told(conn, job)
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute("select queue_pg.reprioritize(%s, 8)", (job,))
    assert refused.value.sqlstate == "QP002"
    assert await told(conn, job) == before
    assert await one(conn, "select priority from queue_pg.all_jobs") == 0


async def test_wrong_input(conn: Connection) -> None:
    job = await submit(conn)
    for job_id, priority, sqlstate in (
        (uuid4(), 1, "QP001"),
        (None, 1, "QP001"),
        (job, 32_768, "QP005"),
        (job, -32_769, "QP005"),
        (job, None, "QP005"),
    ):
        with pytest.raises(psycopg.Error) as refused:
            await conn.execute("select queue_pg.reprioritize(%s::uuid, %s::integer)", (job_id, priority))
        assert refused.value.sqlstate == sqlstate


async def test_beside_those_who_claim_and_finish(conn: Connection, dsn: str) -> None:
    ids = [await submit(conn) for _ in range(60)]

    async def work() -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            # A claim passes over those that are just being moved: that there are none is asked of the table.
            while await one(own, "select count(*) from queue_pg.jobs where state = 'queued'"):
                mine = await own.execute("select id, lease_token from queue_pg.claim('w', '{default}', max_jobs => 3)")
                for job, token in await mine.fetchall():
                    await own.execute("select queue_pg.complete(%s, %s)", (job, token))

    async def steer() -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            for nr, job in enumerate(ids):
                try:
                    await own.execute("select queue_pg.reprioritize(%s, %s)", (job, nr % 7 + 1))
                except psycopg.Error as refused:
                    # It has ended, perhaps just now; anything else is a fault.
                    if refused.sqlstate != "QP002":
                        raise

    await asyncio.gather(work(), work(), steer())
    assert await one(conn, "select count(*), min(state), max(state) from queue_pg.all_jobs") == (
        60,
        "completed",
        "completed",
    )
    for job in ids:
        events = await told(conn, job)
        assert [seq for seq, *_ in events] == list(range(1, len(events) + 1))
        assert {name for _, name, *_ in events} >= {"submitted", "started", "completed"}
