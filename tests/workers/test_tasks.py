"""Tasks that a worker plans by a model and works off, against the scripted model server and the mock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from in_process import emitted, finished, row, running
from model_server import ModelServer, Step, model_server
from queue_pg_workers.handlers.plan import INSTRUCTIONS, PlanPayload, run_plan, subtasks_of
from queue_pg_workers.kinds import plan_handler
from queue_pg_workers.providers.mock import MockProvider
from queue_pg_workers.providers.openai import OpenAIProvider

from queue_pg import InvalidJob, NewTask, Queue
from queue_pg.models import Fail, Plan, Snooze
from queue_pg.tasks import Tasks

BOTH = {"queues": ("default", "work_queue")}


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as running:
        yield running


@pytest.fixture
async def provider(server: ModelServer) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key="sk-test", base_url=server.base_url, model="default-model")
    yield provider
    await provider.aclose()


def says(text: str, **more: Any) -> Step:
    return Step(words=[text], **more)


# --- what an answer may be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "subtasks"),
    [
        ('["a", "b"]', ["a", "b"]),
        (' \n["größe", " b "]\n', ["größe", "b"]),
        ('```json\n["a"]\n```', ["a"]),
        ('```\n["a",\n"b"]\n```\n', ["a", "b"]),
        (json.dumps(["x" * 2_000] * 50), ["x" * 2_000] * 50),
    ],
)
def test_a_json_list_is_a_plan(answer: str, subtasks: list[str]) -> None:
    assert subtasks_of(answer) == subtasks


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "1. a\n2. b",
        'Here is the plan: ["a", "b"]',
        '["a", "b"',
        '["a"] ["b"]',
        '```json\n["a"]\n```\nGood luck!',
        '{"subtasks": ["a"]}',
        '"a"',
        "null",
        "[]",
        '["a", 1]',
        '["a", ["b"]]',
        '["a", ""]',
        '["a", "  "]',
        '["a\\u0000"]',
        '["\\ud800"]',
        json.dumps(["x" * 2_001]),
        json.dumps(["x"] * 51),
        "[" * 100_000,
        '["' + "x" * 200_000 + '"]',
    ],
)
def test_anything_else_is_none(answer: str) -> None:
    with pytest.raises(ValueError, match=r"^its? "):
        subtasks_of(answer)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "payload.description"),
        ({"description": ""}, "payload.description"),
        ({"description": "x" * 10_001}, "payload.description"),
        ({"description": "a", "planner": "rules"}, "payload.planner"),
        ({"description": "a", "max_attempts": 0}, "payload.max_attempts"),
        ({"description": "a", "timeout_seconds": 0}, "payload.timeout_seconds"),
        ({"description": "a", "subtask_queue": ""}, "payload.subtask_queue"),
        ({"description": "a", "colour": 1}, "payload.colour"),
        ("a", "payload"),
    ],
)
def test_wrong_payloads_name_the_field(payload: Any, field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        plan_handler(MockProvider()).validate(payload)
    assert refused.value.field == field


async def test_the_model_is_asked_for_a_list(server: ModelServer, provider: OpenAIProvider) -> None:
    server.script(says('["a"]'))
    payload = PlanPayload(description="Sort the mail", subtask_queue="q", max_attempts=2, timeout_seconds=9, model="m")
    planned = await run_plan(provider, payload)
    assert isinstance(planned, Plan)
    assert (planned.subtasks, planned.queue, planned.max_attempts) == (["a"], "q", 2)
    assert planned.timeout is not None
    assert planned.timeout.total_seconds() == 9
    sent = server.requests[0].body
    assert sent["model"] == "m"
    assert sent["messages"] == [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": "Sort the mail"},
    ]


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (says("no list"), "plan_invalid"),
        (says('["a", "b', finish_reason="length"), "plan_invalid"),
        (Step(behaviour="truncate"), "upstream_truncated"),
        (Step(behaviour="garbage"), "upstream_invalid"),
        (Step(behaviour="status", status=400, error={"message": "no"}), "upstream_refused"),
    ],
)
async def test_what_is_no_plan_is_a_failed_attempt(
    server: ModelServer, provider: OpenAIProvider, step: Step, code: str
) -> None:
    server.script(step)
    failure = await run_plan(provider, PlanPayload(description="a"))
    assert isinstance(failure, Fail)
    assert (failure.code, failure.retry) == (code, code != "upstream_refused")
    if code == "plan_invalid":
        assert failure.details is not None
        assert failure.details["answer"] == "".join(step.words)


async def test_a_throttled_model_is_asked_later(server: ModelServer, provider: OpenAIProvider) -> None:
    server.script(Step(behaviour="status", status=429, headers={"retry-after": "7"}))
    later = await run_plan(provider, PlanPayload(description="a"))
    assert isinstance(later, Snooze)
    assert later.delay.total_seconds() == 7


# --- a worker ---------------------------------------------------------------------------------------------------------


async def test_a_task_is_planned_and_worked_off(
    dsn: str, queue: Queue, server: ModelServer, provider: OpenAIProvider
) -> None:
    server.script(says('["Open it", "Read it"]'), says("opened"), says("read"))
    async with running(dsn, provider=provider, concurrency=1, **BOTH):
        task = await queue.submit_task(NewTask(description="Sort the mail", planner="llm"))
        job = await finished(queue, task.id)
    assert (job.state, job.attempt) == ("completed", 1)
    assert [each["text"] for each in job.result] == ["opened", "read"]
    found = await queue.get_task(task.id)
    assert (found.status, found.subtasks) == ("completed", ["Open it", "Read it"])
    assert server.requests[1].body["messages"] == [
        {
            "role": "user",
            "content": "Do this part of a task, and nothing else: Open it\n\nThe whole task: Sort the mail",
        }
    ]
    assert [event.type for event in (await queue.events_page(task.id)).events] == [
        "submitted",
        "started",
        "planned",
        "completed",
    ]


@pytest.mark.parametrize("planner", ["rules", "llm"])
async def test_it_works_with_the_mock(dsn: str, queue: Queue, planner: str) -> None:
    async with running(dsn, **BOTH):
        task = await queue.submit_task(NewTask(description="Sort the mail.", planner=planner))
        job = await finished(queue, task.id)
    assert (job.state, len(job.result)) == ("completed", 3)
    assert (await queue.get_task(task.id)).subtasks[0].endswith(": Sort the mail.")


async def test_an_invalid_answer_fails_the_task_after_its_attempts(
    dsn: str, queue: Queue, server: ModelServer, provider: OpenAIProvider
) -> None:
    async with queue.connection() as conn:
        await conn.execute("update queue_pg.settings set retry_base = '0', retry_cap = '0'")
    server.script(says("First, I would"), says("[]"))
    async with running(dsn, provider=provider, **BOTH):
        task = await queue.submit_task(NewTask(description="a", planner="llm", max_attempts=2))
        job = await finished(queue, task.id)
        assert (job.state, job.attempt, len(server.requests)) == ("failed", 2, 2)
        assert job.error is not None
        assert (job.error["code"], job.error["answer"]) == ("plan_invalid", "[]")
        assert (await queue.get_task(task.id)).subtasks == []
        # Tried once more by hand.
        server.script(says('["a"]'), says("done"))
        await queue.retry_task(task.id)
        assert [each["text"] for each in (await finished(queue, task.id)).result] == ["done"]


async def test_a_waiting_task_takes_no_slot(dsn: str, queue: Queue) -> None:
    async with running(dsn, concurrency=1) as worker:
        async with emitted(worker, "slot_freed") as freed:
            task = await queue.submit_task(NewTask(description="a", planner="llm"))
            assert await freed() == task.id
        # Nobody here serves its subtasks, and other work goes on.
        other = await queue.submit("chat", {"prompt": "Hi"})
        assert (await finished(queue, other.id)).state == "completed"
        assert (await queue.get_task(task.id)).status == "queued"


async def test_a_plan_under_a_lost_lease_makes_nothing(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, server: ModelServer, provider: OpenAIProvider
) -> None:
    server.script(Step(behaviour="hang"))
    async with running(dsn, provider=provider) as worker:
        task = await queue.submit_task(NewTask(description="a", planner="llm"))
        await server.received.get()
        async with emitted(worker, "slot_freed") as freed:
            await queue.cancel_task(task.id)
            # The request to the model is closed, too.
            await server.disconnects.get()
            assert await freed() == task.id
    assert (await row(conn, task.id))["state"] == "cancelled"
    assert (await queue.list_tasks(parent_task_id=task.id)).tasks == []


async def test_handlers_of_ones_own_go_before_ours(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task(kind="plan")
    def halves(description: str, planner: str, subtask_queue: str) -> Plan:
        middle = len(description) // 2
        return Plan([description[:middle], description[middle:]], queue=subtask_queue)

    @tasks.task(kind="subtask", run_in="thread")
    def shout(task_id: str, subtask_id: str, description: str, priority: int) -> str:
        return description.upper()

    async with running(dsn, tasks, **BOTH):
        task = await queue.submit_task(NewTask(description="abcd", planner="llm"))
        assert (await finished(queue, task.id)).result == ["AB", "CD"]


async def test_a_plan_that_cannot_be_fails_its_job(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    def nothing() -> Plan:
        return Plan([])

    @tasks.task
    def no_texts() -> Plan:
        return Plan([object()])  # type: ignore[list-item]

    async with running(dsn, tasks):
        jobs = [await queue.submit("nothing"), await queue.submit("no_texts")]
        for job in jobs:
            ended = await finished(queue, job.id)
            assert ended.state == "failed"
            assert ended.error is not None
            assert ended.error["code"] == "result_invalid"


async def test_a_subtask_of_nobody_is_done_by_its_description(
    dsn: str, queue: Queue, server: ModelServer, provider: OpenAIProvider
) -> None:
    """A payload that names somebody else's task does not get that one's description."""
    task = await queue.submit_task("secret")
    payload = {"task_id": str(task.id), "subtask_id": "x", "description": "Do", "priority": 0}
    async with running(dsn, provider=provider):
        job = await queue.submit("subtask", payload)
        assert (await finished(queue, job.id)).state == "completed"
    assert server.requests[0].body["messages"] == [{"role": "user", "content": "Do"}]
