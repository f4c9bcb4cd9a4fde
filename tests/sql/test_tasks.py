"""Tasks in SQL: the rules, plans under a lease, and a task that ends by the ends of its subtasks."""

from __future__ import annotations

import asyncio
import json
from itertools import permutations, product
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection

NOBODY = "018f0000-0000-7000-8000-000000000000"
AUTHENTICATION = [
    "Design user database schema",
    "Implement JWT token generation",
    "Create login/logout endpoints",
    "Add password hashing with bcrypt",
]
API = [
    "Define API endpoints and routes",
    "Implement request validation",
    "Add error handling middleware",
    "Write API documentation",
]


def others(description: str) -> list[str]:
    return [
        f"Research requirements for: {description}",
        f"Implement core logic for: {description}",
        f"Test and validate: {description}",
    ]


async def rows(conn: Connection, query: str, *args: Any) -> list[Any]:
    return await (await conn.execute(query, args)).fetchall()


async def value(conn: Connection, query: str, *args: Any) -> Any:
    [[found]] = await rows(conn, query, *args)
    return found


async def refusal(conn: Connection, query: str, args: Any) -> str | None:
    try:
        await conn.execute(query, args)
    except psycopg.Error as error:
        return error.sqlstate
    return None


async def submit(conn: Connection, description: str = "Sort the mail", **options: Any) -> UUID:
    names = "".join(f", {name} => %s" for name in options)
    return await value(conn, f"select queue_pg.submit_task(%s{names})", description, *options.values())


async def status(conn: Connection, task: UUID | str) -> str:
    return await value(conn, "select status from queue_pg.task(%s)", str(task))


async def subtasks(conn: Connection, task: UUID) -> list[UUID]:
    return [
        row[0]
        for row in await rows(
            conn, "select parent_id from queue_pg.dependencies where child_id = %s order by length(name), name", task
        )
    ]


async def claim(conn: Connection, queue: str = "work_queue", jobs: int = 1) -> list[tuple[UUID, int]]:
    return await rows(conn, "select id, lease_token from queue_pg.claim('w', array[%s], max_jobs => %s)", queue, jobs)


async def plan(conn: Connection, *names: str) -> UUID:
    """A task that a worker has planned."""
    task = await submit(conn, "Anything", planner="llm")
    [[job, token]] = await claim(conn, "default")
    assert job == task
    await conn.execute("select queue_pg.plan(%s, %s, %s)", (task, token, list(names)))
    return task


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("Add user authentication", AUTHENTICATION),
        ("AUTHENTICATION for the API", AUTHENTICATION),
        ("an api with Authentication", AUTHENTICATION),
        ("Build a REST API", API),
        ("rApId prototype", API),
        ("Sort the mail", others("Sort the mail")),
        ("  %s {{ parents.0.output }} \\ 'quoted' größe ", others("  %s {{ parents.0.output }} \\ 'quoted' größe ")),
        ("authenticate", others("authenticate")),
        ("x" * 10_000, others("x" * 10_000)),
    ],
)
async def test_the_three_splits(conn: Connection, description: str, expected: list[str]) -> None:
    task = await submit(conn, description)
    found, ids, state = (await rows(conn, "select subtasks, subtask_ids, status from queue_pg.task(%s)", str(task)))[0]
    assert (found, state) == (expected, "queued")
    assert ids == [f"{task}-{n}" for n in range(len(expected))]


async def test_each_subtask_is_a_job(conn: Connection) -> None:
    task = await submit(conn, "Build a REST API", name="api", priority=5, max_attempts=2, timeout="90 s", metadata="{}")
    found = await rows(
        conn,
        "select kind, queue, priority, state::text, payload, parent_id, max_attempts, timeout = '90 s'"
        " from queue_pg.jobs where parent_id is not null order by id",
    )
    payloads = [
        {"task_id": str(task), "subtask_id": f"{task}-{n}", "description": text, "priority": 5}
        for n, text in enumerate(API)
    ]
    assert found == [("subtask", "work_queue", 5, "queued", payload, task, 2, True) for payload in payloads]
    own = await rows(conn, "select kind, queue, state::text, metadata from queue_pg.jobs where id = %s", task)
    assert own == [("plan", "default", "waiting", {"task": {"name": "api"}})]
    seen = await rows(conn, "select name, description, parent_task_id, attempts from queue_pg.task(%s)", f"{task}-2")
    assert seen == [(f"{task}-2", API[2], task, 0)]
    assert await claim(conn, "default") == []


async def test_a_task_and_its_subtasks_are_one_transaction(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn) as other:
        task = await submit(other)
        assert len(await subtasks(other, task)) == 3
        assert await rows(conn, "select from queue_pg.jobs") == []
        await other.rollback()
    assert await rows(conn, "select from queue_pg.jobs") == []
    assert await rows(conn, "select from queue_pg.dependencies") == []


async def test_a_unique_key_names_one_task(conn: Connection) -> None:
    task = await submit(conn, unique_key="once")
    assert await submit(conn, unique_key="once") == task
    assert await value(conn, "select count(*) from queue_pg.jobs") == 4
    for changed in ({"description": "Other"}, {"planner": "llm"}, {"subtask_queue": "q"}):
        with pytest.raises(psycopg.Error) as refused:
            await submit(conn, **{"description": "Sort the mail", "unique_key": "once", **changed})
        assert refused.value.sqlstate == "QP004"
    for job, token in await claim(conn, jobs=9):
        await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    assert await submit(conn, unique_key="once") == task


async def test_a_task_for_later_starts_later(conn: Connection, clock: Clock) -> None:
    at = await value(conn, "select date_trunc('milliseconds', queue_pg.now() + interval '1 hour')")
    task = await submit(conn, run_at=at)
    assert await rows(conn, "select status, scheduled_for from queue_pg.task(%s)", str(task)) == [("scheduled", at)]
    assert await status(conn, f"{task}-0") == "scheduled"
    clock.advance(3601)
    await conn.execute("select queue_pg.maintain()")
    assert await status(conn, task) == "queued"
    await claim(conn)
    assert await rows(conn, "select status, scheduled_for from queue_pg.task(%s)", str(task)) == [("running", at)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"description": ""}, "description"),
        ({"description": " \n"}, "description"),
        ({"description": None}, "description"),
        ({"description": "x" * 10_001}, "description"),
        ({"planner": "guess"}, "planner"),
        ({"planner": None}, "planner"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"model": "m"}, "model"),
    ],
)
async def test_wrong_tasks_are_refused(conn: Connection, options: dict[str, Any], field: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        await submit(conn, **options)
    assert refused.value.sqlstate == "QP005"
    assert json.loads(refused.value.diag.message_detail or "")["field"] == field
    assert await rows(conn, "select from queue_pg.jobs") == []


@pytest.mark.parametrize(
    "task", ["", "x", "1", "{}", "-0", NOBODY, f"{NOBODY}-0", f"{NOBODY}-", f"urn:uuid:{NOBODY}", "\n"]
)
async def test_ids_of_nothing(conn: Connection, task: str) -> None:
    assert await rows(conn, "select * from queue_pg.task(%s)", task) == []


async def test_ids_of_subtasks(conn: Connection) -> None:
    task = await submit(conn)
    ids = await subtasks(conn, task)
    assert [await value(conn, "select queue_pg.find_task(%s)", f"{task}-{n}") for n in range(3)] == ids
    assert await value(conn, "select queue_pg.find_task(%s)", f"{task.hex.upper()}-1") == ids[1]
    for wrong in ("3", "00", "01", "-1", "1-1", "x", "99999", ""):
        assert await value(conn, "select queue_pg.find_task(%s)", f"{task}-{wrong}") is None


# --- how a task follows its subtasks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_it_completes_with_the_last_in_every_order(conn: Connection, order: tuple[int, ...]) -> None:
    task = await submit(conn)
    ids = await subtasks(conn, task)
    assert await status(conn, task) == "queued"
    tokens = dict(await claim(conn, jobs=3))
    for n in order:
        assert await status(conn, task) == "running"
        await conn.execute("select queue_pg.complete(%s, %s, to_jsonb(%s))", (ids[n], tokens[ids[n]], n * 10))
    seen = await rows(
        conn, "select status, output, error, attempts, cardinality(subtasks) from queue_pg.task(%s)", str(task)
    )
    assert seen == [("completed", [0, 10, 20], None, 0, 3)]
    assert await value(conn, "select array_agg(type order by seq) from queue_pg.events(%s)", task) == [
        "submitted",
        "completed",
    ]


async def test_it_completes_when_all_end_in_one_statement(conn: Connection) -> None:
    task = await submit(conn)
    held = await claim(conn, jobs=3)
    await conn.execute(
        "select queue_pg.finish(%s::uuid[], %s, '{complete,complete,complete}', array_fill('7'::jsonb, array[3]))",
        ([job for job, _ in held], [token for _, token in held]),
    )
    assert await rows(conn, "select status, output from queue_pg.task(%s)", str(task)) == [("completed", [7, 7, 7])]


@pytest.mark.parametrize(("failing", "outcome"), list(product(range(3), ["discard", "cancel", "expire"])))
async def test_it_fails_with_the_first_that_does_not_complete(
    conn: Connection, failing: int, outcome: str, clock: Clock
) -> None:
    task = await submit(conn)
    ids = await subtasks(conn, task)
    if outcome == "expire":
        await conn.execute("update queue_pg.jobs set expires_at = queue_pg.now() where id = %s", (ids[failing],))
        clock.advance(1)
        await conn.execute("select queue_pg.expire()")
        tokens = dict(await claim(conn, jobs=3))
    else:
        tokens = dict(await claim(conn, jobs=3))
        error = '{"code": "broken", "message": "it broke"}'
        finish = (
            "select state from queue_pg.finish(array[%s::uuid], array[%s::bigint], array[%s], null, array[%s::jsonb])"
        )
        await conn.execute(finish, (ids[failing], tokens[ids[failing]], outcome, error))
    found, error = (await rows(conn, "select status, error from queue_pg.task(%s)", str(task)))[0]
    assert found == "failed"
    assert error["code"] == ("subtask_cancelled" if outcome == "cancel" else "subtask_failed")
    assert (error["subtask_id"], error["job_id"]) == (f"{task}-{failing}", str(ids[failing]))
    assert error["subtask_code"] == ("expired" if outcome == "expire" else "broken")
    assert error["message"].startswith(f"subtask {task}-{failing} ")
    # The others go on.
    for n in {0, 1, 2} - {failing}:
        assert await status(conn, f"{task}-{n}") == "running"
        await conn.execute("select queue_pg.complete(%s, %s, to_jsonb(%s))", (ids[n], tokens[ids[n]], n))
        assert await status(conn, task) == "failed"


async def test_a_failed_attempt_is_no_end(conn: Connection, clock: Clock) -> None:
    task = await submit(conn)
    [[job, token]] = await claim(conn)
    await conn.execute("select queue_pg.fail(%s, %s, '{}')", (job, token))
    assert await status(conn, f"{task}-0") == "scheduled"
    assert await status(conn, task) == "running"
    clock.advance(700)
    await conn.execute("select queue_pg.maintain()")
    for job, token in await claim(conn, jobs=3):
        await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    assert await rows(conn, "select status, output from queue_pg.task(%s)", str(task)) == [
        ("completed", [None, None, None])
    ]


async def test_retry_takes_up_what_did_not_complete(conn: Connection) -> None:
    task = await submit(conn)
    ids = await subtasks(conn, task)
    tokens = dict(await claim(conn, jobs=2))
    await conn.execute("select queue_pg.complete(%s, %s, '0')", (ids[0], tokens[ids[0]]))
    await conn.execute("select queue_pg.fail(%s, %s, '{}', retry => false)", (ids[1], tokens[ids[1]]))
    assert await status(conn, task) == "failed"
    assert [await status(conn, f"{task}-{n}") for n in range(3)] == ["completed", "failed", "queued"]
    await conn.execute("select queue_pg.retry(%s, max_attempts => 7)", (task,))
    assert [await status(conn, f"{task}-{n}") for n in range(3)] == ["completed", "queued", "queued"]
    assert await value(conn, "select max_attempts from queue_pg.job(%s)", ids[1]) == 7
    assert await status(conn, task) == "running"
    for job, token in await claim(conn, jobs=3):
        await conn.execute("select queue_pg.complete(%s, %s, '1')", (job, token))
    assert await rows(conn, "select status, output, error from queue_pg.task(%s)", str(task)) == [
        ("completed", [0, 1, 1], None)
    ]
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute("select queue_pg.retry(%s)", (task,))
    assert refused.value.sqlstate == "QP002"


async def test_retry_of_a_task_whose_subtask_was_retried_before(conn: Connection) -> None:
    task = await plan(conn, "a", "b")
    [a, b] = await subtasks(conn, task)
    for job, token in await claim(conn, jobs=2):
        await conn.execute("select queue_pg.fail(%s, %s, '{}', retry => false)", (job, token))
    for job in (a, b):
        await conn.execute("select queue_pg.retry(%s)", (job,))
        [[_, token]] = await claim(conn)
        await conn.execute("select queue_pg.complete(%s, %s, '1')", (job, token))
        assert await status(conn, task) == "failed"
    await conn.execute("select queue_pg.retry(%s)", (task,))
    assert await rows(conn, "select status, output from queue_pg.task(%s)", str(task)) == [("completed", [1, 1])]


async def test_retry_needs_what_it_retries(conn: Connection) -> None:
    task = await submit(conn)
    [[job, token]] = await claim(conn)
    await conn.execute("select queue_pg.fail(%s, %s, '{}', retry => false)", (job, token))
    await conn.execute("delete from queue_pg.finished_jobs where id = %s", (job,))
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute("select queue_pg.retry(%s)", (task,))
    assert refused.value.sqlstate == "QP002"
    assert await status(conn, task) == "failed"


async def test_cancel_takes_the_subtasks_along(conn: Connection, dsn: str) -> None:
    task = await submit(conn)
    ids = await subtasks(conn, task)
    tokens = dict(await claim(conn, jobs=2))
    await conn.execute("select queue_pg.complete(%s, %s, '0')", (ids[0], tokens[ids[0]]))
    async with await Connection.connect(dsn, autocommit=True) as worker:
        await worker.execute("listen queue_pg_cancel")
        await conn.execute("select queue_pg.cancel(%s, 'not needed')", (task,))
        told = [notice.payload async for notice in worker.notifies(timeout=10, stop_after=1)]
    assert told == ["w"]
    assert [await status(conn, f"{task}-{n}") for n in range(3)] == ["completed", "cancelled", "cancelled"]
    errors = await rows(conn, "select error ->> 'message' from queue_pg.all_jobs where state = 'cancelled'")
    assert errors == [("not needed",)] * 3
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute("select queue_pg.complete(%s, %s)", (ids[1], tokens[ids[1]]))
    assert refused.value.sqlstate == "QP003"
    # Back again, with what had completed.
    await conn.execute("select queue_pg.retry(%s)", (task,))
    assert await status(conn, task) == "running"
    for job, token in await claim(conn, jobs=3):
        await conn.execute("select queue_pg.complete(%s, %s, '1')", (job, token))
    assert await rows(conn, "select status, output from queue_pg.task(%s)", str(task)) == [("completed", [0, 1, 1])]


async def test_cancel_of_a_batch_takes_subtasks_along(conn: Connection) -> None:
    batch = await value(conn, "select queue_pg.create_batch('b')")
    await conn.execute("select queue_pg.submit('plan', batch_id => %s)", (batch,))
    [[task, token]] = await claim(conn, "default")
    await conn.execute("select queue_pg.plan(%s, %s, '{a,b}')", (task, token))
    await conn.execute("select queue_pg.cancel_batch(%s)", (batch,))
    assert await rows(conn, "select state::text from queue_pg.all_jobs") == [("cancelled",)] * 3


async def test_a_child_of_a_task_gets_its_output(conn: Connection) -> None:
    task = await submit(conn)
    child = await value(
        conn,
        "select queue_pg.submit('k', '\"{{ parents.t.output[1] }}\"', depends_on => %s)",
        json.dumps([{"job": str(task), "name": "t"}]),
    )
    for job, token in await claim(conn, jobs=3):
        assert await status(conn, child) == "waiting"
        await conn.execute("select queue_pg.complete(%s, %s, '\"done\"')", (job, token))
    assert await rows(conn, "select state::text, payload from queue_pg.job(%s)", child) == [("queued", "done")]


async def test_what_is_too_much_is_not_put_together(conn: Connection) -> None:
    task = await submit(conn, "Build an API")
    for job, token in await claim(conn, jobs=4):
        await conn.execute("select queue_pg.complete(%s, %s, to_jsonb(repeat('x', 9000000)))", (job, token))
    found, error = (await rows(conn, "select status, error from queue_pg.task(%s)", str(task)))[0]
    assert (found, error["code"]) == ("failed", "output_error")
    assert "read them one by one" in error["message"]
    assert await status(conn, f"{task}-3") == "completed"


async def test_a_result_that_is_not_kept_any_more_is_not_made_up(conn: Connection) -> None:
    task = await submit(conn)
    ids = await subtasks(conn, task)
    tokens = dict(await claim(conn, jobs=3))
    await conn.execute("select queue_pg.complete(%s, %s)", (ids[1], tokens[ids[1]]))
    # As when its retention ends before the others have.
    await conn.execute("delete from queue_pg.finished_jobs where id = %s", [ids[1]])
    for job in (ids[0], ids[2]):
        await conn.execute("select queue_pg.complete(%s, %s)", (job, tokens[job]))
    [(found, error)] = await rows(conn, "select state::text, error from queue_pg.job(%s)", task)
    assert (found, error["code"]) == ("failed", "output_error")
    assert "the result of subtask-1 is not kept any more" in error["message"]


async def test_an_end_while_the_task_is_locked_is_told_later(conn: Connection, dsn: str) -> None:
    task = await submit(conn)
    held = await claim(conn, jobs=3)
    async with await Connection.connect(dsn) as application:
        await application.execute("select queue_pg.watch(array[%s::uuid])", (task,))
        for job, token in held:
            await conn.execute("select queue_pg.complete(%s, %s, '1')", (job, token))
        assert await status(conn, task) == "running"
    await conn.execute("select queue_pg.maintain()")
    assert await rows(conn, "select status, output from queue_pg.task(%s)", str(task)) == [("completed", [1, 1, 1])]


async def test_observers_are_told_the_numbers_that_readers_see(conn: Connection, dsn: str) -> None:
    async with await Connection.connect(dsn, autocommit=True) as observer:
        await observer.execute("listen queue_pg_transitions")
        await observer.execute("select queue_pg.observe('o')")
        task = await plan(conn, "one")
        [[job, token]] = await claim(conn)
        await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
        other = await submit(conn)
        for job, token in await claim(conn, jobs=3):
            await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
        await observer.execute("notify queue_pg_transitions, 'end'")
        told = []
        async for notice in observer.notifies(timeout=20):
            if notice.payload == "end":
                break
            told.append(json.loads(notice.payload))
    for each in (task, other):
        seen = await rows(conn, "select seq, type from queue_pg.events(%s)", each)
        assert [(note["seq"], note["type"]) for note in told if note["id"] == str(each)] == seen


# --- plans under a lease ----------------------------------------------------------------------------------------------


async def test_a_planned_task_waits_for_its_subtasks(conn: Connection) -> None:
    task = await submit(conn, "Anything", planner="llm", subtask_queue="mine", priority=2, max_attempts=3)
    assert (await status(conn, task), await subtasks(conn, task)) == ("queued", [])
    [[_, token]] = await claim(conn, "default")
    assert await status(conn, task) == "running"
    assert await value(conn, "select queue_pg.plan(%s, %s, '{a,b}', queue => 'mine')", task, token) == "waiting"
    assert await rows(conn, "select status, subtasks, attempts from queue_pg.task(%s)", str(task)) == [
        ("queued", ["a", "b"], 1)
    ]
    assert await rows(conn, "select lease_expires_at, worker_id, attempt from queue_pg.jobs where id = %s", task) == [
        (None, "w", 1)
    ]
    for job, token in await claim(conn, "mine", jobs=2):
        await conn.execute("select queue_pg.complete(%s, %s, '1')", (job, token))
    assert await rows(conn, "select status, output from queue_pg.task(%s)", str(task)) == [("completed", [1, 1])]
    events = await rows(conn, "select type, data from queue_pg.events(%s)", task)
    assert [name for name, _ in events] == ["submitted", "started", "planned", "completed"]
    assert events[2][1] == {"attempt": 1, "worker_id": "w", "subtasks": 2}


@pytest.mark.parametrize(
    ("kind", "said", "kept"),
    [
        ("plan", {"subtask_queue": "mine", "max_attempts": 7, "timeout_seconds": 2.5}, ("mine", 7, 2.5)),
        ("plan", {"subtask_queue": "", "max_attempts": 0, "timeout_seconds": 0}, ("work_queue", None, None)),
        ("plan", {"subtask_queue": 7, "max_attempts": "x", "timeout_seconds": "9"}, ("work_queue", None, None)),
        ("plan", {"subtask_queue": "x" * 201, "max_attempts": 1e300}, ("work_queue", None, None)),
        ("plan", {"timeout_seconds": 1e9}, ("work_queue", None, None)),
        ("plan", "no object", ("work_queue", None, None)),
        ("plan", ["mine"], ("work_queue", None, None)),
        ("other", {"subtask_queue": "mine", "max_attempts": 7, "timeout_seconds": 2.5}, ("work_queue", None, None)),
    ],
)
async def test_what_a_plan_does_not_say_the_task_does(
    conn: Connection, kind: str, said: Any, kept: tuple[Any, ...]
) -> None:
    task = await value(conn, "select queue_pg.submit(%s, %s::jsonb)", kind, json.dumps(said))
    own = {"subtasks": ["a"], "queue": "own", "max_attempts": 4, "timeout_seconds": 8}
    for plan, expected in (({"subtasks": ["a"]}, kept), (own, ("own", 4, 8))):
        [[job, token]] = await claim(conn, "default")
        assert job == task
        await conn.execute("begin")
        finish = "select queue_pg.finish_one(%s, %s, 'plan', %s, null, null)"
        await conn.execute(finish, (task, token, json.dumps(plan)))
        found = await rows(
            conn,
            "select queue, max_attempts, extract(epoch from timeout)::float8 from queue_pg.jobs where parent_id = %s",
            task,
        )
        assert found == [expected]
        await conn.execute("rollback")
        await conn.execute("select queue_pg.release(%s, %s)", (task, token))


async def test_a_plan_counts_once_and_only_under_the_lease(conn: Connection, clock: Clock) -> None:
    task = await submit(conn, planner="llm")
    [[_, first]] = await claim(conn, "default")
    clock.advance(60)
    await conn.execute("select queue_pg.reap()")
    [[_, second]] = await claim(conn, "default")
    stale = [(task, first), (task, second + 1)]
    for attempt in (*stale, (task, second), (task, second), *stale):
        refused = await refusal(conn, "select queue_pg.plan(%s, %s, '{a,b}')", attempt)
        assert refused in (None, "QP003")
    assert await value(conn, "select count(*) from queue_pg.jobs") == 3
    assert len(await subtasks(conn, task)) == 2


async def test_a_retry_of_planning_plans_anew(conn: Connection) -> None:
    task = await submit(conn, planner="llm")
    [[_, token]] = await claim(conn, "default")
    await conn.execute("select queue_pg.fail(%s, %s, '{}', retry => false)", (task, token))
    assert await status(conn, task) == "failed"
    await conn.execute("select queue_pg.retry(%s)", (task,))
    [[_, token]] = await claim(conn, "default")
    await conn.execute("select queue_pg.plan(%s, %s, '{a}')", (task, token))
    assert await status(conn, task) == "queued"


@pytest.mark.parametrize(
    ("result", "field"),
    [
        (None, "subtasks"),
        ("[]", "subtasks"),
        ('{"subtasks": []}', "subtasks"),
        ('{"subtasks": "a"}', "subtasks"),
        ('{"subtasks": [1]}', "subtasks[0]"),
        ('{"subtasks": ["a", " "]}', "subtasks[1]"),
        ('{"subtasks": ["a", null]}', "subtasks[1]"),
        (json.dumps({"subtasks": ["a"] * 101}), "subtasks"),
        (json.dumps({"subtasks": ["x" * 10_101]}), "subtasks[0]"),
        ('{"subtasks": ["a"], "queue": ""}', None),
        ('{"subtasks": ["a"], "max_attempts": 0}', None),
        ('{"subtasks": ["a"], "max_attempts": "x"}', None),
        ('{"subtasks": ["a"], "timeout_seconds": -1}', None),
    ],
)
async def test_wrong_plans_are_refused(conn: Connection, result: str | None, field: str | None) -> None:
    task = await submit(conn, planner="llm")
    [[_, token]] = await claim(conn, "default")
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute(
            "select queue_pg.finish(array[%s::uuid], array[%s::bigint], array['plan'], array[%s::jsonb])",
            (task, token, result),
        )
    if field is not None:
        assert refused.value.sqlstate == "QP005"
        assert json.loads(refused.value.diag.message_detail or "")["field"] == field
    assert (await status(conn, task), await subtasks(conn, task)) == ("running", [])


async def test_a_plan_of_a_hundred(conn: Connection) -> None:
    task = await plan(conn, *[str(n) for n in range(100)])
    for job, token in await claim(conn, jobs=100):
        await conn.execute(
            "select queue_pg.complete(%s, %s, (select payload -> 'description' from queue_pg.job(%s)))",
            (job, token, job),
        )
    assert await value(conn, "select output from queue_pg.task(%s)", str(task)) == [str(n) for n in range(100)]


async def test_a_planning_job_may_have_parents(conn: Connection) -> None:
    first = await value(conn, "select queue_pg.submit('k')")
    task = await value(
        conn,
        "select queue_pg.submit('plan', '{\"description\": \"{{ parents.0.output }}\"}', depends_on => %s)",
        json.dumps([str(first)]),
    )
    [[_, token]] = await claim(conn, "default")
    await conn.execute("select queue_pg.complete(%s, %s, '\"an API\"')", (first, token))
    [[job, token]] = await claim(conn, "default")
    assert job == task
    await conn.execute("select queue_pg.plan(%s, %s, '{a,b}')", (task, token))
    for job, token in await claim(conn, jobs=2):
        await conn.execute("select queue_pg.complete(%s, %s, '1')", (job, token))
    assert await rows(conn, "select status, output from queue_pg.task(%s)", str(task)) == [("completed", [1, 1])]


async def test_subtasks_may_be_planned_too(conn: Connection) -> None:
    task = await plan(conn, "a", "b")
    [[inner, token]] = await claim(conn)
    await conn.execute("select queue_pg.plan(%s, %s, '{x,y}')", (inner, token))
    assert await status(conn, inner) == "queued"
    assert await status(conn, task) == "running"
    [[job, token], *_] = await claim(conn)
    await conn.execute("select queue_pg.complete(%s, %s, '\"b\"')", (job, token))
    for job, token in await claim(conn, jobs=2):
        await conn.execute("select queue_pg.complete(%s, %s, '1')", (job, token))
    assert await rows(conn, "select status, output from queue_pg.task(%s)", str(task)) == [("completed", [[1, 1], "b"])]

    outer = await plan(conn, "a", "b")
    [[inner, token]] = await claim(conn)
    await conn.execute("select queue_pg.plan(%s, %s, '{x,y}')", (inner, token))
    await conn.execute("select queue_pg.cancel(%s)", (outer,))
    assert await rows(conn, "select from queue_pg.jobs") == []
    assert await status(conn, f"{inner}-1") == "cancelled"


async def test_subtasks_count_against_the_limit_of_their_task(conn: Connection) -> None:
    await conn.execute("select queue_pg.set_limit('key', 'tenant', max_running => 1)")
    await conn.execute("select queue_pg.submit('plan', limit_key => 'tenant', cost => 3)")
    [[task, token]] = await claim(conn, "default")
    await conn.execute("select queue_pg.plan(%s, %s, '{a,b}')", (task, token))
    # The task itself no longer counts, and of its subtasks one at a time runs.
    assert len(await claim(conn, jobs=2)) == 1
    assert await rows(conn, "select distinct limit_key::text, cost::integer from queue_pg.jobs") == [("tenant", 3)]


@pytest.mark.parametrize("planner", ["rules", "llm"])
async def test_rerun_plans_anew(conn: Connection, planner: str) -> None:
    if planner == "rules":
        task = await submit(conn, "Build an API", name="n", priority=4, max_attempts=2)
        expected = API
    else:
        task = await plan(conn, "a")
        expected = []
    await conn.execute("select queue_pg.cancel(%s)", (task,))
    again = await value(conn, "select id from queue_pg.rerun(%s)", task)
    assert await value(conn, "select rerun_of from queue_pg.job(%s)", again) == task
    seen = await rows(conn, "select status, subtasks, priority from queue_pg.task(%s)", str(again))
    assert seen == [("queued", expected, 4 if planner == "rules" else 0)]
    changed = await value(
        conn, 'select id from queue_pg.rerun(%s, payload_patch => \'{"description": "authentication"}\')', task
    )
    assert await value(conn, "select subtasks from queue_pg.task(%s)", str(changed)) == (
        AUTHENTICATION if planner == "rules" else []
    )


async def test_metadata_of_others_is_no_obstacle(conn: Connection) -> None:
    for metadata in ('{"task": 7}', '{"task": {"name": [1], "scheduled_for": "soon"}}', '{"task": {"name": null}}'):
        job = await value(conn, "select queue_pg.submit('k', metadata => %s)", metadata)
        assert await status(conn, job) == "queued"


async def test_edges_are_forgotten_with_their_task(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    await submit(conn)
    for job, token in await claim(conn, jobs=3):
        await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    clock.advance(2 * 3600)
    for _ in range(3):
        await conn.execute("select queue_pg.maintain_history()")
    assert await rows(conn, "select from queue_pg.dependencies") == []


# --- two at once ------------------------------------------------------------------------------------------------------

ACTIONS = {
    "complete a": "select queue_pg.complete(%(a)s, 1, '1')",
    "complete b": "select queue_pg.complete(%(b)s, 1, '2')",
    "fail b": "select queue_pg.fail(%(b)s, 1, '{}', retry => false)",
    "cancel a": "select count(*) from queue_pg.cancel(%(a)s)",
    "cancel task": "select count(*) from queue_pg.cancel(%(task)s)",
    "retry task": "select count(*) from queue_pg.retry(%(task)s)",
    "watch task": "select count(*) from queue_pg.watch(array[%(task)s::uuid])",
    "submit under task": "select queue_pg.submit('late', depends_on => jsonb_build_array(%(task)s))",
    "settle": "select queue_pg.settle()",
}


async def until_done_or_blocked(conn: Connection, pending: asyncio.Task[Any], pid: int) -> None:
    query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    while not pending.done() and await rows(conn, query, pid) != [(True,)]:
        await asyncio.wait({pending}, timeout=0.01)


async def check_follows(conn: Connection, task: UUID) -> None:
    """After a step of maintenance the task is what its subtasks are."""
    await conn.execute("select queue_pg.maintain()")
    assert await rows(conn, "select * from queue_pg.unsettled") == []
    states = [
        await value(conn, "select state::text from queue_pg.job(%s)", subtask) for subtask in await subtasks(conn, task)
    ]
    found = await status(conn, task)
    if found == "completed":
        assert set(states) == {"completed"}
    elif found in ("queued", "running"):
        assert not {"failed", "cancelled"} & set(states)
        assert set(states) != {"completed"}
    elif found == "cancelled":
        assert not {"queued", "running", "scheduled"} & set(states)
    else:
        assert found == "failed"


@pytest.mark.parametrize(("first", "second"), list(permutations(ACTIONS, 2)))
async def test_every_pair_leaves_the_task_as_its_subtasks_are(
    conn: Connection, dsn: str, first: str, second: str
) -> None:
    """The first holds its transaction open over the second; then both commit."""
    task = await plan(conn, "a", "b")
    [a, b] = await subtasks(conn, task)
    await claim(conn, jobs=2)
    if "retry task" in (first, second):
        # One that failed already, and whose other subtask lives.
        await conn.execute(ACTIONS["fail b"], {"b": b})
    ids = {"task": task, "a": a, "b": b}
    async with await Connection.connect(dsn) as one, await Connection.connect(dsn, autocommit=True) as other:
        if await refusal(one, ACTIONS[first], ids) in ("QP002", "QP003"):
            return
        pending = asyncio.create_task(refusal(other, ACTIONS[second], ids))
        await until_done_or_blocked(conn, pending, other.info.backend_pid)
        await one.commit()
        # Being told that the job is in another state by now is an answer; a deadlock is none.
        assert await pending in (None, "QP002", "QP003")
    await check_follows(conn, task)
    for job, token in await rows(conn, "select id, lease_token from queue_pg.jobs where state = 'running'"):
        await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    for job, token in await claim(conn, jobs=9):
        await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    await check_follows(conn, task)
    assert await status(conn, task) in ("completed", "failed", "cancelled")
