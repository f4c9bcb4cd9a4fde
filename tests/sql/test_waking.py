"""Who pays for a NOTIFY and when: only an INSERT into a queue that an idle listener has armed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from psycopg import AsyncConnection

Connection = AsyncConnection[Any]


class Ear:
    """Hears what was sent up to now on the channels of wake-ups."""

    def __init__(self, conn: Connection, speaker: Connection) -> None:
        self._conn = conn
        self._speaker = speaker

    async def heard(self) -> list[tuple[str, str]]:
        # Delivered after whatever was sent before it.
        await self._speaker.execute("notify queue_pg_due, 'end'")
        found: list[tuple[str, str]] = []
        async for note in self._conn.notifies(timeout=20):
            if note.payload == "end":
                break
            found.append((note.channel, note.payload))
        return found


@pytest.fixture
async def ear(conn: Connection, dsn: str) -> AsyncIterator[Ear]:
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_wake")
        await listener.execute("listen queue_pg_due")
        yield Ear(listener, conn)


async def insert(conn: Connection, queue: str = "default", *, delay: str = "0") -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, queue, run_at) values ('k', %s, queue_pg.now() + %s::interval)",
        (queue, delay),
    )


async def claim(conn: Connection, arm: bool | None, queues: str = "{default}") -> int:
    cursor = await conn.execute("select from queue_pg.claim('w', %s, max_jobs => 10, arm => %s)", (queues, arm))
    return cursor.rowcount


async def test_an_insert_notifies_nobody_unless_its_queue_is_armed(conn: Connection, ear: Ear) -> None:
    await conn.execute("select queue_pg.arm('{other}')")
    await insert(conn)
    assert await ear.heard() == []
    await insert(conn, "other")
    assert await ear.heard() == [("queue_pg_wake", "other")]


async def test_a_queue_stays_armed_until_it_is_disarmed(conn: Connection, ear: Ear) -> None:
    await conn.execute("select queue_pg.arm('{default}')")
    await insert(conn)
    await insert(conn)
    assert await ear.heard() == [("queue_pg_wake", "default")] * 2
    await conn.execute("select queue_pg.disarm('{default}')")
    await insert(conn)
    assert await ear.heard() == []


async def test_disarming_one_queue_leaves_the_others_armed(conn: Connection, ear: Ear) -> None:
    await conn.execute("select queue_pg.arm('{a,b}')")
    await conn.execute("select queue_pg.arm_due()")
    await conn.execute("select queue_pg.disarm('{a}')")
    await insert(conn, "a")
    await insert(conn, "b")
    await insert(conn, "a", delay="1 s")
    assert await ear.heard() == [("queue_pg_wake", "b"), ("queue_pg_due", "")]


async def test_a_claim_in_vain_arms_and_one_with_jobs_does_not(conn: Connection, ear: Ear) -> None:
    await insert(conn)
    assert await claim(conn, True) == 1
    await insert(conn)
    assert await ear.heard() == []
    assert await claim(conn, None) == 1
    assert await claim(conn, None) == 0
    await insert(conn)
    assert await ear.heard() == []
    assert await claim(conn, None) == 1
    assert await claim(conn, True) == 0
    await insert(conn)
    assert await ear.heard() == [("queue_pg_wake", "default")]


async def test_a_claim_that_will_look_again_disarms(conn: Connection, ear: Ear) -> None:
    assert await claim(conn, True) == 0
    assert await claim(conn, False) == 0
    await insert(conn)
    assert await ear.heard() == []


async def test_arming_looks_once_more(conn: Connection, dsn: str) -> None:
    # Made visible between the two looks of one claim by arming itself, as if another had committed just then.
    await conn.execute(
        "create or replace function queue_pg.arm(queues text[]) returns void language sql"
        " as $$ insert into queue_pg.jobs (kind) values ('late') $$"
    )
    assert await claim(conn, True) == 1


async def test_bulk_wakes_once_and_a_rollback_never(conn: Connection, ear: Ear) -> None:
    await conn.execute("select queue_pg.arm('{default}')")
    await conn.execute("begin")
    await insert(conn)
    await conn.execute("rollback")
    assert await ear.heard() == []
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 1000)")
    assert await ear.heard() == [("queue_pg_wake", "default")]


async def test_scheduled_jobs_wake_maintenance_only_when_they_come_before_its_next_look(
    conn: Connection, ear: Ear
) -> None:
    await conn.execute("select queue_pg.arm('{default}')")
    await insert(conn, delay="1 s")
    assert await ear.heard() == []
    await conn.execute("select queue_pg.arm_due()")
    await insert(conn, delay="1 h")
    assert await ear.heard() == []
    await insert(conn, delay="1 s")
    assert await ear.heard() == [("queue_pg_due", "")]
    await conn.execute("select queue_pg.disarm_due()")
    await insert(conn, delay="1 s")
    assert await ear.heard() == []


async def test_jobs_that_come_back_wake_the_armed_queue(conn: Connection, ear: Ear) -> None:
    await insert(conn)
    (job,) = await (await conn.execute("select id from queue_pg.claim('w', '{default}')")).fetchone() or ()
    await conn.execute("select queue_pg.arm('{default}')")
    await conn.execute("select queue_pg.release(%s, 1)", (job,))
    assert await ear.heard() == [("queue_pg_wake", "default")]


async def test_with_notify_off_nothing_arms_and_nothing_is_sent(conn: Connection, ear: Ear) -> None:
    await conn.execute("select queue_pg.configure(notify => false)")
    assert await claim(conn, True) == 0
    await conn.execute("select queue_pg.arm_due()")
    await insert(conn)
    await insert(conn, delay="1 s")
    await conn.execute("select queue_pg.wake()")
    assert await ear.heard() == []


async def test_queues_that_nobody_serves_any_more_are_disarmed(conn: Connection, ear: Ear) -> None:
    await conn.execute("select queue_pg.arm('{left,served}')")
    await conn.execute("select queue_pg.arm_due()")
    await conn.execute("select queue_pg.tidy_armed('{served}')")
    await insert(conn, "left")
    await insert(conn, "served")
    await insert(conn, delay="1 s")
    assert await ear.heard() == [("queue_pg_wake", "served"), ("queue_pg_due", "")]


async def test_a_long_transaction_that_has_armed_keeps_nobody_waiting(conn: Connection, dsn: str, ear: Ear) -> None:
    async with await Connection.connect(dsn) as other:
        await other.execute("select queue_pg.arm('{a}')")
        await conn.execute("set statement_timeout = '10s'")
        assert await claim(conn, True, "{b}") == 0
        assert await claim(conn, False, "{b}") == 0
        await insert(conn, "a")
        assert await ear.heard() == [("queue_pg_wake", "a")]


async def test_a_role_that_may_only_insert_wakes_the_queue(conn: Connection, ear: Ear) -> None:
    role = f"inserter_{uuid4().hex}"
    await conn.execute(f"create role {role}")
    try:
        await conn.execute(f"grant usage on schema queue_pg to {role}; grant insert on queue_pg.jobs to {role}")
        await conn.execute("select queue_pg.arm('{default}')")
        await conn.execute(f"set role {role}")
        await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
        await conn.execute("reset role")
        assert await ear.heard() == [("queue_pg_wake", "default")]
    finally:
        await conn.execute(f"reset role; drop owned by {role}; drop role {role}")
