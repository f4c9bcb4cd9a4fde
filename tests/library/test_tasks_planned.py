"""Tasks from Python: submitted in five ways, read, listed, chained, cancelled and retried."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg import (
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    LeaseLost,
    NewJob,
    NewTask,
    Plan,
    Queue,
    SyncQueue,
    UniqueKeyConflict,
)
from queue_pg.tasks import Tasks
from queue_pg.testing import drain

NOBODY = "018f0000-0000-7000-8000-000000000000"
LATER = datetime(2999, 1, 1, tzinfo=UTC)


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as queue:
        yield queue


async def work(queue: Queue, name: str = "work_queue", *, fail: bool = False) -> UUID:
    """Run the next job of a queue to its end."""
    [job] = await queue.claim("w", [name])
    if fail:
        await queue.fail(job.id, job.lease_token, "it broke", retry=False)
    else:
        await queue.complete(job.id, job.lease_token, {"text": str(job.id)})
    return job.id


async def test_a_description_is_planned_at_once(queue: Queue) -> None:
    task = await queue.submit_task("Sort the mail")
    assert (task.status, task.description, task.prompt, task.name) == ("queued", "Sort the mail", None, None)
    assert task.subtasks == [
        f"{part}: Sort the mail"
        for part in ("Research requirements for", "Implement core logic for", "Test and validate")
    ]
    assert task.subtask_ids == [f"{task.id}-{n}" for n in range(3)]
    assert await queue.get_task(task.id) == task
    part = await queue.get_task(task.subtask_ids[1])
    assert (part.description, part.name, part.parent_task_id) == (task.subtasks[1], task.subtask_ids[1], task.id)
    assert part.job.payload == {
        "task_id": str(task.id),
        "subtask_id": task.subtask_ids[1],
        "description": task.subtasks[1],
        "priority": 0,
    }
    ids = [await work(queue)]
    assert (await queue.get_task(task.id)).status == "running"
    ids += [await work(queue), await work(queue)]
    assert await queue.result(task.id, timeout=10) == [{"text": str(each)} for each in ids]
    assert (await queue.get_task(task.id)).output == [{"text": str(each)} for each in ids]


@pytest.mark.parametrize(
    ("task", "kind", "payload"),
    [
        (NewTask(prompt="Hi"), "chat", {"prompt": "Hi"}),
        (NewTask(prompt="Hi", model="m"), "chat", {"prompt": "Hi", "model": "m"}),
        (
            NewTask(messages=[{"role": "user", "content": "Hi"}]),
            "chat",
            {"messages": [{"role": "user", "content": "Hi"}]},
        ),
        (NewTask(type="resize", payload={"n": [1]}), "resize", {"n": [1]}),
        (NewTask(type="resize"), "resize", {}),
        (
            NewTask(cmd=["sort", "-n"], input=[1], env={"A": "b"}, timeout_secs=5),
            "command",
            {"cmd": ["sort", "-n"], "input": [1], "env": {"A": "b"}, "timeout_secs": 5},
        ),
        (
            NewTask(description="Any", planner="llm", model="m", subtask_queue="q", max_attempts=2),
            "plan",
            {"description": "Any", "planner": "llm", "model": "m", "subtask_queue": "q", "max_attempts": 2},
        ),
    ],
)
async def test_the_other_ways(queue: Queue, task: NewTask, kind: str, payload: Any) -> None:
    made = await queue.submit_task(task)
    assert (made.job.kind, made.job.payload, made.status, made.subtasks) == (kind, payload, "queued", [])
    assert await queue.get_task(made.id) == made


async def test_what_any_task_may_have(queue: Queue) -> None:
    for way in ({"prompt": "Hi"}, {"description": "Any"}):
        task = NewTask(**way, name="greeting", queue="q", priority=7, scheduled_for=LATER, tags=["a"], max_attempts=2)
        task.metadata, task.timeout, task.traceparent = {"user": 7}, timedelta(seconds=9), "00-trace"
        made = await queue.submit_task(task)
        assert (made.name, made.scheduled_for, made.status) == ("greeting", LATER, "scheduled")
        job = made.job
        assert (job.queue, job.priority, job.tags, job.max_attempts) == ("q", 7, ["a"], 2)
        assert (job.timeout, job.traceparent, job.metadata["user"]) == (timedelta(seconds=9), "00-trace", 7)
    [part, *_] = (await queue.list_tasks(parent_task_id=made.id)).tasks
    assert (part.status, part.scheduled_for, part.job.queue) == ("scheduled", LATER, "work_queue")
    assert (part.job.priority, part.job.max_attempts, part.job.timeout) == (7, 2, timedelta(seconds=9))


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (NewTask(), "description, prompt, messages, type, cmd"),
        (NewTask(description="a", prompt="b"), "description, prompt"),
        (NewTask(type="a", cmd=["b"]), "type, cmd"),
        (NewTask(prompt="a", payload={}), "payload"),
        (NewTask(type="a", env={}), "env"),
        (NewTask(prompt="a", input=1), "input"),
        (NewTask(prompt="a", timeout_secs=1), "timeout_secs"),
        (NewTask(prompt="a", planner="llm"), "planner"),
        (NewTask(prompt="a", subtask_queue="q"), "subtask_queue"),
        (NewTask(type="a", model="m"), "model"),
        (NewTask(description="a", model="m"), "model"),
        (NewTask(description="a", planner="guess"), "planner"),
        (NewTask(description=" "), "description"),
        (NewTask(description="x" * 10_001), "description"),
        (NewTask(description="a\x00"), "payload.description"),
        (NewTask(description="a", subtask_queue="x" * 201), "subtask_queue"),
        (NewTask(description="a", parent_task_id=NOBODY), "parent_task_id"),
        (NewTask(prompt=""), "prompt"),
        (NewTask(prompt=7), "prompt"),  # type: ignore[arg-type]
        (NewTask(messages=[]), "messages"),
        (NewTask(messages="Hi"), "messages"),  # type: ignore[arg-type]
        (NewTask(messages=[{"content": "Hi"}]), "messages[0].role"),
        (NewTask(messages=["Hi"]), "messages[0]"),  # type: ignore[list-item]
        (NewTask(cmd=[]), "cmd"),
        (NewTask(cmd="ls"), "cmd"),
        (NewTask(cmd=["ls", 1]), "cmd[1]"),  # type: ignore[list-item]
        (NewTask(type=""), "type"),
        (NewTask(prompt="a", name=""), "name"),
        (NewTask(prompt="a", name="x" * 201), "name"),
        (NewTask(prompt="a", queue=""), "queue"),
        (NewTask(description="a", priority=40_000), "priority"),
        (NewTask(description="a", scheduled_for=datetime(2999, 1, 1)), "run_at"),
        (NewTask(description="a", max_attempts=0), "max_attempts"),
        (NewTask(description="a", timeout="1"), "timeout"),  # type: ignore[arg-type]
        (NewTask(prompt="a", timeout=0), "timeout"),
        (NewTask(prompt="a", name="b", metadata=[]), "metadata"),  # type: ignore[arg-type]
    ],
)
async def test_wrong_tasks_name_the_field(queue: Queue, task: NewTask, field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        await queue.submit_task(task)
    assert refused.value.field == field
    assert (await queue.list_tasks()).tasks == []


async def test_a_unique_key_names_one_task(queue: Queue) -> None:
    for way in ({"description": "Any"}, {"prompt": "Hi"}, {"description": "Any", "planner": "llm"}):
        key = str(way)
        first, created = await queue.submit_task_new(NewTask(**way, unique_key=key))
        again, created_again = await queue.submit_task_new(NewTask(**way, unique_key=key))
        assert (created, created_again, again) == (True, False, first)
        with pytest.raises(UniqueKeyConflict):
            await queue.submit_task(NewTask(prompt="Other", unique_key=key))


async def test_in_the_transaction_of_the_caller(queue: Queue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        task = await queue.submit_task("Any", connection=conn)
        other = await queue.submit_task(NewTask(prompt="Hi"), connection=conn)
        assert (len(task.subtasks), other.status) == (3, "queued")
        with pytest.raises(JobNotFound):
            await queue.get_task(task.id)
        await conn.rollback()
    assert (await queue.list_tasks()).tasks == []
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        task = await queue.submit_task("Any", connection=conn)
    assert (await queue.get_task(task.id)).subtasks == task.subtasks


@pytest.mark.parametrize("task_id", ["", "x", NOBODY, f"{NOBODY}-0", "a" * 300])
async def test_an_unknown_task(queue: Queue, task_id: str) -> None:
    for call in (
        queue.get_task(task_id),
        queue.cancel_task(task_id),
        queue.retry_task(task_id),
        queue.chain_task(task_id, "x"),
    ):
        with pytest.raises(JobNotFound):
            await call
    with pytest.raises(JobNotFound):
        await queue.submit_task(NewTask(prompt="x", parent_task_id=task_id))


async def test_tasks_of_others_are_invisible(queue: Queue, dsn: str) -> None:
    task = await queue.submit_task("Any")
    async with Queue(dsn, org="other", notify=False) as other:
        assert (await other.list_tasks()).tasks == []
        assert (await other.list_tasks(parent_task_id=task.id)).tasks == []
        for task_id in (str(task.id), task.subtask_ids[0]):
            for call in (other.get_task(task_id), other.cancel_task(task_id), other.retry_task(task_id)):
                with pytest.raises(JobNotFound):
                    await call


# --- chains -----------------------------------------------------------------------------------------------------------


async def finished(queue: Queue, result: Any) -> UUID:
    job = await queue.submit("k", queue="done")
    [claimed] = await queue.claim("w", ["done"])
    await queue.complete(claimed.id, claimed.lease_token, result)
    return job.id


@pytest.mark.parametrize(
    ("task", "result", "payload"),
    [
        ("Shorten this:", {"text": "long"}, {"prompt": "Shorten this:\n\nlong"}),
        ("Shorten this:", ["a", 1], {"prompt": 'Shorten this:\n\n["a", 1]'}),
        ("Shorten this:", {"text": 7}, {"prompt": 'Shorten this:\n\n{"text": 7}'}),
        ("Say hello", None, {"prompt": "Say hello"}),
        ("A {{ parents.parent.output.text }} b", {"text": "long"}, {"prompt": "A long b"}),
        ("{{{{ a }} ", {"text": "{{ b }}"}, {"prompt": "{{ a }} \n\n{{ b }}"}),
        (
            NewTask(messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], model="m"),
            {"text": "long"},
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u\n\nlong"}], "model": "m"},
        ),
        (
            NewTask(messages=[{"role": "user", "content": [{"type": "text", "text": "u"}]}]),
            {"text": "long"},
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "long"}]}
                ]
            },
        ),
        (
            NewTask(messages=[{"role": "assistant", "content": None}]),
            {"text": "long"},
            {"messages": [{"role": "assistant", "content": None}, {"role": "user", "content": "long"}]},
        ),
        (NewTask(type="k", payload=["{{ parents.parent.output }}"]), {"n": 1}, [{"n": 1}]),
        (
            NewTask(cmd=["wc"], input="{{ parents.parent.output.text }}"),
            {"text": "long"},
            {"cmd": ["wc"], "input": "long"},
        ),
    ],
)
async def test_the_output_of_a_parent_is_in_the_prompt(queue: Queue, task: Any, result: Any, payload: Any) -> None:
    parent = await finished(queue, result)
    chained = await queue.chain_task(parent, task)
    assert (chained.parent_task_id, chained.status) == (parent, "queued")
    assert chained.job.payload == payload
    assert (await queue.get_task(chained.id)) == chained
    assert [each.id for each in (await queue.list_tasks(parent_task_id=parent)).tasks] == [chained.id]


async def test_a_subtask_is_chained_to_by_its_id(queue: Queue) -> None:
    task = await queue.submit_task("Any")
    first = await work(queue)
    chained = await queue.chain_task(task.subtask_ids[0], "Go on:")
    assert (chained.parent_task_id, chained.prompt) == (first, f"Go on:\n\n{first}")


async def test_only_completed_tasks_are_chained_to(queue: Queue) -> None:
    task = await queue.submit_task("Any")
    states = [task.subtask_ids[0]]
    with pytest.raises(InvalidTransition):
        await queue.chain_task(states[0], "x")
    with pytest.raises(InvalidTransition):
        await queue.chain_task(task.id, "x")
    await work(queue, fail=True)
    for failed in (task.id, task.subtask_ids[0]):
        with pytest.raises(InvalidTransition) as refused:
            await queue.chain_task(failed, "x")
        assert refused.value.state == "failed"


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (NewTask(description="a"), "description"),
        (NewTask(prompt="a", parent_task_id=NOBODY), "parent_task_id"),
        (NewTask(prompt="{{ nothing }}"), "payload"),
        (NewTask(prompt="a", cmd=["b"]), "prompt, cmd"),
    ],
)
async def test_wrong_chains_name_the_field(queue: Queue, task: NewTask, field: str) -> None:
    parent = await finished(queue, 1)
    with pytest.raises(InvalidJob) as refused:
        await queue.chain_task(parent, task)
    assert refused.value.field == field


async def test_a_task_may_wait_for_its_parent(queue: Queue) -> None:
    task = await queue.submit_task("Any")
    after = await queue.submit_task(NewTask(prompt="{{ parents.parent.output[0].text }}", parent_task_id=task.id))
    assert (after.status, after.parent_task_id) == ("waiting", task.id)
    ids = [await work(queue) for _ in range(3)]
    found = await queue.get_task(after.id)
    assert (found.status, found.prompt) == ("queued", str(ids[0]))


# --- cancel, retry, list ----------------------------------------------------------------------------------------------


async def test_cancel_and_retry(queue: Queue) -> None:
    task = await queue.submit_task("Any")
    assert (await queue.cancel_task(task.subtask_ids[0], "no")).status == "cancelled"
    assert (await queue.get_task(task.id)).status == "failed"
    again = await queue.retry_task(task.id, 3)
    assert again.status == "queued"
    assert (await queue.get_task(task.subtask_ids[0])).job.max_attempts == 3
    gone = await queue.cancel_task(task.id, "enough")
    assert (gone.status, gone.job.error) == ("cancelled", {"code": "cancelled", "message": "enough"})
    assert {each.status for each in (await queue.list_tasks(parent_task_id=task.id)).tasks} == {"cancelled"}
    assert (await queue.cancel_task(task.id)).status == "cancelled"
    with pytest.raises(InvalidTransition, match="only a failed task is retried"):
        await queue.retry_task(task.id)
    with pytest.raises(InvalidTransition):
        await queue.retry_task((await queue.submit_task("Other")).id)


async def test_lists(queue: Queue) -> None:
    first = await queue.submit_task(NewTask(prompt="x" * 20_000 + "".join(map(str, range(9_000)))))
    second = await queue.submit_task("Any")
    third = await queue.submit_task(NewTask(prompt="Hi"))
    everything = (await queue.list_tasks()).tasks
    # Newest first: a task is older than its subtasks.
    assert (everything[0].id, everything[-2].id, everything[-1].id) == (third.id, second.id, first.id)
    assert everything[-2] == second
    assert (everything[0].prompt, everything[-1].prompt) == ("Hi", None)
    assert [each.id for each in (await queue.list_tasks(limit=2, offset=4)).tasks] == [second.id, first.id]
    seen: list[UUID] = []
    cursor = None
    while True:
        page = await queue.list_tasks(limit=2, cursor=cursor)
        seen += [each.id for each in page.tasks]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == [each.id for each in everything]
    parts = (await queue.list_tasks(parent_task_id=second.id)).tasks
    assert [each.name for each in parts] == second.subtask_ids[::-1]
    assert [each.name for each in (await queue.list_tasks(parent_task_id=second.id, limit=1, offset=1)).tasks] == [
        second.subtask_ids[1]
    ]
    assert (await queue.list_tasks(parent_task_id=NOBODY)).tasks == []


async def test_lists_by_state(queue: Queue) -> None:
    waiting = await queue.submit_task("Any")
    later = await queue.submit_task(NewTask(description="Later", scheduled_for=LATER))
    prompt = await queue.submit_task(NewTask(prompt="Hi"))
    after = await queue.submit_task(NewTask(prompt="Hi", parent_task_id=prompt.id))

    async def ids(state: str, **options: Any) -> set[UUID]:
        return {each.id for each in (await queue.list_tasks(state=state, **options)).tasks if each.name is None}

    assert await ids("queued") == {waiting.id, prompt.id}
    assert await ids("scheduled") == {later.id}
    assert await ids("waiting") == {after.id}
    await work(queue)
    assert (await ids("queued"), await ids("running")) == ({prompt.id}, {waiting.id})
    assert len((await queue.list_tasks(state="completed")).tasks) == 1
    assert len((await queue.list_tasks(state="completed", parent_task_id=waiting.id)).tasks) == 1
    await work(queue, fail=True)
    assert (await ids("failed"), await ids("running")) == ({waiting.id}, set())
    await queue.cancel_task(later.id)
    assert await ids("cancelled") == {later.id}
    assert len((await queue.list_tasks(state="cancelled")).tasks) == 4


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"offset": -1}, "offset"),
        ({"offset": 10_001}, "offset"),
        ({"offset": True}, "offset"),
        ({"cursor": "x"}, "cursor"),
        ({"state": "done"}, "state"),
        ({"parent_task_id": "a\x00"}, "parent_task_id"),
    ],
)
async def test_wrong_lists_name_the_field(queue: Queue, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        await queue.list_tasks(**options)
    assert refused.value.field == field


# --- planners of one's own, and the blocking twin ---------------------------------------------------------------------


async def test_a_handler_may_plan(queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task(kind="plan")
    async def by_words(description: str, planner: str, subtask_queue: str) -> Plan:
        return Plan(description.split(), queue=subtask_queue, max_attempts=2, timeout=timedelta(seconds=7))

    @tasks.task(kind="subtask", queue="mine")
    def shout(task_id: str, subtask_id: str, description: str, priority: int) -> str:
        return description.upper()

    task = await queue.submit_task(NewTask(description="one two", planner="llm", subtask_queue="mine"))
    ran = await drain(queue, tasks)
    assert [job.kind for job in ran] == ["plan", "subtask", "subtask"]
    assert (ran[1].max_attempts, ran[1].timeout) == (2, timedelta(seconds=7))
    found = await queue.get_task(task.id)
    assert (found.status, found.subtasks, found.output) == ("completed", ["one", "two"], ["ONE", "TWO"])


async def test_a_planner_need_not_repeat_what_the_task_says(queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task(kind="plan")
    async def by_words(
        description: str,
        planner: str,
        subtask_queue: str,
        model: str | None = None,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Plan:
        return Plan(description.split())

    new = NewTask(description="one two", planner="llm", subtask_queue="mine", max_attempts=3, timeout=9, model="m")
    task = await queue.submit_task(new)
    await drain(queue, tasks)
    found = await queue.get_task(task.id)
    assert found.subtasks == ["one", "two"]
    for subtask in found.subtask_ids:
        job = (await queue.get_task(subtask)).job
        assert (job.queue, job.max_attempts, job.timeout) == ("mine", 3, timedelta(seconds=9))


@pytest.mark.parametrize(
    ("subtasks", "options", "field"),
    [
        ("a", {}, "subtasks"),
        (None, {}, "subtasks"),
        ([], {}, "subtasks"),
        (["a"] * 101, {}, "subtasks"),
        (["a"] * 1_001, {}, "subtasks"),
        (["a", None], {}, "subtasks[1]"),
        (["a", "  "], {}, "subtasks[1]"),
        (["a", "b\x00"], {}, "subtasks[1]"),
        (["x" * 10_101], {}, "subtasks[0]"),
        (["x" * 300_000], {}, "subtasks[0]"),
        (["a"], {"queue": 7}, "queue"),
        (["a"], {"queue": "x" * 201}, "queue"),
        (["a"], {"kind": ""}, "kind"),
        (["a"], {"max_attempts": 1_001}, "max_attempts"),
        (["a"], {"timeout": 0}, "timeout"),
    ],
    ids=str,
)
async def test_a_pull_worker_s_plan_is_checked(
    queue: Queue, subtasks: Any, options: dict[str, Any], field: str
) -> None:
    task = await queue.submit_task(NewTask(description="Any", planner="llm"))
    [job] = await queue.claim("w", ["default"])
    with pytest.raises(InvalidJob) as refused:
        await queue.plan(job.id, job.lease_token, subtasks, **options)
    assert refused.value.field == field
    assert (await queue.get_task(task.id)).status == "running"
    with pytest.raises(LeaseLost):
        await queue.plan(job.id, job.lease_token + 1, ["a"])
    assert await queue.plan(job.id, job.lease_token, ("a", "b"), queue="q", timeout=timedelta(seconds=5)) == "waiting"
    found = await queue.get_task(task.id)
    assert (found.status, found.subtasks) == ("queued", ["a", "b"])


def test_blocking(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        task = queue.submit_task("Build an API")
        assert len(task.subtasks) == 4
        for _ in range(4):
            [job] = queue.claim("w", ["work_queue"])
            queue.complete(job.id, job.lease_token, "done")
        assert queue.result(task.id, timeout=10) == ["done"] * 4
        assert queue.chain_task(task.id, "Sum up:").prompt == 'Sum up:\n\n["done", "done", "done", "done"]'
        assert len(queue.list_tasks(parent_task_id=task.id).tasks) == 5
        assert queue.submit(NewJob(kind="k").kind).state == "queued"
