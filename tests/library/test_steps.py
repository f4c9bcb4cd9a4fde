"""Steps, signals and reruns through the clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from queue_pg import (
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    LeaseLost,
    PayloadTooLarge,
    Queue,
    SyncQueue,
    Unreadable,
    step_store,
)
from queue_pg.suspension import Suspended, is_suspension


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as client:
        yield client


async def test_unknown_jobs_and_those_of_other_tenants(dsn: str, queue: Queue) -> None:
    job = await queue.submit("k")
    async with Queue(dsn, org="acme", notify=False) as stranger:
        for client, job_id in ((queue, uuid4()), (queue, "no id"), (stranger, job.id)):
            for ask in (client.steps, client.rerun):
                with pytest.raises(JobNotFound):
                    await ask(job_id)
            with pytest.raises(JobNotFound):
                await client.signal(job_id, "go")
    assert await queue.steps(job.id) == []


async def test_blocking_clients_do_the_same(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        job = queue.submit("chat", {"prompt": "x"})
        assert queue.signal(job.id, "go", {"n": 1}) is True
        assert queue.signal(job.id, "go") is False
        again = queue.rerun(job.id, model="m", delay=timedelta(hours=1))
        assert (again.payload, again.rerun_of, again.state) == ({"prompt": "x", "model": "m"}, job.id, "scheduled")
        assert [each.id for each in queue.list(rerun_of=job.id).jobs] == [again.id]
        assert queue.steps(job.id) == []
        queue.cancel(job.id)
        with pytest.raises(InvalidTransition) as caught:
            queue.signal(job.id, "go")
        assert (caught.value.action, caught.value.state) == ("signal", "cancelled")
        assert queue.retry(job.id, 3, fresh=True).max_attempts == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"payload": {}, "payload_patch": {}}, "payload_patch"),
        ({"payload_patch": [1]}, "payload_patch"),
        ({"payload_patch": {"a": "\0"}}, "payload_patch.a"),
        ({"payload": {"a": float("nan")}}, "payload.a"),
        ({"model": 7}, "model"),
        ({"model": "a\0"}, "model"),
        ({"queue": ""}, "queue"),
        ({"queue": 7}, "queue"),
        ({"priority": 40_000}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"run_at": datetime(2040, 1, 1)}, "run_at"),
        ({"delay": -1}, "delay"),
        ({"delay": 1, "run_at": datetime.fromisoformat("2040-01-01T00:00:00Z")}, "delay"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"timeout": 0}, "timeout"),
        ({"tags": "a"}, "tags"),
        ({"metadata": [1]}, "metadata"),
    ],
)
async def test_a_rerun_that_makes_no_sense_is_named(queue: Queue, changes: Any, field: str) -> None:
    job = await queue.submit("chat")
    with pytest.raises(InvalidJob) as caught:
        await queue.rerun(job.id, **changes)
    assert caught.value.field == field
    assert (await queue.list(rerun_of=job.id)).jobs == []


async def test_sizes_are_bounded(dsn: str) -> None:
    async with Queue(dsn, notify=False, max_payload_bytes=100) as queue:
        job = await queue.submit("chat")
        for changes in ({"payload": {"a": "x" * 100}}, {"payload_patch": {"a": "x" * 100}}):
            with pytest.raises(PayloadTooLarge):
                await queue.rerun(job.id, **changes)
        with pytest.raises(PayloadTooLarge):
            await queue.signal(job.id, "go", "x" * 1_048_576)


async def test_a_payload_that_python_cannot_hold_is_rerun_as_it_is(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    cursor = await conn.execute("select queue_pg.submit('chat', '{\"n\": 1e5000}')")
    [job] = await cursor.fetchone() or [None]
    again = await queue.rerun(str(job), model="m")
    assert isinstance(again.payload, Unreadable)
    assert '"model": "m"' in again.payload.text


@pytest.mark.parametrize("what", ["save_step", "sleep", "wait_for_event", "signal", "rerun"])
async def test_what_is_acknowledged_is_on_disk(conn: psycopg.AsyncConnection, queue: Queue, what: str) -> None:
    async def durable() -> str:
        row = await (await conn.execute("show synchronous_commit")).fetchone()
        assert row is not None
        return str(row[0])

    job = await queue.submit("k")
    await queue.claim("w", ["default"])
    async with conn.transaction():
        await conn.execute("set local synchronous_commit = off")
        assert await durable() == "off"
        match what:
            case "save_step":
                await step_store.save_step(conn, job.id, 1, "a", "1")
            case "sleep":
                await step_store.sleep(conn, job.id, 1, "a", delay=timedelta(seconds=1))
            case "wait_for_event":
                await step_store.wait_for_event(conn, job.id, 1, "a")
            case "signal":
                await step_store.signal(conn, job.id, "a", None)
            case _:
                nothing = "payload payload_patch model queue priority run_at delay max_attempts timeout tags metadata"
                await step_store.rerun(conn, job.id, dict.fromkeys(nothing.split()))
        assert await durable() == "on"


def test_what_is_a_suspension() -> None:
    one, two = Suspended("a"), Suspended("b")
    assert is_suspension(one)
    assert is_suspension(BaseExceptionGroup("", [one, BaseExceptionGroup("", [two])]))
    # Something failed as well: that is what counts.
    assert not is_suspension(BaseExceptionGroup("", [one, ValueError()]))
    assert not is_suspension(ValueError())


async def test_a_worker_without_handlers_has_steps(queue: Queue) -> None:
    job = await queue.submit("k")
    [mine] = await queue.claim("w", ["default"])
    token = mine.lease_token
    await queue.save_step(job.id, token, "draft", {"n": 1})
    assert (await queue.wait_for_event(job.id, token, "go", 60)).finished_at is None
    assert (await queue.sleep(job.id, token, "nap", timedelta(hours=1))).finished_at is None
    assert await queue.suspend(job.id, token) == "scheduled"
    with pytest.raises(LeaseLost):
        await queue.suspend(job.id, token)
    await queue.signal(job.id, "go", [1, 2])
    [again] = await queue.claim("w", ["default"])
    assert (again.attempt, [step.name for step in await queue.steps(job.id)]) == (1, ["draft", "go", "nap"])
    assert (await queue.wait_for_event(job.id, again.lease_token, "go")).result == [1, 2]
    assert await queue.cancel_claimed(job.id, again.lease_token, "enough") == "cancelled"
    assert (await queue.get(job.id)).error == {"code": "cancelled", "message": "enough"}
    with pytest.raises(LeaseLost) as lost:
        await queue.cancel_claimed(job.id, again.lease_token)
    assert lost.value.state == "cancelled"


def test_a_blocking_worker_has_steps_too(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        job = queue.submit("k")
        [mine] = queue.claim("w", ["default"])
        queue.save_step(job.id, mine.lease_token, "draft")
        assert queue.sleep(job.id, mine.lease_token, "nap", 0).finished_at is not None
        assert queue.suspend(job.id, mine.lease_token) == "queued"
        [again] = queue.claim("w", ["default"])
        assert queue.cancel_claimed(job.id, again.lease_token) == "cancelled"
        assert queue.get(job.id).error == {"code": "cancelled", "message": "cancelled by its handler"}


@pytest.mark.parametrize(
    ("call", "arguments", "field"),
    [
        ("save_step", ("",), "name"),
        ("save_step", (5,), "name"),
        ("save_step", ("a\x00",), "name"),
        ("save_step", ("a", {1, 2}), "result"),
        ("sleep", ("a",), "delay"),
        ("sleep", ("a", -1), "delay"),
        ("sleep", ("a", float("nan")), "delay"),
        ("wait_for_event", ("a", -1), "timeout"),
        ("wait_for_event", ("x" * 201,), "name"),
    ],
)
async def test_wrong_steps_are_named(queue: Queue, call: str, arguments: tuple[Any, ...], field: str) -> None:
    job = await queue.submit("k")
    [mine] = await queue.claim("w", ["default"])
    with pytest.raises(InvalidJob) as refused:
        await getattr(queue, call)(job.id, mine.lease_token, *arguments)
    assert refused.value.field.startswith(field)
    for token in (True, "1", -1, 2**63):
        with pytest.raises(InvalidJob) as refused:
            await getattr(queue, call)(job.id, token, "a", 1)
        assert refused.value.field == "lease_token"


async def test_steps_of_the_pull_side_take_no_large_results(queue: Queue) -> None:
    job = await queue.submit("k")
    [mine] = await queue.claim("w", ["default"])
    with pytest.raises(PayloadTooLarge):
        await queue.save_step(job.id, mine.lease_token, "a", "x" * 1024 * 1024)
    with pytest.raises(InvalidJob):
        await queue.sleep(job.id, mine.lease_token, "a", 1, until=datetime(2999, 1, 1))
    with pytest.raises(InvalidJob):
        await queue.sleep(job.id, mine.lease_token, "a", until=datetime(2999, 1, 1))
