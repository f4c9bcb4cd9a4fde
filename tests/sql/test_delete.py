"""Deleting jobs: what goes with them, what must not be left hanging, and beside others."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection

# Every table that names the job by a column of its own.
TRACES = """
select t.what, t.rows from (
  select 'finished_jobs', count(*) from queue_pg.finished_jobs where id = %(id)s
  union all select 'jobs', count(*) from queue_pg.jobs where id = %(id)s
  union all select 'job_events', count(*) from queue_pg.job_events where job_id = %(id)s
  union all select 'job_steps', count(*) from queue_pg.job_steps where job_id = %(id)s
  union all select 'job_signals', count(*) from queue_pg.job_signals where job_id = %(id)s
  union all select 'stepped_jobs', count(*) from queue_pg.stepped_jobs where job_id = %(id)s
  union all select 'artifacts', count(*) from queue_pg.artifacts where job_id = %(id)s
  union all select 'artifact_totals', count(*) from queue_pg.artifact_totals where job_id = %(id)s
  union all select 'dependencies', count(*) from queue_pg.dependencies where child_id = %(id)s
  union all select 'unique_keys', count(*) from queue_pg.unique_keys where job_id = %(id)s
  union all select 'cache_entries', count(*) from queue_pg.cache_entries where answer_id = %(id)s or job_id = %(id)s
) t (what, rows) where t.rows > 0
"""


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    row = await (await conn.execute(statement, args)).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


async def submit(conn: Connection, **fields: Any) -> UUID:
    named = "".join(f", {name} => %s" for name in fields)
    made: UUID = await one(conn, f"select queue_pg.submit('k'{named})", *fields.values())
    return made


async def claim(conn: Connection) -> int:
    token: int = await one(conn, "select lease_token from queue_pg.claim('w', '{default}')")
    return token


async def complete(conn: Connection, job: UUID, result: str = "1") -> None:
    await conn.execute("select queue_pg.complete(%s, %s, %s::jsonb)", (job, await claim(conn), result))


async def delete(conn: Connection, job: UUID | None, cancel: bool = False) -> None:
    await conn.execute("select queue_pg.delete(%s, %s)", (job, cancel))


async def traces(conn: Connection, job: UUID) -> dict[str, int]:
    return dict(await (await conn.execute(TRACES, {"id": job})).fetchall())


async def refusal(conn: Connection, job: UUID | None) -> tuple[str | None, dict[str, Any]]:
    with pytest.raises(psycopg.Error) as refused:
        await delete(conn, job)
    return refused.value.sqlstate, json.loads(refused.value.diag.message_detail or "")


async def test_all_that_belongs_to_it_goes(conn: Connection, clock: Clock) -> None:
    parent = await submit(conn)
    await complete(conn, parent)
    job = await submit(conn, unique_key="once", depends_on=json.dumps([str(parent)]))
    token = await claim(conn)
    await conn.execute(
        "select queue_pg.append_events(array[%s::uuid], array[%s::bigint], '{log}', array['{}'::jsonb])",
        (job, token),
    )
    await conn.execute("select queue_pg.save_step(%s, %s, 'a', '1')", (job, token))
    await conn.execute("select queue_pg.signal(%s, 'go', '1')", (job,))
    await conn.execute("select queue_pg.put_artifact(%s, 'a.txt', 'text'::bytea, lease_token => %s)", (job, token))
    await conn.execute("select queue_pg.fail(%s, %s, '{}', false)", (job, token))
    before = await traces(conn, job)
    assert set(before) >= {"finished_jobs", "job_events", "job_steps", "stepped_jobs", "job_signals", "artifacts",
                           "dependencies", "unique_keys"}  # fmt: skip
    await delete(conn, job)
    # Artifacts are not to be seen from now on; maintenance removes them.
    assert set(await traces(conn, job)) == {"artifacts", "artifact_totals"}
    assert await one(conn, "select count(*) from queue_pg.list_artifacts(%s)", job) == 0
    await conn.execute("select queue_pg.sweep_artifacts()")
    assert await traces(conn, job) == {}
    clock.advance(2 * 3600)
    await conn.execute("select queue_pg.sweep_artifacts()")
    assert await one(conn, "select count(*) from queue_pg.chunks") == 0
    # The parent is as it was, and so are the counters.
    assert await one(conn, "select state::text from queue_pg.job(%s)", parent) == "completed"
    assert await one(conn, "select completed, failed from queue_pg.queue_stats()") == (1, 0)
    # The key is free for new work.
    assert await submit(conn, unique_key="once") != job


@pytest.mark.parametrize("state", ["scheduled", "waiting", "queued", "running"])
async def test_an_unfinished_one_is_refused_unless_it_is_to_be_cancelled(conn: Connection, state: str) -> None:
    if state == "waiting":
        parent = await submit(conn, queue="other")
        job = await submit(conn, depends_on=json.dumps([str(parent)]))
    else:
        job = await submit(conn, **({"delay": "1 hour"} if state == "scheduled" else {}))
    token = await claim(conn) if state == "running" else 0
    assert await refusal(conn, job) == (
        "QP002",
        {"id": str(job), "action": "delete", "state": state, "reason": f"it is {state}; cancel it first"},
    )
    assert await one(conn, "select state::text from queue_pg.job(%s)", job) == state
    await delete(conn, job, cancel=True)
    assert await traces(conn, job) == {}
    if state == "running":
        finish = "select state from queue_pg.finish(array[%s::uuid], array[%s::bigint], '{complete}')"
        assert await one(conn, finish, job, token) is None
    assert await refusal(conn, job) == ("QP001", {"id": str(job)})


@pytest.mark.parametrize("cancel", [False, True])
async def test_what_is_not_there(conn: Connection, cancel: bool) -> None:
    for unknown in (uuid4(), None):
        with pytest.raises(psycopg.Error) as refused:
            await delete(conn, unknown, cancel)
        assert refused.value.sqlstate == "QP001"


async def test_a_parent_is_kept_while_a_child_waits(conn: Connection) -> None:
    first, second = await submit(conn), await submit(conn)
    await complete(conn, first, '{"text": "hello"}')
    child = await one(
        conn,
        "select queue_pg.submit('k', '{\"say\": \"{{ parents.a.output.text }}\"}', depends_on => %s)",
        json.dumps([{"job": str(first), "name": "a"}, {"job": str(second), "name": "b"}]),
    )
    state, about = await refusal(conn, first)
    assert (state, about["state"]) == ("QP002", "completed")
    acted = "select changed, skipped from queue_pg.act_on_jobs('delete', '{\"state\": \"completed\"}')"
    assert await one(conn, acted) == (0, {"awaited": 1})
    await complete(conn, second)
    await delete(conn, first)
    assert await one(conn, "select payload from queue_pg.job(%s)", child) == {"say": "hello"}
    await complete(conn, child)
    # The child goes on naming a parent that is forgotten.
    assert await one(conn, "select parent_id from queue_pg.dependencies where name = 'a'") == first


async def test_a_task_and_its_subtasks(conn: Connection) -> None:
    task = await one(conn, "select queue_pg.submit_task('anything', subtask_queue => 'default')")
    cursor = await conn.execute("select id from queue_pg.jobs where parent_id = %s order by id", (task,))
    subtasks = [row[0] for row in await cursor.fetchall()]
    await complete(conn, subtasks[0])
    assert (await refusal(conn, subtasks[0]))[0] == "QP002"
    for subtask in subtasks[1:]:
        await complete(conn, subtask)
    assert await one(conn, "select state::text, result from queue_pg.job(%s)", task) == ("completed", [1, 1, 1])
    await delete(conn, task)
    assert await traces(conn, task) == {}
    acted = "select changed from queue_pg.act_on_jobs('delete', jsonb_build_object('parent_id', %s::text))"
    assert await one(conn, acted, str(task)) == 3
    assert await one(conn, "select count(*) from queue_pg.all_jobs") == 0


async def test_a_batch_goes_on_counting_it(conn: Connection) -> None:
    batch = await one(conn, "select queue_pg.create_batch('import')")
    jobs = [await submit(conn, batch_id=batch) for _ in range(2)]
    await complete(conn, jobs[0])
    await delete(conn, jobs[0])
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    await complete(conn, jobs[1])
    await conn.execute("select queue_pg.maintain()")
    assert await one(conn, "select state, total, completed, unfinished from queue_pg.batch(%s)", batch) == (
        "completed", 2, 2, 0,
    )  # fmt: skip


async def test_the_cache_forgets_its_answer(conn: Connection) -> None:
    job = await submit(conn, cache=True)
    await complete(conn, job)
    answered = await submit(conn, cache=True)
    assert await one(conn, "select cached_from from queue_pg.job(%s)", answered) == job
    await delete(conn, job)
    assert await traces(conn, job) == {}
    assert await one(conn, "select count(*) from queue_pg.cache_entries") == 0
    fresh = await submit(conn, cache=True)
    assert await one(conn, "select state::text from queue_pg.job(%s)", fresh) == "queued"


async def test_those_that_share_its_work_are_not_left_waiting(conn: Connection) -> None:
    does = await submit(conn, cache=True)
    shares = await submit(conn, cache=True)
    await delete(conn, does, cancel=True)
    assert await one(conn, "select state::text from queue_pg.job(%s)", shares) == "queued"
    await complete(conn, shares)
    assert await one(conn, "select state::text from queue_pg.job(%s)", shares) == "completed"


async def test_one_that_is_answered_late_does_the_work_itself(conn: Connection, dsn: str) -> None:
    does = await submit(conn, cache=True)
    shares = await submit(conn, cache=True)
    async with await Connection.connect(dsn) as other:
        # Whoever holds the entry keeps the end of the job from being settled.
        await other.execute("select from queue_pg.cache_entries for share")
        await complete(conn, does)
        assert await one(conn, "select state::text from queue_pg.job(%s)", shares) == "waiting"
        await delete(conn, does)
        await other.rollback()
    await conn.execute("select queue_pg.maintain()")
    assert await one(conn, "select state::text from queue_pg.job(%s)", shares) == "queued"


async def test_two_who_delete_it_at_once(conn: Connection, dsn: str) -> None:
    for _ in range(10):
        job = await submit(conn)
        await complete(conn, job)

        async def attempt(job: UUID = job) -> str:
            async with await Connection.connect(dsn, autocommit=True) as own:
                try:
                    await delete(own, job)
                except psycopg.Error as refused:
                    return refused.sqlstate or ""
                return "deleted"

        assert sorted(await asyncio.gather(attempt(), attempt(), attempt())) == ["QP001", "QP001", "deleted"]
    assert await one(conn, "select completed from queue_pg.queue_stats()") == 0


async def test_beside_one_who_retries_it(conn: Connection, dsn: str) -> None:
    for _ in range(20):
        job = await submit(conn)
        await conn.execute("select queue_pg.cancel(%s)", (job,))

        async def attempt(statement: str, job: UUID = job) -> bool:
            async with await Connection.connect(dsn, autocommit=True) as own:
                try:
                    await own.execute(statement, (job,))
                except psycopg.Error as refused:
                    if refused.sqlstate not in ("QP001", "QP002"):
                        raise
                    return False
                return True

        deleted, retried = await asyncio.gather(
            attempt("select queue_pg.delete(%s)"), attempt("select queue_pg.retry(%s)")
        )
        assert deleted is not retried
        assert await one(conn, "select count(*) from queue_pg.jobs") == int(retried)
        await conn.execute("select queue_pg.delete(id, cancel => true) from queue_pg.jobs")
    assert await one(conn, "select queued, cancelled from queue_pg.queue_stats()") == (0, 0)


async def test_many_events_are_deleted_in_several_bites(conn: Connection) -> None:
    jobs = [await submit(conn) for _ in range(3)]
    for job in jobs:
        await conn.execute("select queue_pg.cancel(%s)", (job,))
    await conn.execute("update queue_pg.finished_jobs set last_event_seq = 60000")
    first = await one(conn, "select changed, last_id from queue_pg.act_on_jobs('delete', '{\"all\": true}')")
    assert first == (1, jobs[0])
    rest = "select sum(changed) from queue_pg.act_on_jobs('delete', '{\"all\": true}', after => %s)"
    assert await one(conn, rest, jobs[0]) == 1
