"""The list of a job's events: the same numbers and contents for every reader, whenever it looks; who may append."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def rows(conn: Connection, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement, args)).fetchall()


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    (row,) = await rows(conn, statement, *args)
    return row[0] if len(row) == 1 else row


async def events(conn: Connection, job: UUID, after: int = 0) -> list[tuple[Any, ...]]:
    return await rows(conn, "select seq, at, type, data from queue_pg.events(%s, %s)", job, after)


async def types(conn: Connection, job: UUID) -> list[str]:
    return [event[2] for event in await events(conn, job)]


async def claim(conn: Connection) -> tuple[UUID, int]:
    return await one(conn, "select id, lease_token from queue_pg.claim('w', '{default}')")


async def append(conn: Connection, job: UUID, token: int, kind: str = "log", data: Any = None) -> int:
    return await one(conn, "select queue_pg.append_event(%s, %s, %s, %s)", job, token, kind, json.dumps(data or {}))


ATTEMPT = {"attempt": 1, "worker_id": "w"}


async def test_the_straight_way_is_told_without_a_row(conn: Connection) -> None:
    job = await one(conn, "select queue_pg.submit('k', queue => 'default')")
    await claim(conn)
    await conn.execute("select queue_pg.complete(%s, 1)", (job,))
    assert [(event[0], *event[2:]) for event in await events(conn, job)] == [
        (1, "submitted", {"kind": "k", "queue": "default"}),
        (2, "started", ATTEMPT),
        (3, "completed", ATTEMPT),
    ]
    times = await one(conn, "select array[created_at, started_at, finished_at] from queue_pg.job(%s)", job)
    assert [at for _, at, _, _ in await events(conn, job)] == times
    assert await one(conn, "select count(*) from queue_pg.job_events") == 0


async def test_what_was_derived_is_stored_with_the_first_event_that_is_not(conn: Connection, clock: Clock) -> None:
    job = await one(conn, "select queue_pg.submit('k', delay => '1 minute')")
    assert await types(conn, job) == ["submitted"]
    clock.advance(60)
    await conn.execute("select queue_pg.promote()")
    await claim(conn)
    derived = await events(conn, job)
    assert [event[2] for event in derived] == ["submitted", "promoted", "started"]
    assert await append(conn, job, 1, data={"line": "hello"}) == 4
    assert (await events(conn, job))[:3] == derived
    assert await append(conn, job, 1, "progress", {"fraction": 0.5}) == 5
    await conn.execute("select queue_pg.fail(%s, 1, '{\"code\": \"x\"}', delay => '1 minute')", (job,))
    clock.advance(61)
    await conn.execute("select queue_pg.promote()")
    await claim(conn)
    await conn.execute("select queue_pg.complete(%s, 2)", (job,))
    told = [(event[0], event[2]) for event in await events(conn, job)]
    assert told == list(
        enumerate(
            ["submitted", "promoted", "started", "log", "progress", "failed", "promoted", "started", "completed"], 1
        )
    )
    assert (await events(conn, job))[:3] == derived


STEPS = {
    "promote": "select queue_pg.promote()",
    "claim": "select queue_pg.claim('w', '{default}', arm => null)",
    "append": "select queue_pg.append_event(%(id)s, %(token)s, 'log', '{\"line\": \"x\"}')",
    "batch": (
        "select queue_pg.append_events(array[%(id)s, %(id)s]::uuid[], array[%(token)s, %(token)s]::bigint[],"
        " '{progress,note}', array['{}', '{\"n\": 1}']::jsonb[])"
    ),
    "complete": "select queue_pg.complete(%(id)s, %(token)s)",
    "fail": "select queue_pg.fail(%(id)s, %(token)s, '{\"code\": \"x\"}', delay => '5 seconds')",
    "snooze": "select queue_pg.snooze(%(id)s, %(token)s, '5 seconds')",
    "release": "select queue_pg.release(%(id)s, %(token)s)",
    "discard": 'select queue_pg.fail(%(id)s, %(token)s, \'{"code": "x"}\', retry => false)',
    "stop": "select queue_pg.finish_one(%(id)s, %(token)s, 'cancel', null, null, null)",
    "cancel": "select queue_pg.cancel(%(id)s)",
    "retry": "select queue_pg.retry(%(id)s)",
    "reap": "select queue_pg.reap()",
    "expire": "select queue_pg.expire()",
    "heartbeat": "select queue_pg.heartbeat(array[%(id)s::uuid], array[%(token)s::bigint])",
    "follow": "select queue_pg.follow(array[%(id)s::uuid])",
}


@pytest.mark.parametrize("seed", range(12))
async def test_the_list_only_ever_grows(conn: Connection, clock: Clock, seed: int) -> None:
    """Whatever happens to a job, in whatever order: what a reader has seen stays, and the numbers have no gaps."""
    chance = random.Random(seed)
    delay = chance.choice(["0", "3 seconds"])
    job = await one(
        conn,
        "select queue_pg.submit('k', delay => %s::interval, expires_at => queue_pg.now() + '400 seconds',"
        " max_attempts => 4)",
        delay,
    )
    seen: list[tuple[Any, ...]] = []
    for _ in range(60):
        clock.advance(chance.choice([0, 0, 2, 6, 31]))
        token = await one(conn, "select lease_token from queue_pg.job(%s)", job)
        name = chance.choices(list(STEPS), weights=[3, 6, 6, 3, 1, *([2] * 3), *([1] * 3), 4, 2, 1, 1, 1])[0]
        with suppress(psycopg.Error):  # the state does not allow it
            await conn.execute(STEPS[name], {"id": job, "token": token})
        now = await events(conn, job)
        assert now[: len(seen)] == seen, (name, now, seen)
        assert [event[0] for event in now] == list(range(1, len(now) + 1)), name
        assert (await events(conn, job, len(seen))) == now[len(seen) :]
        last = await rows(conn, "select distinct last_seq from queue_pg.read_events(array[%s::uuid], array[0])", job)
        assert last == [(len(now),)]
        seen = now
    state = await one(conn, "select state::text from queue_pg.job(%s)", job)
    if state in ("completed", "failed", "cancelled"):
        assert seen[-1][2] in ("completed", "failed", "cancelled", "expired", "lease_lost")


async def test_a_stale_token_appends_nothing_and_is_told_so(conn: Connection, clock: Clock) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    with pytest.raises(psycopg.Error, match="no longer held") as before_the_claim:
        await append(conn, job, 0)
    assert before_the_claim.value.sqlstate == "QP003"
    await claim(conn)
    await append(conn, job, 1)
    clock.advance(31)
    await conn.execute("select queue_pg.reap()")
    await claim(conn)
    before = await events(conn, job)
    for token in (1, 3, None):
        with pytest.raises(psycopg.Error) as stale:
            await append(conn, job, token)  # type: ignore[arg-type]
        assert stale.value.sqlstate == "QP003"
    with pytest.raises(psycopg.Error) as unknown:
        await append(conn, uuid4(), 1)
    assert unknown.value.sqlstate == "QP001"
    assert await events(conn, job) == before
    await conn.execute("select queue_pg.complete(%s, 2)", (job,))
    with pytest.raises(psycopg.Error) as finished:
        await append(conn, job, 2)
    assert finished.value.sqlstate == "QP003"


async def test_a_batch_of_several_jobs_counts_where_its_lease_stands(conn: Connection) -> None:
    for _ in range(3):
        await conn.execute("select queue_pg.submit('k')")
    held = await rows(conn, "select id, lease_token from queue_pg.claim('w', '{default}', max_jobs => 3)")
    await conn.execute("select queue_pg.cancel(%s)", (held[1][0],))
    await conn.execute("select queue_pg.follow(array[%s])", (held[2][0],))
    nobody = uuid4()
    ids = [held[0][0], held[1][0], held[2][0], held[0][0], nobody]
    answers = await rows(
        conn,
        "select * from queue_pg.append_events(%s::uuid[], '{1,1,1,1,1}', '{a,b,c,d,e}', %s::jsonb[])",
        ids,
        ["{}"] * 5,
    )
    assert {answer[0]: answer[1:] for answer in answers} == {
        held[0][0]: (True, "running", 4, 2, False),
        held[2][0]: (True, "running", 3, 1, True),
        held[1][0]: (False, "cancelled", None, None, None),
        nobody: (False, None, None, None, None),
    }
    assert await types(conn, held[0][0]) == ["submitted", "started", "a", "d"]


async def test_two_writers_at_once_leave_no_gap_and_no_number_twice(conn: Connection, dsn: str) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)

    async def write(name: str) -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            for n in range(25):
                await append(own, job, 1, data={"line": f"{name}{n}"})

    await asyncio.gather(*(write(name) for name in "abcd"))
    found = await events(conn, job)
    assert [event[0] for event in found] == list(range(1, 103))
    for name in "abcd":
        own = [event[3]["line"] for event in found[2:] if event[3]["line"].startswith(name)]
        assert own == [f"{name}{n}" for n in range(25)]


async def test_past_its_limit_a_job_gets_one_word_about_it(conn: Connection) -> None:
    await conn.execute("select queue_pg.configure(max_events => 5)")
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)
    statement = (
        "select last_seq, appended from queue_pg.append_events(%s::uuid[], %s::bigint[], %s::text[], %s::jsonb[])"
    )
    three = ([job] * 3, [1] * 3, ["log"] * 3, ["{}"] * 3)
    assert await one(conn, statement, *three) == (5, 3)
    assert await one(conn, statement, *three) == (8, 6)
    assert await one(conn, statement, *three) == (8, 6)
    await conn.execute("select queue_pg.release(%s, 1)", (job,))
    await claim(conn)
    assert (await one(conn, statement, [job], [2], ["log"], ["{}"]))[1] == 6
    await conn.execute("select queue_pg.complete(%s, 2)", (job,))
    found = await events(conn, job)
    assert [event[2] for event in found] == [
        *("submitted", "started", "log", "log", "log", "log", "log", "truncated"),
        *("released", "started", "completed"),
    ]
    assert found[7][3] == {"max_events": 5}


@pytest.mark.parametrize(
    ("kind", "data", "refusal"),
    [
        ("completed", "{}", "records itself"),
        ("forgotten", "{}", "records itself"),
        ("", "{}", "1 to 64 characters"),
        ("Log", "{}", "1 to 64 characters"),
        ("a" * 65, "{}", "1 to 64 characters"),
        ("a\nb", "{}", "1 to 64 characters"),
        (None, "{}", "1 to 64 characters"),
        ("log", "[]", "events_data_object"),
        ("log", '"text"', "events_data_object"),
        ("log", json.dumps({"line": "x" * 70_000}), "events_data_size"),
        ("log", '{"n": 1e20000}', "events_data_numbers"),
    ],
)
async def test_what_may_not_be_appended(conn: Connection, kind: str | None, data: str, refusal: str) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)
    with pytest.raises(psycopg.Error, match=refusal) as refused:
        await conn.execute("select queue_pg.append_event(%s, 1, %s, %s)", (job, kind, data))
    assert refused.value.sqlstate in ("QP005", "23514")
    assert await types(conn, job) == ["submitted", "started"]


async def test_arrays_of_different_lengths_are_refused(conn: Connection) -> None:
    with pytest.raises(psycopg.Error, match="one for each"):
        await conn.execute("select queue_pg.append_events('{}', '{1}', '{}', '{}')")
    assert await rows(conn, "select * from queue_pg.append_events('{}', '{}', '{}', '{}')") == []


async def test_a_reader_of_what_was_forgotten_is_told_so(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(timeout => '30 days', lease => '1 day')")
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute("select queue_pg.maintain_history()")
    await claim(conn)
    for _ in range(3):
        await append(conn, job, 1)
    for _ in range(10):
        clock.advance(80_000)
        await conn.execute("select queue_pg.heartbeat(array[%s::uuid], '{1}')", (job,))
        while await one(conn, "select again_seconds from queue_pg.maintain_history()") == 0:
            pass
    assert await append(conn, job, 1) == 6
    found = [(event[0], *event[2:]) for event in await events(conn, job)]
    assert found[1:] == [(5, "forgotten", {"from_seq": 2, "to_seq": 5}), (6, "log", {})]
    assert [event[:1] + event[3:] for event in await events(conn, job, 3)] == [
        (5, {"from_seq": 4, "to_seq": 5}),
        (6, {}),
    ]
    assert [event[0] for event in await events(conn, job, 5)] == [6]
    for _ in range(10):
        clock.advance(80_000)
        await conn.execute("select queue_pg.heartbeat(array[%s::uuid], '{1}')", (job,))
        while await one(conn, "select again_seconds from queue_pg.maintain_history()") == 0:
            pass
    assert [event[0] for event in await events(conn, job, 2)] == [6]
    assert (await events(conn, job, 2))[0][2] == "forgotten"


async def test_pages_are_bounded_in_number_and_in_bytes(conn: Connection) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)
    for n in range(6):
        await append(conn, job, 1, data={"line": "x" * 1000, "n": n})
    read = "select seq from queue_pg.read_events(array[%s::uuid], array[%s], %s, %s) order by seq"
    assert await rows(conn, read, job, 0, 3, 10**6) == [(1,), (2,), (3,)]
    assert await rows(conn, read, job, 2, 100, 2_500) == [(3,), (4,), (5,)]
    # One at least, or a large event could never be passed.
    assert await rows(conn, read, job, 2, 100, 1) == [(3,)]
    assert await rows(conn, read, job, 8, 100, 1) == [(None,)]
    assert await rows(conn, read, uuid4(), 0, 100, 1) == []


async def test_logs_are_read_by_number_and_stream(conn: Connection) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)
    for n in range(3):
        await append(conn, job, 1, data={"line": f"out {n}", "stream": "stdout", "n": n})
        await append(conn, job, 1, data={"line": f"err {n}", "stream": "stderr"})
    assert await rows(conn, "select seq, line, data from queue_pg.logs(%s, 5, only_stream => 'stdout')", job) == [
        (5, "out 1", {"n": 1}),
        (7, "out 2", {"n": 2}),
    ]
    assert await rows(conn, "select seq from queue_pg.logs(%s, max_lines => 2)", job) == [(3,), (4,)]


async def test_an_uncommitted_event_is_seen_by_nobody_and_takes_no_number(conn: Connection, dsn: str) -> None:
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)
    async with await Connection.connect(dsn) as other:
        await append(other, job, 1)
        assert await types(conn, job) == ["submitted", "started"]
        await other.rollback()
    assert await append(conn, job, 1) == 3


async def test_events_of_the_time_before_keep_their_order(conn: Connection) -> None:
    """The migration's update of rows that were counted from 1 on."""
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)
    await conn.execute("select queue_pg.fail(%s, 1, '{}', false)", (job,))
    # As it was: the failure was number 1, and nothing told of the start.
    await conn.execute("delete from queue_pg.job_events where seq = 2")
    await conn.execute("update queue_pg.job_events set seq = seq - 2")
    await conn.execute("update queue_pg.finished_jobs set last_event_seq = 1, logged_token = null")
    migration = (await asyncio.to_thread(_migration)).split("-- Nullable")[0]
    await conn.execute(migration.encode())
    await conn.execute("update queue_pg.finished_jobs set logged_token = lease_token where lease_token > 0")
    assert await types(conn, job) == ["submitted", "failed"]


def _migration() -> str:
    from queue_pg.schema import migrations

    return next(each.text for each in migrations() if each.name == "0005_events")


# --- who hears of it --------------------------------------------------------------------------------------------------


@pytest.fixture
async def heard(conn: Connection, dsn: str) -> Any:
    """A function that returns what was sent since it was called last."""
    async with await Connection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen queue_pg_events")
        await listener.execute("listen queue_pg_transitions")
        await listener.execute("listen queue_pg_due")

        async def since() -> list[tuple[str, str]]:
            await conn.execute("notify queue_pg_due, 'end'")
            found: list[tuple[str, str]] = []
            async for note in listener.notifies(timeout=20):
                if note.payload == "end":
                    break
                found.append((note.channel, note.payload))
            return found

        yield since


async def test_nobody_is_told_unless_somebody_follows(conn: Connection, clock: Clock, heard: Any) -> None:
    async def life(job: UUID) -> None:
        await claim(conn)
        await append(conn, job, 1)
        await conn.execute("select queue_pg.fail(%s, 1, '{}', delay => '1 minute')", (job,))
        clock.advance(61)
        await conn.execute("select queue_pg.promote()")
        await claim(conn)
        await conn.execute("select queue_pg.complete(%s, 2)", (job,))

    await life(await one(conn, "select queue_pg.submit('k')"))
    assert await heard() == []
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute("select queue_pg.follow(array[%s::uuid])", (job,))
    await life(job)
    assert await heard() == [("queue_pg_events", str(job))] * 6
    job = await one(conn, "select queue_pg.submit('k')")
    await conn.execute("select queue_pg.follow(array[%s::uuid])", (job,))
    await conn.execute("select queue_pg.configure(notify => false)")
    await life(job)
    assert await heard() == []


async def test_a_follower_misses_nothing_of_a_writer_who_was_first(conn: Connection, dsn: str, heard: Any) -> None:
    """The mark waits for the writer's commit, so what is stored before it is there to be read after it."""
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)
    async with await Connection.connect(dsn) as writer, await Connection.connect(dsn, autocommit=True) as reader:
        await append(writer, job, 1)
        following = asyncio.create_task(reader.execute("select queue_pg.follow(array[%s::uuid])", (job,)))
        while not await one(
            conn,
            "select coalesce((select wait_event_type = 'Lock' from pg_stat_activity where pid = %s), false)",
            reader.info.backend_pid,
        ):
            await asyncio.wait({following}, timeout=0.01)
        await writer.commit()
        await following
    assert await types(conn, job) == ["submitted", "started", "log"]


async def told(heard: Any) -> list[dict[str, Any]]:
    return [json.loads(payload) for channel, payload in await heard() if channel == "queue_pg_transitions"]


async def test_observers_are_told_every_transition(conn: Connection, clock: Clock, heard: Any) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) values ('before')")
    assert await told(heard) == []
    assert await one(conn, "select queue_pg.observe('me')") is True
    job = await one(conn, "select queue_pg.submit('k', delay => '1 minute')")
    clock.advance(61)
    await conn.execute("select queue_pg.promote()")
    claimed = await rows(conn, "select id from queue_pg.claim('w', '{default}', kinds => '{k}')")
    assert claimed == [(job,)]
    await append(conn, job, 1)
    await conn.execute('select queue_pg.fail(%s, 1, \'{"code": "bad"}\', retry => false)', (job,))
    await conn.execute("select queue_pg.retry(%s)", (job,))
    await conn.execute("select queue_pg.claim('w', '{default}', kinds => '{k}')")
    await conn.execute("select queue_pg.complete(%s, 2)", (job,))
    heard_of = await told(heard)
    assert {each["id"] for each in heard_of} == {str(job)}
    assert [(each["type"], each["seq"]) for each in heard_of] == [
        (event[2], event[0]) for event in await events(conn, job) if event[2] != "log"
    ]
    assert heard_of[3]["code"] == "bad"
    assert {(each["org"], each["queue"], each["kind"]) for each in heard_of} == {("default", "default", "k")}
    await conn.execute("select queue_pg.observe('you')")
    await conn.execute("select queue_pg.unobserve('me')")
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    assert len(await told(heard)) == 1
    await conn.execute("select queue_pg.unobserve('you')")
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    assert await told(heard) == []


async def test_observers_that_vanished_are_forgotten(conn: Connection, clock: Clock, heard: Any) -> None:
    await conn.execute("select queue_pg.observe('gone')")
    clock.advance(31)
    await conn.execute("select queue_pg.maintain_history()")
    await conn.execute("insert into queue_pg.jobs (kind) values ('k')")
    assert await told(heard) == []
    await conn.execute("select queue_pg.configure(notify => false)")
    assert await one(conn, "select queue_pg.observe('me')") is False


async def test_the_longest_names_fit_into_a_notification(conn: Connection, heard: Any) -> None:
    await conn.execute("select queue_pg.observe('me')")
    odd = "\x01" * 200
    await conn.execute("insert into queue_pg.jobs (kind, queue, org) values (%s, %s, %s)", (odd, odd, odd))
    await conn.execute("select queue_pg.claim(%s, array[%s])", ("\x01" * 3000, odd))
    job = await one(conn, "select id from queue_pg.jobs")
    await conn.execute("select queue_pg.fail(%s, 1, %s, false)", (job, json.dumps({"code": "\x01" * 3000})))
    assert [each["type"] for each in await told(heard)] == ["submitted", "started", "failed"]


async def test_a_bulk_of_jobs_is_not_observed_job_by_job_when_nobody_does(conn: Connection, heard: Any) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 100)")
    assert await heard() == []


async def test_an_event_before_the_first_partition_is_kept(conn: Connection, clock: Clock) -> None:
    clock.advance(40 * 86_400)  # nobody maintained meanwhile
    job = await one(conn, "select queue_pg.submit('k')")
    await claim(conn)
    await append(conn, job, 1)
    await conn.execute("select queue_pg.maintain_history()")
    await append(conn, job, 1)
    assert await types(conn, job) == ["submitted", "started", "log", "log"]


async def test_a_row_at_the_end_of_its_range_stops_nobody(conn: Connection) -> None:
    await conn.execute(
        "insert into queue_pg.jobs (kind, last_event_seq, appended_events) values ('odd', 1000000000, 2147483647),"
        " ('odd', 0, -5), ('plain', 0, null)"
    )
    held = await rows(conn, "select id from queue_pg.claim('w', '{default}', max_jobs => 3)")
    ids = [row[0] for row in held]
    answers = await rows(
        conn,
        "select accepted"
        " from queue_pg.append_events(%s::uuid[], '{1,1,1}', '{a,a,a}', array['{}', '{}', '{}']::jsonb[])",
        ids,
    )
    assert answers == [(True,)] * 3
    with pytest.raises(errors.CheckViolation):
        await conn.execute("select queue_pg.configure(max_events => 0)")
