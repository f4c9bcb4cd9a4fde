"""Actions on many jobs: which they take, in bites, beside others, and what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

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


async def act(conn: Connection, action: str, wanted: Any, **options: Any) -> dict[str, Any]:
    named = "".join(f", {name} => %s" for name in options)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"select * from queue_pg.act_on_jobs(%s, %s::jsonb{named})",
            (action, json.dumps(wanted), *options.values()),
        )
        row = await cursor.fetchone()
    assert row is not None
    return row


async def done(conn: Connection, action: str, wanted: Any, **options: Any) -> tuple[int, int, dict[str, int]]:
    """The whole action, bite by bite."""
    matched = changed = bites = 0
    skipped: dict[str, int] = {}
    after = as_of = None
    while True:
        bite = await act(conn, action, wanted, **options, after=after, as_of=as_of)
        bites += 1
        matched, changed = matched + bite["matched"], changed + bite["changed"]
        for reason, count in bite["skipped"].items():
            skipped[reason] = skipped.get(reason, 0) + count
        after, as_of = bite["last_id"], bite["as_of"]
        if after is None:
            return matched, changed, skipped
        assert bites < 1000


async def fail(conn: Connection, *jobs: UUID, code: str = "boom") -> None:
    """Fails these jobs, which are all that is queued."""
    await conn.execute("select queue_pg.claim('w', array(select distinct queue from queue_pg.jobs), max_jobs => 10000)")
    await conn.execute(
        "select queue_pg.fail(j.id, j.lease_token, jsonb_build_object('code', %s::text), false)"
        " from queue_pg.jobs j where j.id = any (%s)",
        (code, list(jobs)),
    )


async def states(conn: Connection) -> dict[str, int]:
    cursor = await conn.execute("select state::text, count(*) from queue_pg.all_jobs group by 1")
    return dict(await cursor.fetchall())


async def consistent(conn: Connection) -> None:
    """The counters are what is there."""
    cursor = await conn.execute(
        "select q.queue from queue_pg.queue_stats(null) q where (q.completed, q.failed, q.cancelled) <> ("
        "select count(*) filter (where f.state = 'completed'), count(*) filter (where f.state = 'failed'),"
        " count(*) filter (where f.state = 'cancelled') from queue_pg.finished_jobs f"
        " where f.org = q.org and f.queue = q.queue)"
    )
    assert await cursor.fetchall() == []


async def test_replaying_what_failed_with_one_code(conn: Connection) -> None:
    timed_out = [await submit(conn, queue="mail") for _ in range(3)]
    await fail(conn, *timed_out, code="timeout")
    other = await submit(conn, queue="mail")
    await fail(conn, other)
    elsewhere = await submit(conn, queue="sms")
    await fail(conn, elsewhere, code="timeout")
    wanted = {"state": "failed", "queue": "mail", "error_code": "timeout"}
    assert await done(conn, "retry", wanted, dry_run=True) == (3, 0, {})
    assert await states(conn) == {"failed": 5}
    assert await done(conn, "retry", wanted, max_attempts=7) == (3, 3, {})
    cursor = await conn.execute("select id, state::text, attempt, max_attempts from queue_pg.jobs order by id")
    assert await cursor.fetchall() == [(job, "queued", 0, 7) for job in timed_out]
    assert await done(conn, "retry", wanted) == (0, 0, {})
    await consistent(conn)


async def test_bites_go_on_where_they_stopped(conn: Connection) -> None:
    jobs = [await submit(conn) for _ in range(25)]
    first = await act(conn, "cancel", {"queue": "default"}, max_jobs=10)
    assert (first["matched"], first["changed"], first["last_id"]) == (10, 10, jobs[9])
    assert await done(conn, "cancel", {"queue": "default"}, max_jobs=7) == (15, 15, {})
    assert await states(conn) == {"cancelled": 25}
    await consistent(conn)
    for action, options in (("retry", {}), ("cancel", {}), ("delete", {})):
        wanted = {"state": "cancelled"} if action != "cancel" else {"all": True}
        assert await done(conn, action, wanted, max_jobs=4, **options) == (25, 25, {})
    assert await states(conn) == {}
    await consistent(conn)


async def test_what_was_submitted_meanwhile_is_left_alone(conn: Connection) -> None:
    for _ in range(4):
        await submit(conn)
    first = await act(conn, "cancel", {"all": True}, max_jobs=3)
    late = await submit(conn)
    rest = await act(conn, "cancel", {"all": True}, max_jobs=3, after=first["last_id"], as_of=first["as_of"])
    assert (rest["changed"], rest["last_id"]) == (1, None)
    assert await one(conn, "select id from queue_pg.jobs") == late


async def test_one_that_fails_again_is_not_retried_twice(conn: Connection) -> None:
    jobs = [await submit(conn) for _ in range(4)]
    await fail(conn, *jobs)
    first = await act(conn, "retry", {"state": "failed"}, max_jobs=2)
    await fail(conn, *jobs[:2])
    rest = await act(conn, "retry", {"state": "failed"}, max_jobs=2, after=first["last_id"], as_of=first["as_of"])
    assert rest["changed"] == 2
    assert await states(conn) == {"failed": 2, "queued": 2}


@pytest.mark.parametrize("name", ["queue", "kind", "tag", "batch_id", "parent_id", "unique_key", "rerun_of"])
@pytest.mark.parametrize("ended", [False, True])
async def test_each_filter(conn: Connection, name: str, ended: bool) -> None:
    jobs = [await submit(conn) for _ in range(3)]
    value: Any = "mine"
    if name in ("batch_id", "parent_id", "rerun_of"):
        value = str(jobs[0])
    stored = "{mine}" if name == "tag" else value
    column = "tags" if name == "tag" else name
    await conn.execute(f"update queue_pg.jobs set {column} = %s where id = %s", (stored, jobs[1]))
    if ended:
        await conn.execute("select queue_pg.cancel(id) from queue_pg.jobs")
    result = await done(conn, "delete" if ended else "cancel", {name: value})
    assert result == (1, 1, {})
    expected = {"cancelled": 2} if ended else {"cancelled": 1, "queued": 2}
    assert await states(conn) == expected


async def test_by_the_time_of_submission(conn: Connection, clock: Clock) -> None:
    jobs: list[UUID] = []
    moments: list[str] = []
    for _ in range(3):
        moments.append((await one(conn, "select queue_pg.now()")).isoformat())
        jobs.append(await submit(conn))
        clock.advance(60)
    assert await done(conn, "cancel", {"created_before": moments[1]}) == (1, 1, {})
    assert await done(conn, "cancel", {"created_after": moments[2], "created_before": moments[2]}) == (0, 0, {})
    assert await done(conn, "cancel", {"created_after": moments[2]}) == (1, 1, {})
    assert await one(conn, "select id from queue_pg.jobs") == jobs[1]


async def test_cancel_takes_every_unfinished_state(conn: Connection) -> None:
    running = await submit(conn)
    await conn.execute("select queue_pg.claim('w', '{default}')")
    await submit(conn, depends_on=json.dumps([str(running)]))
    await submit(conn, delay="1 hour")
    await submit(conn)
    assert await done(conn, "cancel", {"state": "running"}, reason="enough") == (1, 1, {})
    error = await one(conn, "select error from queue_pg.job(%s)", running)
    assert error == {"code": "cancelled", "message": "enough"}
    # The child went with its parent.
    assert await states(conn) == {"cancelled": 2, "scheduled": 1, "queued": 1}
    assert await done(conn, "cancel", {"all": True}) == (2, 2, {})
    await consistent(conn)


async def test_another_priority(conn: Connection) -> None:
    jobs = [await submit(conn, priority=priority) for priority in (0, 5, 0)]
    assert await done(conn, "reprioritize", {"queue": "default"}, priority=5) == (3, 2, {"same_priority": 1})
    cursor = await conn.execute("select priority from queue_pg.jobs")
    assert await cursor.fetchall() == [(5,)] * 3
    events = await conn.execute("select seq, type, data from queue_pg.events(%s)", (jobs[2],))
    assert (await events.fetchall())[1] == (2, "reprioritized", {"attempt": 0, "was": 0, "priority": 5})


async def test_a_task_and_its_subtasks_are_retried_once(conn: Connection) -> None:
    task = await one(conn, "select queue_pg.submit_task('anything')")
    await conn.execute("select queue_pg.claim('w', '{work_queue}', max_jobs => 10)")
    await conn.execute(
        "select queue_pg.finish(array(select id from queue_pg.jobs where state = 'running'),"
        " array(select lease_token from queue_pg.jobs where state = 'running'), '{discard,discard,discard}')"
    )
    assert (await states(conn))["failed"] == 4
    assert await done(conn, "retry", {"state": "failed"}) == (4, 4, {})
    assert await states(conn) == {"waiting": 1, "queued": 3}
    assert await one(conn, "select parents_left from queue_pg.jobs where id = %s", task) == 3


async def test_organisations_are_kept_apart(conn: Connection) -> None:
    await submit(conn, org="a")
    await submit(conn, org="b")
    assert await done(conn, "cancel", {"all": True}) == (0, 0, {})
    assert await done(conn, "cancel", {"all": True}, org="a") == (1, 1, {})
    assert await done(conn, "cancel", {"all": True}, org=None) == (1, 1, {})


async def test_a_locked_job_is_said_and_others_are_done(conn: Connection, dsn: str) -> None:
    jobs = [await submit(conn) for _ in range(3)]
    async with await Connection.connect(dsn) as other:
        await other.execute("select from queue_pg.jobs where id = %s for update", (jobs[1],))
        assert await done(conn, "cancel", {"all": True}) == (3, 2, {"locked": 1})
        assert await one(conn, "select id from queue_pg.jobs") == jobs[1]
        await other.rollback()
    assert await done(conn, "cancel", {"all": True}) == (1, 1, {})


async def test_one_that_changes_while_it_is_waited_for(conn: Connection, dsn: str) -> None:
    jobs = [await submit(conn) for _ in range(2)]
    async with await Connection.connect(dsn) as other, await Connection.connect(dsn, autocommit=True) as own:
        await other.execute("update queue_pg.jobs set queue = 'elsewhere' where id = %s", (jobs[0],))
        pid = own.info.backend_pid
        acting = asyncio.create_task(act(own, "cancel", {"queue": "default"}))
        while not await one(conn, "select exists (select from pg_locks where pid = %s and not granted)", pid):
            if acting.done():
                break
        await other.commit()
        result = await acting
    # On a slow machine the wait was over first.
    assert (result["matched"], result["changed"]) == (2, 1)
    assert result["skipped"] in ({"gone": 1}, {"locked": 1})


async def test_beside_workers_every_job_ends_once(conn: Connection, dsn: str) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 200)")

    async def work() -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            while mine := await (
                await own.execute("select id, lease_token from queue_pg.claim('w', '{default}', max_jobs => 5)")
            ).fetchall():
                await own.execute(
                    "select queue_pg.finish(%s, %s, %s)",
                    ([job for job, _ in mine], [token for _, token in mine], ["complete"] * len(mine)),
                )

    async def steer() -> tuple[int, int, dict[str, int]]:
        async with await Connection.connect(dsn, autocommit=True) as own:
            return await done(own, "cancel", {"queue": "default"}, max_jobs=20)

    _, _, steered, again = await asyncio.gather(work(), work(), steer(), steer())
    found = await states(conn)
    assert set(found) <= {"completed", "cancelled"}
    assert sum(found.values()) == 200
    assert found.get("cancelled", 0) == steered[1] + again[1]
    await consistent(conn)


@pytest.mark.parametrize(
    ("action", "wanted", "options", "field"),
    [
        ("cancel", {}, {}, "filter"),
        ("cancel", None, {}, "filter"),
        ("cancel", [], {}, "filter"),
        ("cancel", {"state": None}, {}, "filter"),
        ("cancel", {"all": False}, {}, "filter.all"),
        ("cancel", {"all": True, "queue": "q"}, {}, "filter.all"),
        ("cancel", {"color": "red"}, {}, "filter.color"),
        ("cancel", {"state": "sleeping"}, {}, "filter.state"),
        ("cancel", {"state": "failed"}, {}, "filter.state"),
        ("retry", {"state": "completed"}, {}, "filter.state"),
        ("delete", {"state": "queued"}, {}, "filter.state"),
        ("cancel", {"queue": ""}, {}, "filter.queue"),
        ("cancel", {"queue": 1}, {}, "filter.queue"),
        ("cancel", {"queue": "q" * 256}, {}, "filter.queue"),
        ("cancel", {"batch_id": "x"}, {}, "filter.batch_id"),
        ("cancel", {"created_after": "yesterdayish"}, {}, "filter.created_after"),
        ("explode", {"all": True}, {}, "action"),
        (None, {"all": True}, {}, "action"),
        ("reprioritize", {"all": True}, {}, "priority"),
        ("reprioritize", {"all": True}, {"priority": 40_000}, "priority"),
        ("cancel", {"all": True}, {"priority": 1}, "priority"),
        ("retry", {"all": True}, {"max_attempts": 0}, "max_attempts"),
        ("cancel", {"all": True}, {"max_attempts": 1}, "max_attempts"),
        ("delete", {"all": True}, {"fresh": True}, "fresh"),
        ("retry", {"all": True}, {"reason": "x"}, "reason"),
    ],
)
async def test_wrong_input(conn: Connection, action: str, wanted: Any, options: dict[str, Any], field: str) -> None:
    await submit(conn)
    with pytest.raises(psycopg.Error) as refused:
        await act(conn, action, wanted, **options)
    assert refused.value.sqlstate == "QP005"
    assert json.loads(refused.value.diag.message_detail or "")["field"] == field
    assert await states(conn) == {"queued": 1}


async def test_a_filter_is_no_sql(conn: Connection) -> None:
    await submit(conn)
    for value in ("x' or true --", "%s", "%L", "$1", '"', "\\"):
        assert await done(conn, "cancel", {"queue": value}) == (0, 0, {})
        assert await done(conn, "retry", {"error_code": value}) == (0, 0, {})
    assert await states(conn) == {"queued": 1}
