"""Batches: exact counts whoever ends the jobs and how, one end a run, and nobody who waits for anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def rows(conn: Connection, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement, args)).fetchall()


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    (row,) = await rows(conn, statement, *args)
    return row[0] if len(row) == 1 else row


async def make(conn: Connection, jobs: int = 0, *, close: bool = False, **callbacks: str) -> UUID:
    """A batch with jobs of kind k and callbacks of the kinds given, such as on_all="all"."""
    batch: UUID = await one(
        conn,
        "select queue_pg.create_batch('import', %s::jsonb, %s::jsonb, %s::jsonb)",
        *(f'{{"kind": "{callbacks[n]}"}}' if n in callbacks else None for n in ("on_complete", "on_failed", "on_all")),
    )
    await conn.execute(
        "insert into queue_pg.jobs (kind, batch_id) select 'k', %s from generate_series(1, %s)", (batch, jobs)
    )
    if close:
        await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    return batch


async def counts(conn: Connection, batch: UUID) -> tuple[Any, ...]:
    """State, total, completed, failed, cancelled, unfinished."""
    found: tuple[Any, ...] = await one(
        conn, "select state, total, completed, failed, cancelled, unfinished from queue_pg.batch(%s)", batch
    )
    return found


async def finish(conn: Connection, outcome: str, jobs: int = 1, *, kind: str = "k") -> list[UUID]:
    """Claim some jobs and end them in one statement."""
    claimed = await rows(
        conn, "select id, lease_token from queue_pg.claim('w', '{default}', array[%s], %s)", kind, jobs
    )
    ids, tokens = [row[0] for row in claimed], [row[1] for row in claimed]
    await conn.execute("select queue_pg.finish(%s, %s, %s)", (ids, tokens, [outcome] * len(ids)))
    return ids


async def submitted_callbacks(conn: Connection) -> list[str]:
    return [row[0] for row in await rows(conn, "select kind from queue_pg.all_jobs where kind <> 'k' order by id")]


SETTLE = "select queue_pg.settle_batches()"


# --- the straight way -------------------------------------------------------------------------------------------------


async def test_counts_follow_the_jobs_and_the_end_calls_back(conn: Connection) -> None:
    batch = await make(conn, 3, on_complete="complete", on_failed="failed", on_all="all")
    assert await counts(conn, batch) == ("open", 3, 0, 0, 0, 3)
    await finish(conn, "complete", 2)
    assert await counts(conn, batch) == ("open", 3, 2, 0, 0, 1)
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    assert await one(conn, SETTLE) == 0
    assert await one(conn, "select percent from queue_pg.batch(%s)", batch) == 66.7
    await finish(conn, "complete")
    assert await counts(conn, batch) == ("closed", 3, 3, 0, 0, 0)
    assert await one(conn, SETTLE) == 1
    assert await counts(conn, batch) == ("completed", 3, 3, 0, 0, 0)
    assert await submitted_callbacks(conn) == ["complete", "all"]
    payload, org = await one(conn, "select payload, org from queue_pg.jobs where kind = 'all'")
    assert payload == {
        "batch": {
            "id": str(batch), "name": "import", "state": "completed", "run": 1, "total": 3, "completed": 3, "failed": 0,
            "cancelled": 0, "metadata": {},
        }
    }  # fmt: skip
    assert org == "default"
    assert await one(
        conn, "select array_agg(j.id order by j.id) = b.callback_ids from queue_pg.jobs j, queue_pg.batch(%s) b"
        " group by b.callback_ids", batch
    )  # fmt: skip
    assert await one(conn, SETTLE) == 0
    assert await one(conn, "select count(*) from queue_pg.batch_counters") == 0


@pytest.mark.parametrize(
    ("outcome", "state", "counted", "called"),
    [
        ("discard", "failed", (1, 1, 0), ["failed", "all"]),
        ("cancel", "failed", (1, 0, 1), ["failed", "all"]),
        ("complete", "completed", (2, 0, 0), ["complete", "all"]),
    ],
)
async def test_one_job_decides_how_a_batch_ends(
    conn: Connection, outcome: str, state: str, counted: tuple[int, int, int], called: list[str]
) -> None:
    batch = await make(conn, 2, close=True, on_complete="complete", on_failed="failed", on_all="all")
    await finish(conn, outcome)
    await finish(conn, "complete")
    await conn.execute(SETTLE)
    assert await counts(conn, batch) == (state, 2, *counted, 0)
    assert await submitted_callbacks(conn) == called


async def test_every_way_a_job_can_end_is_counted_once(conn: Connection, clock: Clock) -> None:
    batch = await make(conn)
    await conn.execute("select queue_pg.submit('k', batch_id => %s, max_attempts => 1)", (batch,))
    await finish(conn, "fail")  # its last attempt
    await conn.execute("select queue_pg.submit('k', batch_id => %s, expires_at => queue_pg.now() + '1 s')", (batch,))
    clock.advance(2)
    await conn.execute("select queue_pg.expire()")
    await conn.execute("select queue_pg.submit('k', batch_id => %s)", (batch,))
    for _ in range(3):  # the third lost lease ends it
        assert await one(conn, "select count(*) from queue_pg.claim('w', '{default}')") == 1
        clock.advance(31)
        await conn.execute("select queue_pg.reap()")
    job = await one(conn, "select queue_pg.submit('k', batch_id => %s)", batch)
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    await conn.execute("select queue_pg.cancel(%s)", (job,))  # twice is once
    await conn.execute("select queue_pg.submit('k', batch_id => %s)", (batch,))
    await finish(conn, "complete")
    assert await counts(conn, batch) == ("open", 5, 1, 3, 1, 0)
    # What goes back is no end.
    await conn.execute("select queue_pg.submit('k', batch_id => %s)", (batch,))
    for outcome in ("snooze", "release", "fail"):
        await finish(conn, outcome)
        clock.advance(5)
        await conn.execute("select queue_pg.promote()")
    assert await counts(conn, batch) == ("open", 6, 1, 3, 1, 1)


async def test_a_stale_worker_counts_nothing(conn: Connection, clock: Clock) -> None:
    batch = await make(conn, 1, close=True)
    job, token = await one(conn, "select id, lease_token from queue_pg.claim('old', '{default}')")
    clock.advance(31)
    await conn.execute("select queue_pg.reap()")
    await conn.execute("select queue_pg.finish(array[%s::uuid], array[%s::bigint], '{complete}')", (job, token))
    assert await counts(conn, batch) == ("closed", 1, 0, 0, 0, 1)
    await finish(conn, "complete")
    assert await counts(conn, batch) == ("closed", 1, 1, 0, 0, 0)


async def test_an_empty_batch_completes_once_it_is_closed(conn: Connection) -> None:
    batch = await make(conn, on_complete="complete", on_failed="failed", on_all="all")
    assert await one(conn, SETTLE) == 0
    assert await one(conn, "select state, total, percent from queue_pg.close_batch(%s)", batch) == ("closed", 0, 100)
    assert await one(conn, SETTLE) == 1
    assert await counts(conn, batch) == ("completed", 0, 0, 0, 0, 0)
    assert await submitted_callbacks(conn) == ["complete", "all"]
    # Closing again changes nothing.
    assert await one(conn, "select state from queue_pg.close_batch(%s)", batch) == "completed"
    assert await one(conn, SETTLE) == 0


async def test_maintenance_settles_and_is_woken_by_the_last_job(conn: Connection, dsn: str) -> None:
    batch = await make(conn, 2, close=True, on_all="all")
    await conn.execute("select queue_pg.maintain()")
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_due")
        await conn.execute("select queue_pg.arm_due()")
        await finish(conn, "complete")
        await listener.execute("select 1")
        assert [n async for n in listener.notifies(timeout=0)] == []
        await finish(conn, "complete")
        await listener.execute("select 1")
        assert [n.channel async for n in listener.notifies(timeout=0)] == ["queue_pg_due"]
    await conn.execute("select * from queue_pg.maintain()")
    assert await counts(conn, batch) == ("completed", 2, 2, 0, 0, 0)
    assert await submitted_callbacks(conn) == ["all"]


# --- adding jobs ------------------------------------------------------------------------------------------------------


ADD = {
    "insert": "insert into queue_pg.jobs (kind, batch_id) values ('k', %s)",
    "submit": "select queue_pg.submit('k', batch_id => %s)",
    "submit_many": "select queue_pg.submit_many(jsonb_build_array("
    "jsonb_build_object('kind', 'k', 'batch_id', %s::text)))",
}


@pytest.mark.parametrize("way", ADD)
async def test_a_closed_batch_takes_no_more_jobs(conn: Connection, way: str) -> None:
    batch = await make(conn)
    await conn.execute(ADD[way], (batch,))
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute(ADD[way], (batch,))
    assert caught.value.sqlstate == "QP002"
    assert caught.value.diag.message_primary == f"cannot add a job to batch {batch}: it is closed"
    await finish(conn, "complete")
    await conn.execute(SETTLE)
    with pytest.raises(psycopg.Error, match="it is completed"):
        await conn.execute(ADD[way], (batch,))
    assert await counts(conn, batch) == ("completed", 1, 1, 0, 0, 0)


@pytest.mark.parametrize("way", ADD)
async def test_an_unknown_batch_is_refused(conn: Connection, way: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute(ADD[way], (uuid4(),))
    assert caught.value.sqlstate == "QP005"
    assert '"field": "batch_id"' in (caught.value.diag.message_detail or "")
    # As is one of another tenant.
    batch = await one(conn, "select queue_pg.create_batch(org => 'other')")
    with pytest.raises(psycopg.Error, match="there is no batch"):
        await conn.execute(ADD[way], (batch,))
    await conn.execute("select queue_pg.submit('k', batch_id => %s, org => 'other')", (batch,))


async def test_copy_adds_to_a_batch_too(conn: Connection) -> None:
    batch = await make(conn)
    async with conn.cursor() as cursor, cursor.copy("copy queue_pg.jobs (kind, batch_id) from stdin") as copy:
        await copy.write(f"k\t{batch}\n" * 100)
    assert await counts(conn, batch) == ("open", 100, 0, 0, 0, 100)


async def test_a_close_in_the_same_transaction_is_seen_by_what_follows(conn: Connection) -> None:
    batch = await make(conn)
    async with conn.transaction():
        await conn.execute(ADD["insert"], (batch,))
        with pytest.raises(psycopg.Error, match="there is no batch"):
            async with conn.transaction():
                await conn.execute(ADD["insert"], (uuid4(),))
        await conn.execute(ADD["insert"], (batch,))
        await conn.execute("select queue_pg.close_batch(%s)", (batch,))
        with pytest.raises(psycopg.Error, match="it is closed"):
            async with conn.transaction():
                await conn.execute(ADD["insert"], (batch,))
    assert await counts(conn, batch) == ("closed", 2, 0, 0, 0, 2)


async def test_a_rolled_back_join_is_asked_again(conn: Connection, dsn: str) -> None:
    """The lock of a savepoint that is undone is gone, and with it the leave not to ask."""
    batch = await make(conn)
    async with await Connection.connect(dsn, autocommit=True) as other, conn.transaction():
        async with conn.transaction():
            await conn.execute(ADD["insert"], (batch,))
            raise psycopg.Rollback
        await other.execute("select queue_pg.close_batch(%s)", (batch,))
        with pytest.raises(psycopg.Error, match="it is closed"):
            async with conn.transaction():
                await conn.execute(ADD["insert"], (batch,))


async def blocked(conn: Connection, pid: int) -> bool:
    return bool(await one(conn, "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", pid))


async def until_blocked(conn: Connection, task: asyncio.Task[Any], pid: int) -> None:
    while not await blocked(conn, pid):
        assert not task.done()
        await asyncio.wait({task}, timeout=0.01)


async def test_a_close_waits_for_jobs_being_added_and_counts_them(conn: Connection, dsn: str) -> None:
    batch = await make(conn, 1, on_all="all")
    async with await Connection.connect(dsn) as adder, await Connection.connect(dsn, autocommit=True) as closer:
        await adder.execute(ADD["insert"], (batch,))
        closing = asyncio.create_task(rows(closer, "select state, total from queue_pg.close_batch(%s)", batch))
        await until_blocked(conn, closing, closer.info.backend_pid)
        await finish(conn, "complete")
        assert await one(conn, SETTLE) == 0
        await adder.commit()
        assert await closing == [("closed", 2)]
    assert await one(conn, SETTLE) == 0
    await finish(conn, "complete")
    assert await one(conn, SETTLE) == 1
    assert await submitted_callbacks(conn) == ["all"]


async def test_a_job_added_while_it_is_closed_comes_too_late(conn: Connection, dsn: str) -> None:
    batch = await make(conn)
    async with await Connection.connect(dsn) as closer, await Connection.connect(dsn, autocommit=True) as adder:
        await closer.execute("select queue_pg.close_batch(%s)", (batch,))
        adding = asyncio.create_task(adder.execute(ADD["insert"], (batch,)))
        await until_blocked(conn, adding, adder.info.backend_pid)
        await closer.commit()
        with pytest.raises(psycopg.Error, match="it is closed"):
            await adding
    assert await counts(conn, batch) == ("closed", 0, 0, 0, 0, 0)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_an_old_snapshot_cannot_add_to_a_closed_batch(conn: Connection, dsn: str, isolation: str) -> None:
    batch = await make(conn)
    async with await Connection.connect(dsn, autocommit=True) as old:
        await old.execute(f"begin isolation level {isolation}")
        await old.execute("select 1 from queue_pg.settings")
        await conn.execute("select queue_pg.close_batch(%s)", (batch,))
        with pytest.raises(psycopg.errors.SerializationFailure):
            await old.execute(ADD["insert"], (batch,))
        await old.execute("rollback")
    assert await counts(conn, batch) == ("closed", 0, 0, 0, 0, 0)


async def test_those_who_add_and_finish_do_not_wait_for_each_other(conn: Connection, dsn: str) -> None:
    batch = await make(conn, 10)
    async with await Connection.connect(dsn) as first, await Connection.connect(dsn) as second:
        for own in (first, second):
            await own.execute("set local statement_timeout = '10 s'")
            await own.execute(ADD["insert"], (batch,))
        for own in (first, second):  # both transactions stay open
            claimed = await rows(own, "select id, lease_token from queue_pg.claim('w', '{default}', max_jobs => 4)")
            await own.execute(
                "select queue_pg.finish(%s, %s, array_fill('complete'::text, array[4]))",
                ([row[0] for row in claimed], [row[1] for row in claimed]),
            )
        await first.commit()
        await second.commit()
    assert await counts(conn, batch) == ("open", 12, 8, 0, 0, 4)


# --- the end, exactly once --------------------------------------------------------------------------------------------


@pytest.fixture
async def maintainers(dsn: str) -> AsyncIterator[list[Connection]]:
    made = [await Connection.connect(dsn) for _ in range(4)]
    yield made
    for each in made:
        await each.close()


async def test_several_maintainers_at_once_end_a_batch_once(conn: Connection, maintainers: list[Connection]) -> None:
    batches = [await make(conn, 2, close=True, on_all="all") for _ in range(8)]
    await finish(conn, "complete", 16)

    async def settle(own: Connection) -> int:
        ended = 0
        for _ in range(5):
            ended += await one(own, SETTLE)
            await own.commit()
        return ended

    assert sum(await asyncio.gather(*(settle(own) for own in maintainers))) == 8
    assert await submitted_callbacks(conn) == ["all"] * 8
    for batch in batches:
        assert await counts(conn, batch) == ("completed", 2, 2, 0, 0, 0)


async def test_a_maintainer_that_is_killed_has_done_nothing(conn: Connection, maintainers: list[Connection]) -> None:
    batch = await make(conn, 1, close=True, on_all="all")
    await finish(conn, "complete")
    first, second, *_ = maintainers
    assert await one(first, SETTLE) == 1
    # Another one passes over what the first is at, without waiting.
    assert await one(second, SETTLE) == 0
    await second.commit()
    await conn.execute("select pg_terminate_backend(%s, 10000)", (first.info.backend_pid,))
    assert await counts(conn, batch) == ("closed", 1, 1, 0, 0, 0)
    assert await submitted_callbacks(conn) == []
    assert await one(second, SETTLE) == 1
    await second.commit()
    assert await submitted_callbacks(conn) == ["all"]


async def test_counts_are_exact_under_concurrent_finishers_and_maintainers(conn: Connection, dsn: str) -> None:
    batch = await make(conn, 600, close=True, on_failed="failed", on_complete="complete")
    busy = asyncio.Event()

    async def work(number: int) -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            while await finish(own, ("complete", "discard", "cancel")[number], 7):
                pass

    async def maintain() -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            while not busy.is_set():
                await own.execute(SETTLE)
                _, total, *ended, unfinished = await counts(own, batch)
                assert total == 600
                assert sum(ended) + unfinished == 600

    # One stays until the others have ended: what is retried after the end of all would be another run, with callbacks.
    last, token = await one(conn, "select id, lease_token from queue_pg.claim('last', '{default}')")
    maintaining = [asyncio.create_task(maintain()) for _ in range(2)]
    await asyncio.gather(work(0), work(1), work(2), _retrying(dsn))
    await conn.execute("select queue_pg.complete(%s, %s)", (last, token))
    busy.set()
    await asyncio.gather(*maintaining)
    await conn.execute(SETTLE)
    state, total, *ended, unfinished = await counts(conn, batch)
    stored = dict(await rows(conn, "select state::text, count(*) from queue_pg.all_jobs where kind = 'k' group by 1"))
    assert (state, total, unfinished) == ("failed", 600, 0)
    assert ended == [stored["completed"], stored["failed"], stored["cancelled"]]
    assert await submitted_callbacks(conn) == ["failed"]


async def _retrying(dsn: str) -> None:
    """Discards jobs and puts the first of each bite back, while there are others."""
    async with await Connection.connect(dsn, autocommit=True) as own:
        while len(ids := await finish(own, "discard", 5)) == 5:
            await own.execute("select queue_pg.retry(%s)", (ids[0],))


async def test_a_callback_that_cannot_be_submitted_does_not_keep_the_batch_from_its_end(conn: Connection) -> None:
    batch = await make(conn, close=True)
    await conn.execute('update queue_pg.batches set on_all = \'{"kind": 7, "priority": 99999}\'')
    assert await one(conn, SETTLE) == 1
    state, why = await one(conn, "select state, callback_error from queue_pg.batch(%s)", batch)
    assert state == "completed"
    assert "smallint" in why


async def test_jobs_deleted_by_hand_are_not_waited_for(conn: Connection) -> None:
    batch = await make(conn, 5, close=True, on_all="all")
    await finish(conn, "complete", 2)
    await conn.execute("delete from queue_pg.jobs where batch_id = %s", (batch,))
    assert await one(conn, SETTLE) == 0
    await conn.execute("select queue_pg.maintain_history()")
    assert await one(conn, SETTLE) == 1
    assert await counts(conn, batch) == ("completed", 2, 2, 0, 0, 0)


# --- the first failure ------------------------------------------------------------------------------------------------


async def make_failing(conn: Connection, jobs: int, **fields: Any) -> UUID:
    """An open batch that calls back at its first failure, and at a failed end."""
    batch: UUID = await one(
        conn,
        'select queue_pg.create_batch(on_first_failed => %s::jsonb, on_failed => \'{"kind": "end"}\')',
        fields.get("on_first_failed", '{"kind": "first"}'),
    )
    await conn.execute(
        "insert into queue_pg.jobs (kind, batch_id) select 'k', %s from generate_series(1, %s)", (batch, jobs)
    )
    return batch


async def test_the_first_failure_calls_back_at_once_and_once(conn: Connection) -> None:
    batch = await make_failing(conn, 4)
    await finish(conn, "complete")
    await finish(conn, "cancel")
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == []
    await finish(conn, "discard")
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == ["first"]
    stored, called = await one(conn, "select first_failed_id, callback_ids from queue_pg.batch(%s)", batch)
    payload = await one(conn, "select payload -> 'batch' from queue_pg.jobs where id = %s", stored)
    assert (payload["state"], payload["failed"], payload["completed"], called) == ("open", 1, 1, [])
    await finish(conn, "discard")
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    assert await one(conn, SETTLE) == 1
    assert await submitted_callbacks(conn) == ["first", "end"]
    assert await one(conn, "select first_failed_id from queue_pg.batch(%s)", batch) == stored


async def test_attempts_that_are_retried_are_no_failure(conn: Connection) -> None:
    await make_failing(conn, 1)
    await finish(conn, "fail")
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == []


async def test_a_failure_that_is_the_end_calls_both(conn: Connection) -> None:
    batch = await make_failing(conn, 1)
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    await finish(conn, "discard")
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == ["first", "end"]


async def test_each_run_has_a_first_failure_of_its_own(conn: Connection) -> None:
    batch = await make_failing(conn, 3)
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    ids = await finish(conn, "discard", 3)
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == ["first", "end"]
    # One of the three is put back: that the others failed in the run before is no news.
    await conn.execute("select queue_pg.retry(%s)", (ids[0],))
    await conn.execute(SETTLE)
    assert await one(conn, "select (first_failed_at, first_failed_id) is null from queue_pg.batch(%s)", batch)
    assert await submitted_callbacks(conn) == ["first", "end"]
    await finish(conn, "complete")
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == ["first", "end", "end"]
    await conn.execute("select queue_pg.retry(%s)", (ids[1],))
    await finish(conn, "discard")
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == ["first", "end", "end", "first", "end"]


async def test_a_retry_before_the_look_hides_no_failure(conn: Connection) -> None:
    await make_failing(conn, 2)
    ids = await finish(conn, "discard")
    await conn.execute("select queue_pg.retry(%s)", (ids[0],))
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == ["first"]


async def test_the_first_failure_wakes_maintenance(conn: Connection, dsn: str) -> None:
    await make_failing(conn, 3)
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_due")

        async def woken(outcome: str) -> bool:
            # Armed, as a maintainer that waits has it.
            await conn.execute("select queue_pg.maintain(arm => true)")
            await finish(conn, outcome)
            await listener.execute("select 1")
            return [note async for note in listener.notifies(timeout=0)] != []

        assert await woken("complete") is False
        assert await woken("discard") is True
        await conn.execute(SETTLE)
        # The second is no news.
        assert await woken("discard") is False


async def test_many_who_settle_at_once_call_back_once(conn: Connection, dsn: str) -> None:
    batches = [await make_failing(conn, 4) for _ in range(6)]

    async def work() -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            while await finish(own, "discard", 3):
                await own.execute(SETTLE)

    await asyncio.gather(*(work() for _ in range(4)))
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == ["first"] * len(batches)
    assert await one(conn, "select count(distinct first_failed_id) from queue_pg.batches") == len(batches)


async def test_a_first_callback_that_cannot_be_submitted_stays_to_be_seen(conn: Connection) -> None:
    batch = await make_failing(conn, 1)
    await conn.execute('update queue_pg.batches set on_first_failed = \'{"kind": 7, "priority": 99999}\'')
    await finish(conn, "discard")
    await conn.execute(SETTLE)
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    await conn.execute(SETTLE)
    why, seen = await one(conn, "select callback_error, first_failed_at is not null from queue_pg.batch(%s)", batch)
    assert "smallint" in why
    assert seen
    # What stands beside it is submitted.
    assert await submitted_callbacks(conn) == ["end"]


# --- webhooks ---------------------------------------------------------------------------------------------------------


async def test_a_url_is_a_webhook(conn: Connection) -> None:
    batch = await one(
        conn,
        "select queue_pg.create_batch('n', on_all => '\"https://x.example/a?b=1\"', on_complete => "
        """'{"kind": "webhook", "payload": {"url": "HTTP://y", "secret_name": "s", "headers": {"a": "b"}, """
        """"body": {"c": 1}}}',"""
        "metadata => '{\"m\": 1}')",
    )
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    await conn.execute(SETTLE)
    assert await submitted_callbacks(conn) == ["webhook", "webhook"]
    own, plain = [row[0] for row in await rows(conn, "select payload from queue_pg.jobs order by id")]
    assert plain.keys() == {"url", "body"}
    assert plain["url"] == "https://x.example/a?b=1"
    assert (plain["body"]["type"], plain["body"]["data"]["id"]) == ("batch.completed", str(batch))
    assert plain["body"]["data"]["metadata"] == {"m": 1}
    assert (own["secret_name"], own["headers"], own["body"]["c"]) == ("s", {"a": "b"}, 1)
    assert own["body"]["data"] == plain["body"]["data"]
    assert await one(
        conn, "select now() - (payload #>> '{body,timestamp}')::timestamptz < '1 minute' from queue_pg.jobs limit 1"
    )


@pytest.mark.parametrize(
    ("callback", "field"),
    [
        ('"report"', ".payload.url"),
        ('"ftp://x/"', ".payload.url"),
        ('"http://"', ".payload.url"),
        ('"http://u:p@x/"', ".payload.url"),
        ('"http://x/ y"', ".payload.url"),
        ('{"kind": "webhook"}', ".payload.url"),
        ('{"kind": "webhook", "payload": null}', ".payload.url"),
        ('{"kind": "webhook", "payload": {"url": 5}}', ".payload.url"),
        ('{"kind": "webhook", "payload": {"url": "http://x/", "secret": "whsec_x"}}', ".payload.secret"),
        ('{"kind": "webhook", "payload": {"url": "http://x/", "body": [1]}}', ".payload.body"),
        ('{"kind": "webhook", "payload": {"url": "http://x/", "headers": [1]}}', ".payload.headers"),
        ('{"kind": "webhook", "payload": {"url": "http://x/", "headers": {"a": 1}}}', ".payload.headers"),
        ('{"kind": "webhook", "payload": {"url": "http://x/", "secret_name": 1}}', ".payload.secret_name"),
        ('{"kind": "webhook", "payload": {"url": "http://x/", "secret_name": ""}}', ".payload.secret_name"),
        ('{"kind": "webhook", "payload": [1]}', ".payload"),
    ],
)
@pytest.mark.parametrize("when", ["on_complete", "on_failed", "on_all", "on_first_failed"])
async def test_a_webhook_that_could_not_be_delivered_is_refused_at_once(
    conn: Connection, when: str, callback: str, field: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute(f"select queue_pg.create_batch({when} => %s::jsonb)", (callback,))
    assert caught.value.sqlstate == "QP005"
    assert f'"field": "{when}{field}"' in (caught.value.diag.message_detail or "")
    assert await rows(conn, "select from queue_pg.batches") == []


# --- as a whole -------------------------------------------------------------------------------------------------------


async def test_cancel_ends_every_job_and_running_ones_lose_their_lease(conn: Connection, dsn: str) -> None:
    batch = await make(conn, 5, on_failed="failed", on_all="all")
    await finish(conn, "complete")
    job, token = await one(conn, "select id, lease_token from queue_pg.claim('w-1', '{default}')")
    await conn.execute("select queue_pg.submit('k', batch_id => %s, delay => '1 hour')", (batch,))
    other = await make(conn, 1)
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_cancel")
        assert await one(conn, "select cancelled, last_id from queue_pg.cancel_batch(%s, 'enough')", batch) == (5, None)
        await listener.execute("select 1")
        assert [n.payload async for n in listener.notifies(timeout=0)] == ["w-1"]
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    assert caught.value.sqlstate == "QP003"
    assert await counts(conn, batch) == ("closed", 6, 1, 0, 5, 0)
    await conn.execute(SETTLE)
    assert await counts(conn, batch) == ("cancelled", 6, 1, 0, 5, 0)
    assert await submitted_callbacks(conn) == ["failed", "all"]
    assert await one(conn, "select error ->> 'message' from queue_pg.job(%s)", job) == "enough"
    assert await one(
        conn,
        "select data -> 'error' ->> 'message' from queue_pg.job_events where job_id = %s and type = 'cancelled'",
        job,
    )
    # Again is no error; nothing else was touched.
    assert await one(conn, "select cancelled, last_id from queue_pg.cancel_batch(%s)", batch) == (0, None)
    assert await counts(conn, other) == ("open", 1, 0, 0, 0, 1)


async def test_a_cancel_goes_in_bites(conn: Connection) -> None:
    batch = await make(conn, 25)
    after, bites = None, []
    while True:
        done, after = await one(
            conn, "select * from queue_pg.cancel_batch(%s, max_jobs => 10, after => %s)", batch, after
        )
        bites.append(done)
        if after is None:
            break
    assert bites == [10, 10, 5]
    assert await counts(conn, batch) == ("closed", 25, 0, 0, 25, 0)


async def test_what_has_ended_otherwise_cannot_be_cancelled(conn: Connection) -> None:
    batch = await make(conn, close=True)
    await conn.execute(SETTLE)
    with pytest.raises(psycopg.Error, match="it is completed") as caught:
        await conn.execute("select queue_pg.cancel_batch(%s)", (batch,))
    assert caught.value.sqlstate == "QP002"


async def test_retry_failed_opens_a_finished_batch_for_one_more_run(conn: Connection) -> None:
    batch = await make(conn, 6, close=True, on_complete="complete", on_failed="failed", on_all="all")
    await finish(conn, "discard", 3)
    await finish(conn, "cancel")
    await finish(conn, "complete", 2)
    await conn.execute(SETTLE)
    assert await counts(conn, batch) == ("failed", 6, 2, 3, 1, 0)
    assert await one(conn, "select retried, last_id from queue_pg.retry_failed(%s, 9)", batch) == (3, None)
    assert await counts(conn, batch) == ("closed", 6, 2, 0, 1, 3)
    assert await one(conn, SETTLE) == 0
    assert await one(conn, "select max(max_attempts) from queue_pg.jobs where kind = 'k'") == 9
    await finish(conn, "complete", 3)
    await conn.execute(SETTLE)
    assert await counts(conn, batch) == ("failed", 6, 5, 0, 1, 0)
    retry_all = "select retried from queue_pg.retry_failed(%s, and_cancelled => true)"
    assert await one(conn, retry_all, batch) == 1
    await finish(conn, "complete")
    await conn.execute(SETTLE)
    assert await counts(conn, batch) == ("completed", 6, 6, 0, 0, 0)
    assert await submitted_callbacks(conn) == ["failed", "all", "failed", "all", "complete", "all"]
    runs = await rows(conn, "select payload -> 'batch' -> 'run' from queue_pg.jobs where kind = 'all' order by id")
    assert runs == [(1,), (2,), (3,)]
    assert await one(conn, retry_all, batch) == 0
    assert await one(conn, "select run from queue_pg.batch(%s)", batch) == 3


async def test_a_retry_goes_in_bites(conn: Connection) -> None:
    batch = await make(conn, 7, close=True)
    await finish(conn, "discard", 7)
    after, bites = None, []
    while True:
        done, after = await one(
            conn, "select * from queue_pg.retry_failed(%s, max_jobs => 3, after => %s)", batch, after
        )
        bites.append(done)
        if after is None:
            break
    assert bites == [3, 3, 1]
    assert await counts(conn, batch) == ("closed", 7, 0, 0, 0, 7)


async def test_a_retry_and_the_end_meet(conn: Connection, dsn: str) -> None:
    """Whichever comes first, a batch with an unfinished job is not finished, and each run calls back once."""
    batch = await make(conn, 2, close=True, on_all="all")
    (failed,) = await finish(conn, "discard")
    await finish(conn, "complete")
    async with await Connection.connect(dsn) as retrier, await Connection.connect(dsn) as maintainer:
        await retrier.execute("select queue_pg.retry(%s)", (failed,))
        assert await one(maintainer, SETTLE) == 0  # passes over it, without waiting
        await maintainer.commit()
        await retrier.commit()
        assert await one(maintainer, SETTLE) == 0
        await maintainer.commit()
        assert await counts(conn, batch) == ("closed", 2, 1, 0, 0, 1)
        await finish(conn, "discard")
        assert await one(maintainer, SETTLE) == 1
        retrying = asyncio.create_task(rows(retrier, "select state::text from queue_pg.retry(%s)", failed))
        await until_blocked(conn, retrying, retrier.info.backend_pid)
        await maintainer.commit()
        assert await retrying == [("queued",)]
        await retrier.commit()
    assert await counts(conn, batch) == ("closed", 2, 1, 0, 0, 1)
    assert await submitted_callbacks(conn) == ["all"]
    await finish(conn, "complete")
    await conn.execute(SETTLE)
    assert await counts(conn, batch) == ("completed", 2, 2, 0, 0, 0)
    assert await submitted_callbacks(conn) == ["all", "all"]


async def test_two_retries_as_a_whole_at_once_take_each_job_once(conn: Connection, dsn: str) -> None:
    batch = await make(conn, 40, close=True)
    await finish(conn, "discard", 40)

    async def retry_all() -> int:
        async with await Connection.connect(dsn, autocommit=True) as own:
            done = 0
            for _ in range(20):
                done += await one(own, "select retried from queue_pg.retry_failed(%s, max_jobs => 4)", batch)
            return done

    assert sum(await asyncio.gather(retry_all(), retry_all(), retry_all())) == 40
    assert await counts(conn, batch) == ("closed", 40, 0, 0, 0, 40)


# --- what is refused, forgotten, and what it costs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "field"),
    [
        ("[]", "on_all"),
        ("7", "on_all"),
        ("{}", "on_all"),
        ('{"kind": ""}', "on_all"),
        ('{"kind": "k", "unique_key": "x"}', "on_all.unique_key"),
        ('{"kind": "k", "batch_id": "x"}', "on_all.batch_id"),
        ('{"kind": "k", "payload": [1]}', "on_all.payload"),
        ('{"kind": "k", "priority": 99999}', "on_all"),
        ('{"kind": "k", "timeout_seconds": -1}', "on_all"),
        ('{"kind": "k", "delay_seconds": -1}', "on_all.delay_seconds"),
        ('{"kind": "k", "delay_seconds": "x"}', "on_all"),
        ('{"kind": "k", "max_attempts": 0}', "on_all"),
        ('{"kind": "k", "tags": "x"}', "on_all"),
        ('{"kind": "k", "metadata": []}', "on_all"),
    ],
)
async def test_a_callback_that_could_not_be_submitted_is_refused_at_once(
    conn: Connection, callback: str, field: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute("select queue_pg.create_batch(on_all => %s::jsonb)", (callback,))
    assert caught.value.sqlstate == "QP005"
    assert f'"field": "{field}"' in (caught.value.diag.message_detail or "")
    assert await rows(conn, "select from queue_pg.batches") == []


async def test_other_wrong_input(conn: Connection) -> None:
    for statement in ("close_batch", "cancel_batch", "retry_failed"):
        with pytest.raises(psycopg.Error, match="no batch") as caught:
            await conn.execute(f"select queue_pg.{statement}(%s)", (uuid4(),))
        assert caught.value.sqlstate == "QP001"
    for name in ("", "x" * 201):
        with pytest.raises(psycopg.Error, match="1 to 200 characters"):
            await conn.execute("select queue_pg.create_batch(%s)", (name,))
    with pytest.raises(psycopg.Error, match="metadata"):
        await conn.execute("select queue_pg.create_batch(metadata => '[]')")
    assert await rows(conn, "select * from queue_pg.batch(%s)", uuid4()) == []


async def test_a_finished_batch_is_forgotten_after_the_retention(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    finished, open_ = await make(conn, 1, close=True), await make(conn, 1)
    (job,) = await finish(conn, "discard")
    await conn.execute(SETTLE)
    clock.advance(3_500)
    await conn.execute("select queue_pg.maintain_history()")
    assert (await counts(conn, finished))[0] == "failed"
    await conn.execute("update queue_pg.finished_jobs set retain_until = retain_until + '1 day'")
    clock.advance(200)
    await conn.execute("select queue_pg.maintain_history()")
    assert await rows(conn, "select id from queue_pg.batch_progress") == [(open_,)]
    # A job that outlives its batch can be retried all the same.
    await conn.execute("select queue_pg.retry(%s)", (job,))
    await finish(conn, "complete", 2)
    await conn.execute(SETTLE)
    assert await one(conn, "select count(*) from queue_pg.batch_counters") == 0


READ = (
    "select coalesce(sum(pg_stat_get_xact_tuples_returned(c.oid)), 0) from pg_class c"
    " where c.relnamespace = 'queue_pg'::regnamespace and c.relkind in ('r', 'i')"
    " and (c.relname like '%%batch%%' or c.relname = 'jobs')"
)


async def test_what_a_batch_costs_does_not_grow_with_it(conn: Connection) -> None:
    """Rows read for one more step, at the beginning of 100,000 jobs and in their midst."""
    await conn.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
    batch = await make(conn, 100_000, close=True)
    await conn.execute(SETTLE)

    async def read_by(statement: str, *args: Any) -> int:
        async with conn.transaction():
            before = await one(conn, READ)
            await rows(conn, statement, *args)
            return int(await one(conn, READ) - before)

    async def step() -> list[int]:
        claimed = await rows(conn, "select id, lease_token from queue_pg.claim('w', '{default}', max_jobs => 10)")
        ids, tokens = [row[0] for row in claimed], [row[1] for row in claimed]
        outcomes = ["complete"] * 5 + ["discard"] * 5
        return [
            await read_by("select * from queue_pg.finish(%s, %s, %s)", ids, tokens, outcomes),
            await read_by("select * from queue_pg.batch(%s)", batch),
            await read_by(SETTLE),
        ]

    first = await step()
    await finish(conn, "complete", 10_000)
    await finish(conn, "discard", 10_000)
    await conn.execute(SETTLE)
    later = await step()
    assert max(first + later) < 200
    assert await read_by("select * from queue_pg.cancel_batch(%s, max_jobs => 100)", batch) < 60_000  # dead ones, once
    half = await one(conn, "select id from queue_pg.jobs where batch_id = %s order by id offset 40000 limit 1", batch)
    in_the_midst = "select * from queue_pg.cancel_batch(%s, max_jobs => 100, after => %s)"
    assert await read_by(in_the_midst, batch, half) < 100 * 12
    assert await read_by("select * from queue_pg.retry_failed(%s, max_jobs => 1)", batch) < 100


async def test_children_that_end_with_their_parents_are_counted(conn: Connection) -> None:
    graph = (
        "select queue_pg.submit_many(jsonb_build_array("
        "jsonb_build_object('kind', 'k', 'key', 'a', 'batch_id', %(batch)s::text),"
        "jsonb_build_object('kind', 'k', 'key', 'b', 'batch_id', %(batch)s::text, 'depends_on', '[\"a\"]'::jsonb),"
        "jsonb_build_object('kind', 'k', 'key', 'c', 'batch_id', %(batch)s::text, 'depends_on', '[\"b\"]'::jsonb)))"
    )
    failed, cancelled = await make(conn), await make(conn)
    await conn.execute(graph, {"batch": failed})
    await conn.execute("select queue_pg.close_batch(%s)", (failed,))
    await finish(conn, "discard")
    assert await counts(conn, failed) == ("closed", 3, 0, 1, 2, 0)
    await conn.execute(graph, {"batch": cancelled})
    # The children of the first bite end with it, whichever bite they would have been in.
    assert await one(conn, "select last_id is not null from queue_pg.cancel_batch(%s, max_jobs => 1)", cancelled)
    await conn.execute("select queue_pg.cancel_batch(%s)", (cancelled,))
    assert await counts(conn, cancelled) == ("closed", 3, 0, 0, 3, 0)
    await conn.execute(SETTLE)
    assert (await counts(conn, failed))[0] == "failed"
    assert (await counts(conn, cancelled))[0] == "cancelled"
