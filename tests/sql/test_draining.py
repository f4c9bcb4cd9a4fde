"""A queue that is draining takes no new jobs, by whatever way, and does those it has."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

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


async def drain(conn: Connection, queue: str = "default") -> None:
    await conn.execute("select queue_pg.drain_queue(%s)", (queue,))


async def finish(conn: Connection, outcome: str = "complete", result: str | None = None) -> str:
    return await one(
        conn,
        "select f.state from queue_pg.claim('w', '{default}') c cross join lateral"
        " queue_pg.finish(array[c.id], array[c.lease_token], array[%s], array[%s::jsonb]) f",
        outcome,
        result,
    )


async def draining_bit(conn: Connection) -> bool:
    return await one(conn, "select pg_sequence_last_value('queue_pg.armed') & (1::bigint << 60) <> 0")


@pytest.mark.parametrize(
    "statement",
    [
        "insert into queue_pg.jobs (kind) values ('k')",
        "insert into queue_pg.jobs (kind, run_at) values ('k', queue_pg.now() + '1 hour')",
        "select queue_pg.submit('k')",
        "select queue_pg.submit('k', unique_key => 'new')",
        "select queue_pg.submit('k', cache => true)",
        'select * from queue_pg.submit_many(\'[{"kind": "k", "queue": "other"}, {"kind": "k"}]\')',
        "select queue_pg.submit_task('anything')",
        "select queue_pg.rerun(id) from queue_pg.all_jobs",
    ],
)
async def test_every_submission_is_refused(conn: Connection, statement: str) -> None:
    await submit(conn, unique_key="known")
    await drain(conn)
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute(statement)
    assert refused.value.sqlstate == "QP006"
    assert json.loads(refused.value.diag.message_detail or "") == {"queue": "default"}
    assert await one(conn, "select count(*) from queue_pg.all_jobs") == 1
    # A key that names a job of it is answered, because nothing new is stored.
    await submit(conn, unique_key="known")
    await submit(conn, queue="other")
    await submit(conn, org="another")
    await conn.execute("select queue_pg.resume_queue('default')")
    await conn.execute(statement)


async def test_a_copy_is_refused(conn: Connection) -> None:
    await drain(conn)
    with pytest.raises(psycopg.Error) as refused:
        async with conn.cursor() as cursor, cursor.copy("copy queue_pg.jobs (kind, payload) from stdin") as copy:
            await copy.write("k\t{}\n")
    assert refused.value.sqlstate == "QP006"


async def test_what_is_there_is_done(conn: Connection, clock: Clock) -> None:
    parent = await submit(conn)
    await submit(conn, depends_on=json.dumps([str(parent)]))
    await submit(conn, delay="1 hour", priority=-1)
    await drain(conn)
    # An attempt that fails is retried, a child is released, what was put off runs when its time has come.
    assert await finish(conn, "fail") == "scheduled"
    clock.advance(10)
    await conn.execute("select queue_pg.maintain()")
    assert await finish(conn) == "completed"
    assert await finish(conn) == "completed"
    clock.advance(3600)
    await conn.execute("select queue_pg.maintain()")
    assert await finish(conn, "discard") == "failed"
    # A retry by hand is of a job that was there.
    await conn.execute("select queue_pg.retry(id) from queue_pg.all_jobs where state = 'failed'")
    assert await finish(conn) == "completed"
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0


async def test_what_its_jobs_bring_with_them_is_let_in(conn: Connection) -> None:
    batch = await one(conn, "select queue_pg.create_batch('b', on_all => '{\"kind\": \"report\"}')")
    await submit(conn, batch_id=batch)
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    await drain(conn)
    assert await finish(conn, "plan", '{"subtasks": ["a"], "queue": "default"}') == "waiting"
    assert await finish(conn) == "completed"
    await conn.execute("select queue_pg.maintain()")
    assert await one(conn, "select kind from queue_pg.jobs") == "report"
    with pytest.raises(psycopg.Error):
        await submit(conn)


async def test_a_schedule_says_that_it_made_no_job(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.schedule('s', 'k', every => '1 minute')")
    await drain(conn)
    clock.advance(61)
    await conn.execute("select queue_pg.maintain()")
    code, fires = await one(conn, "select error ->> 'code', next_fire_at > queue_pg.now() from queue_pg.schedules")
    assert (code, fires) == ("QP006", True)
    await conn.execute("select queue_pg.resume_queue('default')")
    clock.advance(61)
    await conn.execute("select queue_pg.maintain()")
    assert await one(conn, "select count(*) from queue_pg.jobs") == 1


async def test_one_state_at_a_time(conn: Connection) -> None:
    state = "select paused, draining from queue_pg.queue_stats() where queue = 'default'"
    status = "select status from queue_pg.overview where queue = 'default'"
    await submit(conn)
    await conn.execute("select queue_pg.pause_queue('default')")
    assert await one(conn, state) == (True, False)
    await drain(conn)
    assert (await one(conn, state), await one(conn, status)) == ((False, True), "draining")
    await conn.execute("select queue_pg.pause_queue('default')")
    await submit(conn)
    assert (await one(conn, state), await one(conn, status)) == ((True, False), "paused")
    await drain(conn)
    await conn.execute("select queue_pg.resume_queue('default')")
    await submit(conn)
    assert (await one(conn, state), await one(conn, status)) == ((False, False), "open")


async def test_why_waiting_says_so(conn: Connection) -> None:
    job = await submit(conn)
    await drain(conn)
    reason, detail = await one(conn, "select reason, detail from queue_pg.why_waiting(%s)", job)
    assert reason == "no_worker"
    assert "Queue default is draining" in detail


async def test_an_insert_looks_only_while_a_queue_is_draining(conn: Connection) -> None:
    assert not await draining_bit(conn)
    await drain(conn)
    assert await draining_bit(conn)
    await conn.execute("select queue_pg.resume_queue('default')")
    assert await draining_bit(conn)
    await conn.execute("select queue_pg.maintain_history()")
    assert not await draining_bit(conn)
    await drain(conn, "a")
    await drain(conn, "b")
    await conn.execute("select queue_pg.resume_queue('a')")
    await conn.execute("select queue_pg.maintain_history()")
    assert await draining_bit(conn)
    # Whatever has cleared it: maintenance sets it again.
    await conn.execute("select setval('queue_pg.armed', 0)")
    await conn.execute("select queue_pg.maintain_history()")
    with pytest.raises(psycopg.Error):
        await submit(conn, queue="b")
    await conn.execute("select queue_pg.tidy_armed('{}')")
    assert await draining_bit(conn)


async def test_a_drain_that_is_rolled_back_refuses_nothing(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn) as other:
        await drain(other)
        # Not committed: an INSERT looks, and finds nothing.
        await submit(conn)
        await other.rollback()
    await submit(conn)
    await conn.execute("select queue_pg.maintain_history()")
    assert not await draining_bit(conn)


async def test_maintenance_does_not_clear_what_is_just_being_set(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn) as other:
        await drain(other)
        await conn.execute("select queue_pg.maintain_history()")
        assert await draining_bit(conn)
        await other.commit()
    with pytest.raises(psycopg.Error):
        await submit(conn)


async def test_a_role_that_may_only_insert_is_answered(conn: Connection, dsn: str) -> None:
    role = f"inserter_{(await one(conn, 'select pg_backend_pid()'))}"
    await conn.execute(f"create role {role}")
    try:
        await conn.execute(f"grant usage on schema queue_pg to {role}")
        await conn.execute(f"grant insert on queue_pg.jobs to {role}")
        await drain(conn)
        await conn.execute(f"set role {role}")
        await conn.execute("insert into queue_pg.jobs (kind, queue) values ('k', 'other')")
        with pytest.raises(psycopg.Error) as refused:
            await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
        assert refused.value.sqlstate == "QP006"
    finally:
        await conn.execute("reset role")
        await conn.execute(f"drop owned by {role}")
        await conn.execute(f"drop role {role}")
