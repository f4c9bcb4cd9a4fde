"""Plain INSERT, COPY, submit() and submit_many(): one path into the queue."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors

Connection = psycopg.AsyncConnection


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    row = await (await conn.execute(statement, args)).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


async def test_a_plain_insert_is_a_complete_submission(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, payload) values ('k', '{\"n\": 1}'), ('k', '{\"n\": 2}')")
    rows = await (
        await conn.execute(
            "select state, queue, priority, max_attempts, payload->>'n' from queue_pg.all_jobs order by id"
        )
    ).fetchall()
    assert rows == [("queued", "default", 0, 4, "1"), ("queued", "default", 0, 4, "2")]


async def test_insert_with_a_future_run_at_is_scheduled_and_promoted_when_due(conn: Connection, clock: Any) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, run_at) values ('k', queue_pg.now() + '1 hour')")
    assert await one(conn, "select state::text from queue_pg.jobs") == "scheduled"
    assert await one(conn, "select queue_pg.promote()") == 0
    clock.advance(3601)
    assert await one(conn, "select promoted from queue_pg.maintain()") == 1
    assert await one(conn, "select state::text from queue_pg.jobs") == "queued"


async def test_rolled_back_means_never_existed(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn) as other:
        await other.execute("insert into queue_pg.jobs (kind) values ('k')")
        await other.execute("select queue_pg.submit('k', unique_key => 'key')")
        assert await one(conn, "select count(*) from queue_pg.claim('w', '{default}')") == 0
        await other.rollback()
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0
    assert await one(conn, "select count(*) from queue_pg.unique_keys") == 0


async def test_copy_is_a_submission_and_wakes_once_at_commit(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_wake")
        await conn.execute("select queue_pg.arm('{default}')")
        async with conn.cursor() as cursor, cursor.copy("copy queue_pg.jobs (kind, payload) from stdin") as copy:
            for n in range(500):
                await copy.write_row(("k", json.dumps({"n": n})))
        # Whatever was sent for the COPY is delivered before this.
        await conn.execute("notify queue_pg_wake, 'end'")
        heard = [n.payload async for n in listener.notifies(timeout=20, stop_after=2)]
    assert heard == ["default", "end"]
    assert await one(conn, "select count(*) from queue_pg.claim('w', '{default}', max_jobs => 1000)") == 500


async def test_no_hint_is_sent_when_notify_is_off(conn: Connection, dsn: str) -> None:
    await conn.execute("select queue_pg.configure(notify => false)")
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_wake")
        await conn.execute("select queue_pg.arm('{default}')")
        await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
        await conn.execute("notify queue_pg_wake, 'end'")
        assert [n.payload async for n in listener.notifies(timeout=20, stop_after=1)] == ["end"]


async def test_submit_many_keeps_the_order_of_its_array(conn: Connection) -> None:
    jobs = json.dumps([{"kind": "k", "payload": n} for n in range(2000)])
    positions = await (await conn.execute("select position, created from queue_pg.submit_many(%s)", (jobs,))).fetchall()
    assert positions == [(n + 1, True) for n in range(2000)]
    claimed = await (
        await conn.execute("select payload from queue_pg.claim('w', '{default}', max_jobs => 2000)")
    ).fetchall()
    assert [int(row[0]) for row in claimed] == list(range(2000))


async def test_submit_many_is_all_or_nothing(conn: Connection) -> None:
    with pytest.raises(errors.CheckViolation, match="jobs_kind_length"):
        await conn.execute("select queue_pg.submit_many(%s)", (json.dumps([{"kind": "k"}, {"kind": "x" * 201}]),))
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0


@pytest.mark.parametrize("bad", ['{"kind": "k"}', '["k"]', '[{"payload": 1}]', '[{"kind": ""}]', "null"])
async def test_submit_many_refuses_what_is_no_array_of_jobs(conn: Connection, bad: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute("select queue_pg.submit_many(%s)", (bad,))
    assert refused.value.sqlstate == "QP005"


async def test_the_same_key_and_body_give_the_same_job_live_and_finished(conn: Connection) -> None:
    submit = "select queue_pg.submit('k', '{\"a\": 1}', unique_key => 'order-7')"
    first = await one(conn, submit)
    assert await one(conn, submit) == first
    await conn.execute("select queue_pg.claim('w', '{default}')")
    await conn.execute("select queue_pg.complete(%s, 1, '\"done\"')", (first,))
    assert await one(conn, submit) == first
    assert await one(conn, "select count(*) from queue_pg.all_jobs") == 1


async def test_the_same_key_with_another_body_is_refused(conn: Connection) -> None:
    await conn.execute("select queue_pg.submit('k', '{\"a\": 1}', unique_key => 'x')")
    for other in ("'k', '{\"a\": 2}'", "'other', '{\"a\": 1}'", "'k', '{\"a\": 1}', 'other'"):
        with pytest.raises(psycopg.Error) as refused:
            await conn.execute(f"select queue_pg.submit({other}, unique_key => 'x')")
        assert refused.value.sqlstate == "QP004"


async def test_keys_of_two_orgs_are_two_keys(conn: Connection) -> None:
    a = await one(conn, "select queue_pg.submit('k', unique_key => 'x', org => 'a')")
    assert await one(conn, "select queue_pg.submit('k', unique_key => 'x', org => 'b')") != a


async def test_a_plain_insert_with_a_taken_key_is_a_unique_violation(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, unique_key) values ('k', 'x')")
    for kind in ("k", "other"):
        with pytest.raises(errors.UniqueViolation):
            await conn.execute("insert into queue_pg.jobs (kind, unique_key) values (%s, 'x')", (kind,))


async def test_a_key_is_free_again_after_the_retention_of_its_job(conn: Connection, clock: Any) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    first = await one(conn, "select queue_pg.submit('k', unique_key => 'x')")
    await conn.execute("select queue_pg.cancel(%s)", (first,))
    clock.advance(3601)
    second = await one(conn, "select queue_pg.submit('other', unique_key => 'x')")
    assert second != first


async def test_racing_submitters_of_one_key_make_one_job(conn: Connection, dsn: str) -> None:
    async def submit() -> Any:
        async with await Connection.connect(dsn, autocommit=True) as own:
            return await one(own, "select queue_pg.submit('k', '[1]', unique_key => 'x')")

    ids = await asyncio.gather(*(submit() for _ in range(8)))
    assert len(set(ids)) == 1
    assert await one(conn, "select count(*) from queue_pg.jobs") == 1


async def test_racing_batches_with_the_same_keys_in_opposite_order_do_not_deadlock(conn: Connection, dsn: str) -> None:
    keys = [f"key-{n}" for n in range(50)]

    async def submit(order: list[str]) -> list[Any]:
        async with await Connection.connect(dsn, autocommit=True) as own:
            jobs = json.dumps([{"kind": "k", "unique_key": key} for key in order])
            rows = await (
                await own.execute("select id from queue_pg.submit_many(%s) order by position", (jobs,))
            ).fetchall()
            return [row[0] for row in rows]

    forth, back = await asyncio.gather(submit(keys), submit(keys[::-1]))
    assert forth == back[::-1]
    assert await one(conn, "select count(*) from queue_pg.jobs") == 50


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ("run_at => 'infinity'", "jobs_run_at_range"),
        ("run_at => '-infinity'", "jobs_run_at_range"),
        ("run_at => '0044-03-15 BC'", "jobs_run_at_range"),
        ("run_at => '12000-01-01'", "jobs_run_at_range"),
        ("expires_at => 'infinity'", "jobs_expires_at_range"),
        ("queue => ''", "jobs_queue_length"),
        ("max_attempts => 0", "jobs_max_attempts_range"),
        ("timeout => '0'", "jobs_timeout_range"),
        ("tags => array[null]", "jobs_tags_size"),
        ("metadata => '[]'", "jobs_metadata_object"),
        ("payload => '[1e131071]'", "jobs_payload_numbers"),
        ('payload => \'{"a": [{"b": 1e-16383}]}\'', "jobs_payload_numbers"),
        ("unique_key => repeat('k', 256)", None),
    ],
)
async def test_what_cannot_be_read_back_is_refused_by_name(
    conn: Connection, columns: str, constraint: str | None
) -> None:
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute(f"select queue_pg.submit('k', {columns})")
    assert refused.value.diag.constraint_name == constraint
    assert refused.value.sqlstate == ("23514" if constraint else "QP005")


async def test_what_only_python_cannot_hold_is_stored_and_claimed_as_text(conn: Connection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, payload) values ('k', '{\"n\": 1e5000}')")
    await conn.execute(
        "insert into queue_pg.jobs (kind, payload) values ('k', (repeat('[', 3000) || repeat(']', 3000))::jsonb)"
    )
    rows = await (await conn.execute("select payload from queue_pg.claim('w', '{default}', max_jobs => 9)")).fetchall()
    assert sorted(len(row[0]) for row in rows) == [5008, 6000]


async def test_ids_sort_by_time_of_submission(conn: Connection) -> None:
    for n in range(200):
        await conn.execute("insert into queue_pg.jobs (kind, priority) values ('k', %s)", (n,))
    rows = await (await conn.execute("select priority, id from queue_pg.jobs order by id")).fetchall()
    assert [row[0] for row in rows] == list(range(200))
    assert {row[1].version for row in rows} == {7}


async def test_uuid7_of_a_moment_carries_it(conn: Connection) -> None:
    value = await one(conn, "select queue_pg.uuid7_at('2026-11-21 12:00:00.123456+00')")
    assert value.version == 7
    assert value.int >> 80 == 1795262400123
    later = await one(conn, "select queue_pg.uuid7_at('2026-11-21 12:00:00.123457+00')")
    assert value < later


async def test_delay_and_deadline(conn: Connection, clock: Any) -> None:
    job = await one(conn, "select queue_pg.submit('k', delay => '10 s', expires_at => queue_pg.now() + '5 s')")
    assert await one(conn, "select run_at - created_at from queue_pg.jobs") == timedelta(seconds=10)
    clock.advance(6)
    assert await one(conn, "select expired from queue_pg.maintain()") == 1
    assert await one(conn, "select state::text, error->>'code' from queue_pg.job(%s)", job) == ("failed", "expired")


async def test_an_expired_job_is_never_claimed(conn: Connection, clock: Any) -> None:
    await conn.execute("select queue_pg.submit('k', expires_at => queue_pg.now() + '5 s')")
    clock.advance(6)
    assert await one(conn, "select count(*) from queue_pg.claim('w', '{default}')") == 0


async def test_an_open_resubmission_does_not_hold_up_the_finish(conn: Connection, dsn: str) -> None:
    job = await one(conn, "select queue_pg.submit('k', unique_key => 'x')")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    async with await Connection.connect(dsn) as caller:
        assert await one(caller, "select queue_pg.submit('k', unique_key => 'x')") == job
        await conn.execute("set lock_timeout = '5s'")
        assert await one(conn, "select queue_pg.complete(%s, 1)", job) == "completed"


async def test_thousands_of_keys_in_one_call(conn: Connection) -> None:
    jobs = json.dumps([{"kind": "k", "unique_key": f"key-{n % 4000}", "payload": n % 4000} for n in range(5000)])
    submit = "select count(distinct id), count(*) filter (where created) from queue_pg.submit_many(%s)"
    assert await one(conn, submit, jobs) == (4000, 4000)
    assert await one(conn, submit, jobs) == (4000, 0)


async def test_of_several_who_find_a_forgotten_key_one_takes_it(conn: Connection, dsn: str, clock: Any) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    first = await one(conn, "select queue_pg.submit('k', unique_key => 'x')")
    await conn.execute("select queue_pg.cancel(%s)", (first,))
    clock.advance(3601)

    async def submit() -> Any:
        async with await Connection.connect(dsn, autocommit=True) as own:
            return await one(own, "select queue_pg.submit('k', unique_key => 'x')")

    assert len({await task for task in [asyncio.create_task(submit()) for _ in range(8)]} - {first}) == 1
