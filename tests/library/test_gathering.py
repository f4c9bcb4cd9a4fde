"""Submissions that come together share a transaction; each is answered for itself, after its commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_pg import DatabaseUnavailable, InvalidJob, NewJob, Queue, gathering
from queue_pg.gathering import Gathering
from queue_pg.submission import CheckedJob, JobChecker
from queue_pg.uuid7 import uuid7_halves, uuid7_microseconds, uuid_of

check = JobChecker(org="default")
REFUSED_BY_POSTGRES = check(NewJob(kind="bad", metadata={f"k{n}": n for n in range(5_000)}))


def job(payload: Any = None) -> CheckedJob:
    return check(NewJob(kind="k", payload=payload))


class Gate:
    """Connections of a Queue, lent when the gate is open; `asked` when somebody stands before it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.lent = 0
        self.fault: Exception | None = None

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        self.asked.set()
        await self.open.wait()
        self.lent += 1
        if self.fault is not None:
            raise self.fault
        async with self._queue.connection(unsafe_to_repeat=True) as conn:
            yield conn


@pytest.fixture
async def gate(dsn: str) -> AsyncIterator[Gate]:
    async with Queue(dsn, notify=False) as queue:
        yield Gate(queue)


@pytest.fixture
async def together(gate: Gate) -> AsyncIterator[Gathering]:
    gathered = Gathering(gate.connection)
    yield gathered
    await gathered.close()


async def behind(gate: Gate, together: Gathering, *jobs: CheckedJob) -> list[asyncio.Task[Any]]:
    """Submit one job that stops before the closed gate, and the others, which gather behind it."""
    gate.open.clear()
    gate.asked.clear()
    tasks = [asyncio.create_task(together.submit(job("first")))]
    await gate.asked.wait()
    tasks += [asyncio.create_task(together.submit(each)) for each in jobs]
    await asyncio.sleep(0)
    return tasks


async def stored(conn: psycopg.AsyncConnection) -> list[tuple[Any, ...]]:
    return await (await conn.execute("select payload, xmin::text from queue_pg.jobs order by id")).fetchall()


async def test_what_gathers_behind_a_flush_is_one_transaction(
    gate: Gate, together: Gathering, conn: psycopg.AsyncConnection
) -> None:
    tasks = await behind(gate, together, *(job(n) for n in range(50)))
    gate.open.set()
    made = await asyncio.gather(*tasks)
    rows = await stored(conn)
    assert [row[0] for row in rows] == ["first", *range(50)]
    assert len({row[1] for row in rows}) == gate.lent == 2
    ids = await (await conn.execute("select id, created_at, run_at from queue_pg.jobs order by id")).fetchall()
    assert ids == [(each.id, each.created_at, each.created_at) for each in made]


async def test_a_lonely_job_is_stored_at_once(gate: Gate, together: Gathering, conn: psycopg.AsyncConnection) -> None:
    for n in range(3):
        await together.submit(job(n))
        assert len(await stored(conn)) == gate.lent == n + 1


async def test_limits_answered_are_those_in_force(
    together: Gathering, conn: psycopg.AsyncConnection, gate: Gate
) -> None:
    kinds = '[{"kind": "special", "max_attempts": 7, "timeout_seconds": 90}]'
    await conn.execute("select queue_pg.register_kinds(%s)", (kinds,))
    jobs = [job(), check(NewJob(kind="special")), job()]
    tasks = await behind(gate, together, *jobs)
    gate.open.set()
    made = await asyncio.gather(*tasks)
    for each in made:
        row = await (await conn.execute("select max_attempts, timeout from queue_pg.job(%s)", (each.id,))).fetchone()
        assert row == (each.max_attempts, each.timeout)
    assert (made[2].max_attempts, made[2].timeout) == (7, timedelta(seconds=90))
    assert made[1].max_attempts == made[3].max_attempts != 7


async def test_one_refused_job_hurts_no_other(gate: Gate, together: Gathering, conn: psycopg.AsyncConnection) -> None:
    tasks = await behind(gate, together, job(1), REFUSED_BY_POSTGRES, job(2))
    gate.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[2], InvalidJob)
    assert outcomes[2].field == "metadata"
    assert [isinstance(outcome, BaseException) for outcome in outcomes] == [False, False, True, False]
    assert [row[0] for row in await stored(conn)] == ["first", 1, 2]


async def test_who_leaves_before_the_flush_is_left_out(
    gate: Gate, together: Gathering, conn: psycopg.AsyncConnection
) -> None:
    tasks = await behind(gate, together, job(1), job(2), job(3))
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    gate.open.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [row[0] for row in await stored(conn)] == ["first", 1, 3]


async def test_who_leaves_during_the_flush_takes_nobody_along(
    gate: Gate, together: Gathering, conn: psycopg.AsyncConnection
) -> None:
    tasks = await behind(gate, together, job(1))
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    gate.open.set()
    await tasks[1]
    assert [row[0] for row in await stored(conn)] == ["first", 1]


async def test_an_outage_is_told_to_all_and_is_over_when_it_is_over(
    gate: Gate, together: Gathering, conn: psycopg.AsyncConnection
) -> None:
    gate.fault = DatabaseUnavailable("gone")
    tasks = await behind(gate, together, job(1), job(2))
    gate.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 3
    assert gate.lent == 1
    gate.fault = None
    await together.submit(job(3))
    assert [row[0] for row in await stored(conn)] == [3]


async def test_a_connection_lost_under_way_leaves_the_outcome_unknown(
    dsn: str, together: Gathering, gate: Gate, conn: psycopg.AsyncConnection
) -> None:
    async with conn.transaction():
        await conn.execute("lock table queue_pg.jobs in exclusive mode")
        task = asyncio.create_task(together.submit(job()))
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            ended = None
            while ended is None:
                ended = await (
                    await other.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity"
                        " where wait_event_type = 'Lock' and query like '%submit_group%' and pid <> pg_backend_pid()"
                    )
                ).fetchone()
        with pytest.raises(DatabaseUnavailable, match="may or may not have been stored"):
            await task
    await together.submit(job())


async def test_groups_are_bounded(
    gate: Gate, together: Gathering, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "MAX_JOBS", 4)
    tasks = await behind(gate, together, *(job(n) for n in range(10)))
    gate.open.set()
    await asyncio.gather(*tasks)
    assert gate.lent == 1 + 3
    monkeypatch.setattr(gathering, "MAX_BYTES", 100)
    tasks = await behind(gate, together, *(job("x" * 60) for n in range(4)))
    gate.open.set()
    await asyncio.gather(*tasks)
    assert gate.lent == 4 + 1 + 2


async def test_an_answer_means_on_disk(dsn: str, conn: psycopg.AsyncConnection) -> None:
    await conn.execute("create table seen (value text)")
    await conn.execute(
        "create function note() returns trigger language plpgsql as $$ begin"
        " insert into public.seen values (current_setting('synchronous_commit')); return null; end $$"
    )
    await conn.execute("create trigger note after insert on queue_pg.jobs execute function note()")
    async with Queue(f"{dsn}?options=-c%20synchronous_commit%3Doff", notify=False) as queue:
        await Gathering(Gate(queue).connection).submit(job())
    assert await (await conn.execute("select value from seen")).fetchall() == [("on",)]


async def test_closing_waits_for_what_is_under_way(
    gate: Gate, together: Gathering, conn: psycopg.AsyncConnection
) -> None:
    tasks = await behind(gate, together, job(1))
    closing = asyncio.create_task(together.close())
    await asyncio.sleep(0)
    assert not closing.done()
    gate.open.set()
    await closing
    await asyncio.gather(*tasks)
    assert len(await stored(conn)) == 2


@given(st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)), st.integers(0, 2**64 - 1))
def test_an_id_tells_its_microsecond(moment: datetime, random: int) -> None:
    microseconds = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    high, low = uuid7_halves(microseconds, random)
    made = UUID(int=high << 64 | low)
    assert uuid7_microseconds(made) == microseconds
    assert repr((uuid_of(made.int), hash(uuid_of(made.int)))) == repr((made, hash(made)))
    assert uuid_of(made.int).is_safe is made.is_safe
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert UUID(int=uuid7_halves(microseconds + 1, 0)[0] << 64) > UUID(int=high << 64)
