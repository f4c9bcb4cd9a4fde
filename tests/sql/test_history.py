"""Partitions, retention, counters, and what people look at."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def rows(conn: Connection, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement, args)).fetchall()


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    (row,) = await rows(conn, statement, *args)
    return row[0] if len(row) == 1 else row


async def finish_jobs(conn: Connection, count: int, *, queue: str = "default", outcome: str = "complete") -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, queue) select 'k', %s from generate_series(1, %s)", (queue, count)
    )
    await conn.execute(
        "select f.state from (select array_agg(id) as ids, array_agg(lease_token) as tokens"
        " from queue_pg.claim('w', array[%s], max_jobs => 10000)) c"
        " cross join lateral queue_pg.finish(c.ids, c.tokens, array_fill(%s::text, array[cardinality(c.ids)])) f",
        (queue, outcome),
    )


async def keep_history(conn: Connection) -> tuple[int, float]:
    """Let history be maintained until nothing is left to do; return how many were dropped, and when to call again."""
    dropped = 0
    while True:
        _, count, again_seconds = await one(conn, "select * from queue_pg.maintain_history()")
        dropped += count
        if again_seconds > 0:
            return dropped, again_seconds


PLACES = "select tableoid::regclass::text, count(*) from queue_pg.finished_jobs group by 1 order by 1"


async def test_history_is_stored_in_a_partition_of_its_time_and_dropped_whole(conn: Connection, stopped: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    await conn.execute("select queue_pg.maintain_history()")
    await finish_jobs(conn, 20)
    ((place, count),) = await rows(conn, PLACES)
    assert place.startswith("queue_pg.finished_jobs_2")
    assert count == 20
    stopped.advance(3599)
    assert await one(conn, "select count(*) from queue_pg.all_jobs") == 20
    stopped.advance(2)
    # Hidden to the second, dropped when the last job of the partition may go as well.
    assert await one(conn, "select count(*) from queue_pg.all_jobs") == 0
    stopped.advance(300)
    dropped, _ = await keep_history(conn)
    assert dropped >= 1
    assert await rows(conn, PLACES) == []
    assert await one(conn, "select to_regclass(%s)", place) is None
    assert await one(conn, "select sum(completed) from queue_pg.queue_counters") == 0


async def test_without_a_partition_the_default_takes_it_and_maintenance_moves_it(
    conn: Connection, clock: Clock
) -> None:
    clock.advance(10 * 86_400)  # nobody maintained meanwhile
    await finish_jobs(conn, 5)
    assert await rows(conn, PLACES) == [("queue_pg.finished_jobs_default", 5)]
    await conn.execute("select queue_pg.maintain_history()")
    ((place, count),) = await rows(conn, PLACES)
    assert place != "queue_pg.finished_jobs_default"
    assert count == 5
    assert await one(conn, "select count(*) from queue_pg.all_jobs") == 5


async def test_partitions_made_under_load_refuse_nobody_s_outcome(conn: Connection, dsn: str, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 minute')")
    done = asyncio.Event()

    async def keep_finishing(queue: str) -> int:
        finished = 0
        async with await Connection.connect(dsn, autocommit=True) as own:
            while not done.is_set():
                await finish_jobs(own, 5, queue=queue)
                finished += 5
        return finished

    async with asyncio.TaskGroup() as group:
        load = [group.create_task(keep_finishing(f"q{n}")) for n in range(3)]
        created = 0
        while created < 12:
            clock.advance(900)  # beyond all partitions: outcomes go to the default one until the next is made
            created += await one(conn, "select created from queue_pg.maintain_history()")
        done.set()
    finished = sum(task.result() for task in load)
    assert finished > 0
    assert await one(conn, "select sum(completed) from queue_pg.queue_counters") == await one(
        conn, "select count(*) from queue_pg.finished_jobs"
    )


@pytest.mark.parametrize("table", ["all_jobs", "job_events"])
async def test_a_reader_misses_nothing_while_what_is_kept_moves_into_a_partition(
    conn: Connection, dsn: str, clock: Clock, table: str
) -> None:
    clock.advance(3 * 86_400)  # nobody maintained meanwhile
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    await conn.execute(
        "select queue_pg.append_event(c.id, c.lease_token, 'log', '{\"line\": \"x\"}')"
        " from queue_pg.claim('w', '{default}') c"
    )
    await conn.execute("select queue_pg.finish_one(id, lease_token, 'complete', null, null, null) from queue_pg.jobs")
    reads = {
        "all_jobs": "select state::text from queue_pg.all_jobs",
        "job_events": "select type from queue_pg.job_events",
    }
    expected = await rows(conn, reads[table])
    assert expected
    async with await Connection.connect(dsn, autocommit=True) as reader:
        # The one who plans while the rows move has to see them, before or after: never neither here nor there.
        pid = reader.info.backend_pid
        async with conn.transaction():
            assert await one(conn, "select created from queue_pg.maintain_history()") >= 1
            reading = asyncio.create_task(rows(reader, reads[table]))
            async with await Connection.connect(dsn, autocommit=True) as looking:
                blocked = "select coalesce(wait_event_type = 'Lock', false) from pg_stat_activity where pid = %s"
                async with asyncio.timeout(20):
                    while not await one(looking, blocked, pid) and not reading.done():  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
        assert await reading == expected


async def test_a_reader_who_has_listed_the_partitions_finds_a_job_that_ends_meanwhile(
    conn: Connection, dsn: str, clock: Clock
) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    index = await one(
        conn,
        "select indexrelid::regclass::text from pg_index"
        " join queue_pg.partitions p on indrelid = to_regclass('queue_pg.' || p.name)"
        " where p.parent = 'finished_jobs' order by 1 limit 1",
    )
    read = "select state::text from queue_pg.all_jobs"
    clock.advance(3 * 86_400)  # nobody maintained meanwhile
    async with (
        await Connection.connect(dsn) as holder,
        await Connection.connect(dsn, autocommit=True) as reader,
    ):
        # Planning looks at the indexes of each partition when all of them are listed; this keeps it there.
        await holder.execute(f"alter index {index} set tablespace pg_default")
        reading = asyncio.create_task(rows(reader, read))
        blocked = "select coalesce(wait_event_type = 'Lock', false) from pg_stat_activity where pid = %s"
        async with asyncio.timeout(20):
            while not await one(conn, blocked, reader.info.backend_pid) and not reading.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not reading.done()
        await conn.execute("select queue_pg.maintain_history()")
        await conn.execute(
            "select queue_pg.finish_one(id, lease_token, 'complete', null, null, null) from queue_pg.jobs"
        )
        await holder.rollback()
        assert await reading == [("completed",)]


async def test_what_stayed_in_the_default_partition_is_swept_after_its_retention(
    conn: Connection, clock: Clock
) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 minute')")
    await finish_jobs(conn, 5)
    clock.advance(3600)  # nobody maintained meanwhile: its range is long gone
    await conn.execute("select queue_pg.maintain_history()")
    assert await one(conn, "select count(*) from queue_pg.finished_jobs") == 0
    assert await one(conn, "select completed from queue_pg.queue_stats()") == 0


async def test_retention_of_a_queue_is_its_own(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure_queue('short', retention => '10 minutes')")
    await conn.execute("select queue_pg.maintain_history()")
    await finish_jobs(conn, 3, queue="short")
    await finish_jobs(conn, 4, queue="long")
    assert len(await rows(conn, PLACES)) == 2
    clock.advance(601)
    assert await rows(conn, "select queue, count(*) from queue_pg.all_jobs group by 1") == [("long", 4)]
    clock.advance(300)
    await keep_history(conn)
    assert [count for _, count in await rows(conn, PLACES)] == [4]


async def test_a_clock_that_jumps_back_or_forth_loses_nothing(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    await conn.execute("select queue_pg.maintain_history()")
    clock.advance(-86_400)
    await finish_jobs(conn, 2)
    clock.advance(2 * 86_400)
    await finish_jobs(conn, 2, queue="later")
    assert await one(conn, "select count(*) from queue_pg.finished_jobs") == 4
    await conn.execute("select queue_pg.maintain_history()")
    assert await rows(conn, "select queue, count(*) from queue_pg.all_jobs group by 1") == [("later", 2)]


async def test_partitions_never_overlap_whatever_the_retention_becomes(conn: Connection, clock: Clock) -> None:
    for retention in ("30 days", "1 hour", "7 days", "1 day", "29 days", "5 seconds"):
        await conn.execute("select queue_pg.configure(retention => %s::interval)", (retention,))
        await conn.execute("select queue_pg.maintain_history()")
        await finish_jobs(conn, 1)
        clock.advance(1000)
    assert await one(conn, "select count(*) from queue_pg.finished_jobs_default") == 0
    overlaps = (
        "select count(*) from queue_pg.partitions a join queue_pg.partitions b on a.parent = b.parent"
        " and a.name < b.name and a.from_at < b.to_at and b.from_at < a.to_at"
    )
    assert await one(conn, overlaps) == 0


async def test_a_reader_in_the_way_delays_a_drop_but_breaks_nothing(conn: Connection, dsn: str, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 minute')")
    await conn.execute("select queue_pg.maintain_history()")
    await finish_jobs(conn, 3)
    clock.advance(900)
    async with await Connection.connect(dsn) as reader:
        await reader.execute("select count(*) from queue_pg.finished_jobs")
        # Writers wait behind every try, so the next one is not soon.
        assert await keep_history(conn) == (0, 10)
        await reader.rollback()
    dropped, _ = await keep_history(conn)
    assert dropped >= 1


@pytest.mark.parametrize(
    ("retention", "width"), [("1 ms", 5), ("20 s", 5), ("1 min", 15), ("10 min", 60), ("1 h", 300), ("2 h", 3600)]
)
async def test_a_short_retention_has_narrow_partitions_and_frequent_rounds(
    conn: Connection, stopped: Clock, retention: str, width: int
) -> None:
    await conn.execute("select queue_pg.configure(retention => %s::interval)", (retention,))
    assert await keep_history(conn) == (0, min(max(width / 2, 2), 60))
    made = await one(conn, "select extract(epoch from queue_pg.partition_width(%s::interval))", retention)
    assert made == width


async def test_partitions_that_may_go_together_go_one_by_one(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '30 seconds')")
    for _ in range(4):
        await keep_history(conn)
        await finish_jobs(conn, 2)
        clock.advance(5)
    assert len(await rows(conn, PLACES)) == 4
    clock.advance(60)
    await keep_history(conn)
    assert await rows(conn, PLACES) == []
    assert await one(conn, "select sum(completed) from queue_pg.queue_counters") == 0


async def test_stats_count_each_state_exactly(conn: Connection) -> None:
    await finish_jobs(conn, 5)
    await finish_jobs(conn, 2, outcome="discard")
    await finish_jobs(conn, 1, outcome="cancel")
    await conn.execute(
        "insert into queue_pg.jobs (kind, run_at)"
        " values ('k', queue_pg.now()), ('k', queue_pg.now()), ('k', queue_pg.now() + '1 h')"
    )
    await conn.execute("select queue_pg.claim('w', '{default}')")
    states = "scheduled, waiting, queued, running, completed, failed, cancelled"
    assert await rows(conn, f"select {states} from queue_pg.queue_stats()") == [(1, 0, 1, 1, 5, 2, 1)]
    await conn.execute("select queue_pg.retry(id) from queue_pg.failures limit 1")
    assert await rows(conn, f"select {states} from queue_pg.queue_stats()") == [(1, 0, 2, 1, 5, 1, 1)]
    assert await rows(conn, "select queue, status, running from queue_pg.overview") == [("default", "open", 1)]
    assert len(await rows(conn, "select * from queue_pg.running")) == 1


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        ("select 1", "no_worker"),
        ("select queue_pg.pause_queue('default')", "paused"),
        ("update queue_pg.jobs set state = 'scheduled', run_at = queue_pg.now() + '1 h'", "scheduled"),
        ("update queue_pg.jobs set state = 'waiting'", "parents"),
        ("select queue_pg.claim('w', '{default}')", "running"),
        ("select queue_pg.cancel(id) from queue_pg.jobs", "finished"),
        ("select queue_pg.register_worker('w', 'h', 1, '0', '{default}', '{k}', 2)", "next"),
        ("select queue_pg.register_worker('w', 'h', 1, '0', '{default}', '{k}', 0)", "no_free_slot"),
        ("select queue_pg.register_worker('w', 'h', 1, '0', '{other}', '{k}', 2)", "no_worker"),
        (
            "select queue_pg.register_worker('w', 'h', 1, '0', '{default}', '{k}', 2),"
            " queue_pg.submit('k', priority => 5)",
            "behind",
        ),
    ],
)
async def test_why_waiting_names_the_cause(conn: Connection, arrange: str, reason: str) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute(arrange)
    found = await one(conn, "select reason, detail from queue_pg.why_waiting(%s)", job)
    assert found[0] == reason
    assert found[1].endswith(".")


async def test_why_waiting_after_a_failure_and_after_a_lost_lease(conn: Connection, clock: Clock) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    clock.advance(31)
    assert await one(conn, "select reason, held_by from queue_pg.why_waiting(%s)", job) == ("lease_expired", "w")
    await conn.execute('select queue_pg.fail(%s, 1, \'{"code": "boom"}\')', (job,))
    reason, detail = await one(conn, "select reason, detail from queue_pg.why_waiting(%s)", job)
    assert reason == "retry"
    assert "boom" in detail
    assert await rows(conn, "select * from queue_pg.why_waiting(gen_random_uuid())") == []


async def test_workers_come_and_go(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.register_worker('w', 'host', 7, '1.0', '{a}', '{k}', 4)")
    assert await one(conn, "select queue_pg.worker_heartbeat('w', 2, 10, 1)") == 1
    assert await one(conn, "select active, processed, failed, stopping from queue_pg.workers") == (2, 10, 1, False)
    clock.advance(3601)
    await conn.execute("select queue_pg.maintain_history()")
    assert await one(conn, "select queue_pg.worker_heartbeat('w', 2, 10, 1)") is None


async def test_a_heartbeat_tells_how_many_share_the_queues(conn: Connection, clock: Clock) -> None:
    for name, queues in (("w", "{a,b}"), ("b", "{b,c}"), ("c", "{c}"), ("stopping", "{a}"), ("dead", "{a}")):
        await conn.execute("select queue_pg.register_worker(%s, 'host', 7, '1.0', %s, '{k}', 4)", (name, queues))
    clock.advance(61)
    for name in ("b", "c"):
        await conn.execute("select queue_pg.worker_heartbeat(%s, 0, 0, 0)", (name,))
    await conn.execute("select queue_pg.worker_heartbeat('stopping', 0, 0, 0, true)")
    assert await one(conn, "select queue_pg.worker_heartbeat('w', 0, 0, 0)") == 2


ARMED = "select pg_sequence_last_value('queue_pg.armed') & queue_pg.armed_bit(%s) <> 0"


async def test_what_ended_workers_have_armed_is_disarmed(conn: Connection, clock: Clock) -> None:
    for name, queues in (("gone", ["a", "b"]), ("killed", ["c", "b"]), ("live", ["b"])):
        await conn.execute("select queue_pg.register_worker(%s, 'host', 7, '1.0', %s, '{k}', 4)", (name, queues))
        await conn.execute("select queue_pg.arm(%s)", (queues,))
    await conn.execute("select queue_pg.forget_worker('gone')")
    assert [await one(conn, ARMED, queue) for queue in "abc"] == [False, True, True]
    clock.advance(61)
    await conn.execute("select queue_pg.worker_heartbeat('live', 0, 0, 0)")
    await conn.execute("select queue_pg.maintain_history()")
    assert [await one(conn, ARMED, queue) for queue in "abc"] == [False, True, False]


async def test_maintain_tells_when_the_next_thing_falls_due(conn: Connection, stopped: Clock) -> None:
    due = "select next_due_seconds from queue_pg.maintain()"
    assert await one(conn, due) is None
    await conn.execute("select queue_pg.submit('k', delay => '100 s')")
    assert await one(conn, due) == 100
    await conn.execute("select queue_pg.submit('k')")
    await conn.execute("select queue_pg.claim('w', '{default}')")
    assert await one(conn, due) == 30
    await conn.execute("select queue_pg.submit('k', expires_at => queue_pg.now() + '5 s')")
    assert await one(conn, due) == 5


async def test_a_second_maintainer_sees_that_one_is_at_it(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn) as other:
        await other.execute("select queue_pg.maintain()")
        assert await one(conn, "select busy from queue_pg.maintain()") is True
        await other.commit()
    assert await one(conn, "select busy from queue_pg.maintain()") is False


async def test_counters_are_folded_to_one_row_a_queue_and_stay_exact(conn: Connection) -> None:
    await conn.execute(
        "insert into queue_pg.queue_counters (org, queue, completed, failed)"
        " select 'o', 'q' || n % 3, 1, -(n % 2) from generate_series(1, 3000) n"
    )
    total = "select count(*), sum(completed), sum(failed) from queue_pg.queue_counters"
    assert await one(conn, total) == (3_000, 3_000, -1_500)
    await conn.execute("select queue_pg.maintain_history()")
    assert await one(conn, total) == (3, 3_000, -1_500)
