"""Batches by the library: filled, waited for, cancelled and retried; refusals name the argument."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from queue_pg import (
    BatchNotFound,
    BatchState,
    DatabaseUnavailable,
    InvalidBatchTransition,
    InvalidJob,
    InvalidTransition,
    NewJob,
    Queue,
    SyncQueue,
    Tasks,
    WaitTimeout,
    batching,
    store,
)
from queue_pg.testing import drain


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as queue:
        yield queue


async def finish_all(queue: Queue, *, fail: bool = False) -> int:
    """End what is queued, and let maintenance look; return how many jobs there were."""
    claimed = await queue.claim("w", ["default"], max_jobs=1000)
    for job in claimed:
        await (
            queue.fail(job.id, job.lease_token, "no", retry=False) if fail else queue.complete(job.id, job.lease_token)
        )
    await settle(queue)
    return len(claimed)


async def settle(queue: Queue) -> None:
    async with queue.connection() as conn:
        await store.maintain(conn)


async def test_a_block_fills_a_batch_and_closes_it(queue: Queue) -> None:
    async with queue.batch("import", metadata={"user": 7}) as batch:
        job = await batch.submit("load", {"n": 0}, queue="default", delay=None, priority=3)
        assert job.batch_id == batch.id
        many = await batch.submit_many(NewJob(kind="load", payload={"n": n}) for n in range(1, 100))
        few = await batch.submit_many([NewJob(kind="load"), NewJob(kind="load", batch_id=str(batch.id))])
        made = await batch.progress()
        assert (made.name, made.state, made.total, made.queued) == ("import", BatchState.OPEN, 102, 102)
        assert made.metadata == {"user": 7}
    closed = await queue.get_batch(batch.id)
    assert (closed.state, closed.total, closed.unfinished, closed.percent) == ("closed", 102, 102, 0)
    listed = await queue.list(batch_id=batch.id, limit=200)
    assert {each.id for each in listed.jobs} == {job.id, *(each.id for each in many), *(each.id for each in few)}
    with pytest.raises(WaitTimeout) as caught:
        await batch.wait(timeout=0)
    assert str(caught.value) == f"Batch {batch.id} is still closed after 0 s."
    assert await finish_all(queue) == 102
    done = await batch.wait(timeout=30)
    assert (done.state, done.completed, done.percent, done.finished) == ("completed", 102, 100, True)
    assert done.finished_at is not None


async def test_jobs_from_an_async_generator(queue: Queue) -> None:
    async def jobs() -> AsyncIterator[NewJob]:
        for n in range(3):
            yield NewJob(kind="load", payload=n)

    async with queue.batch() as batch:
        assert len(await batch.submit_many(jobs())) == 3
    assert (await queue.get_batch(batch.id)).total == 3


async def test_a_block_that_raises_cancels_what_it_has_submitted(queue: Queue) -> None:
    async def fill(batch: batching.AsyncBatch) -> None:
        async with batch:
            await batch.submit("load")
            raise ZeroDivisionError

    batch = queue.batch("half")
    with pytest.raises(ZeroDivisionError):
        await fill(batch)
    [found] = (await queue.list(batch_id=batch.id)).jobs
    assert found.state == "cancelled"
    assert found.error is not None
    assert found.error["message"] == "the block that filled it ended with ZeroDivisionError"
    await settle(queue)
    assert (await queue.get_batch(batch.id)).state is BatchState.CANCELLED


async def test_a_batch_has_no_id_before_its_block(queue: Queue) -> None:
    with pytest.raises(RuntimeError, match="no id yet"):
        _ = queue.batch().id


@pytest.mark.parametrize(
    "on_all",
    [
        NewJob(kind="report", payload={"to": "me"}, delay=timedelta(0), timeout=timedelta(seconds=5)),
        {"kind": "report", "payload": {"to": "me"}, "delay_seconds": 0, "timeout": 5, "unique_key": None},
    ],
    ids=["NewJob", "mapping"],
)
async def test_the_callback_gets_the_batch_in_its_payload(queue: Queue, on_all: Any) -> None:
    if isinstance(on_all, dict):
        del on_all["unique_key"]
    tasks = Tasks()
    reports: list[Any] = []

    @tasks.task
    async def load() -> None: ...

    @tasks.task
    async def report(to: str, batch: dict[str, Any]) -> None:
        reports.append((to, batch["name"], batch["state"], batch["completed"], batch["metadata"]))

    async with queue.batch("import", on_all=on_all, metadata={"a": 1}) as batch:
        await batch.submit("load")
        await batch.submit("load")
    await drain(queue, tasks)
    await settle(queue)
    await drain(queue, tasks)
    assert reports == [("me", "import", "completed", 2, {"a": 1})]
    [callback] = (await queue.get_batch(batch.id)).callback_ids
    assert (await queue.get(callback)).timeout == timedelta(seconds=5)


async def test_a_kind_alone_is_a_callback(queue: Queue) -> None:
    made = await queue.create_batch(on_failed="alarm")
    assert made.on_failed is not None
    assert made.on_failed["kind"] == "alarm"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": 7}, "name"),
        ({"name": "\x00"}, "name"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"x": "y" * 70_000}}, "metadata"),
        ({"on_all": ""}, "on_all.kind"),
        ({"on_all": 7}, "on_all"),
        ({"on_all": {}}, "on_all.kind"),
        ({"on_all": {"kind": "k", "colour": "red"}}, "on_all.colour"),
        ({"on_all": {"kind": "k", "unique_key": "x"}}, "on_all.unique_key"),
        ({"on_all": {"kind": "k", "delay": 1, "delay_seconds": 1}}, "on_all.delay_seconds"),
        ({"on_all": {"kind": "k", "timeout_seconds": "x"}}, "on_all.timeout_seconds"),
        ({"on_complete": NewJob(kind="k", unique_key="x")}, "on_complete.unique_key"),
        ({"on_complete": NewJob(kind="k", payload=[1])}, "on_complete.payload"),
        ({"on_failed": NewJob(kind="k", payload={"x": "y" * 70_000})}, "on_failed.payload"),
        ({"on_failed": NewJob(kind="k", payload={"x": float("nan")})}, "on_failed.payload.x"),
        ({"on_failed": {"kind": "k", "priority": 99_999}}, "on_failed.priority"),
    ],
)
async def test_wrong_arguments_are_refused_by_name(queue: Queue, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        await queue.create_batch(**fields)
    assert caught.value.field == field
    assert (await queue.list_batches()).batches == []


async def test_a_job_of_another_batch_is_refused(queue: Queue) -> None:
    async with queue.batch() as batch:
        with pytest.raises(InvalidJob, match="batch_id: names another batch"):
            await batch.submit_many([NewJob(kind="load", batch_id=uuid4())])
    with pytest.raises(InvalidJob, match="batch_id: must be the id of a batch"):
        await queue.submit("load", batch_id="x")
    with pytest.raises(InvalidJob) as caught:
        await queue.submit("load", batch_id=uuid4())
    assert caught.value.field == "batch_id"
    with pytest.raises(InvalidBatchTransition) as closed:
        await queue.submit("load", batch_id=batch.id)
    assert isinstance(closed.value, InvalidTransition)
    assert (closed.value.batch_id, closed.value.state) == (batch.id, "closed")
    assert str(closed.value) == f"Cannot add a job to batch {batch.id}: it is closed."
    with pytest.raises(InvalidBatchTransition):
        await queue.submit_many(NewJob(kind="load", batch_id=batch.id) for _ in range(100))
    assert (await queue.list()).jobs == []


async def test_a_unique_key_that_is_known_adds_nothing(queue: Queue) -> None:
    job = await queue.submit("load", unique_key="x")
    async with queue.batch() as batch:
        assert (await batch.submit("load", unique_key="x")).id == job.id
        again = await batch.submit("load", unique_key="y")
    assert (await queue.get_batch(batch.id)).total == 1
    # Repeating what was stored stays safe after the batch was closed.
    assert (await queue.submit("load", unique_key="y", batch_id=batch.id)).id == again.id


async def test_what_is_unfinished_is_told_by_state(queue: Queue) -> None:
    async with queue.batch() as batch:
        await batch.submit("load", delay=60)
        for _ in range(3):
            await batch.submit("load")
    [claimed] = await queue.claim("w", ["default"])
    found = await queue.get_batch(str(batch.id))
    assert (found.scheduled, found.queued, found.running, found.waiting, found.unfinished) == (1, 2, 1, 0, 4)
    await queue.complete(claimed.id, claimed.lease_token)
    assert (await queue.get_batch(batch.id)).percent == 25


async def test_cancel_and_retry_as_a_whole(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "JOBS_AT_ONCE", 2)
    async with queue.batch() as batch:
        await batch.submit_many([NewJob(kind="load")] * 5)
    stopped = await queue.cancel_batch(batch.id, "no", max_seconds=0)
    assert (stopped.jobs, stopped.done, stopped.batch.cancelled, stopped.batch.unfinished) == (2, False, 2, 3)
    action = await queue.cancel_batch(batch.id, "no")
    assert (action.jobs, action.done, action.batch.cancelled, action.batch.unfinished) == (3, True, 5, 0)
    await settle(queue)
    again = await queue.cancel_batch(batch.id)
    assert (again.jobs, again.done, again.batch.state) == (0, True, "cancelled")
    assert (await queue.retry_failed(batch.id)).jobs == 0
    action = await queue.retry_failed(batch.id, and_cancelled=True, max_attempts=7)
    assert (action.jobs, action.done, action.batch.state, action.batch.run) == (5, True, "closed", 2)
    assert await finish_all(queue, fail=True) == 5
    assert (await queue.wait_batch(batch.id, timeout=30)).state is BatchState.FAILED
    with pytest.raises(InvalidBatchTransition, match="it is failed"):
        await queue.cancel_batch(batch.id)
    assert (await queue.retry_failed(batch.id)).jobs == 5


async def test_batches_are_listed_page_by_page(queue: Queue) -> None:
    made = [await queue.create_batch(f"b{n % 2}") for n in range(5)]
    await queue.close_batch(made[0].id)
    first = await queue.list_batches(limit=3)
    assert [each.id for each in first.batches] == [each.id for each in made[:1:-1]]
    rest = await queue.list_batches(limit=3, cursor=first.next_cursor)
    assert ([each.id for each in rest.batches], rest.next_cursor) == ([made[1].id, made[0].id], None)
    assert [each.name for each in (await queue.list_batches(name="b1")).batches] == ["b1", "b1"]
    assert [each.id for each in (await queue.list_batches(state="closed")).batches] == [made[0].id]
    for wrong in ({"state": "queued"}, {"limit": 0}, {"cursor": "x"}):
        with pytest.raises(InvalidJob):
            await queue.list_batches(**wrong)  # type: ignore[arg-type]


async def test_an_unknown_batch(queue: Queue, dsn: str) -> None:
    batch = await queue.create_batch()
    async with Queue(dsn, notify=False, org="other") as other:
        for client, known in ((queue, uuid4()), (queue, "x"), (other, batch.id)):
            for act in ("get_batch", "close_batch", "cancel_batch", "retry_failed", "wait_batch"):
                with pytest.raises(BatchNotFound):
                    await getattr(client, act)(known)
        assert (await other.list_batches()).batches == []
        with pytest.raises(InvalidJob, match="there is no batch"):
            await other.submit("load", batch_id=batch.id)


async def test_a_notification_ends_the_wait(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Queue(dsn) as queue:
        monkeypatch.setattr(batching, "POLL_SECONDS", (600.0, 600.0))
        monkeypatch.setattr(batching, "RECHECK_SECONDS", 600.0)
        queue.wakeups.start()
        assert await asyncio.to_thread(queue.wakeups.wait_listening, 30)
        looked = asyncio.Event()
        get_batch = Queue._batch

        async def looking(self: Queue, batch_id: Any, *, with_states: bool) -> Any:
            found = await get_batch(self, batch_id, with_states=with_states)
            looked.set()
            return found

        async with queue.batch() as batch:
            await batch.submit("load")
        monkeypatch.setattr(Queue, "_batch", looking)
        waiting = asyncio.create_task(queue.wait_batch(batch.id))
        await looked.wait()
        await finish_all(queue)
        assert (await asyncio.wait_for(waiting, 30)).state is BatchState.COMPLETED


async def test_an_outage_while_waiting_is_waited_out(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    async with queue.batch() as batch:
        pass
    away: list[bool] = []
    get_batch = Queue._batch

    async def now_and_then(self: Queue, batch_id: Any, *, with_states: bool) -> Any:
        away.append(True)
        if len(away) == 1:
            return await get_batch(self, batch_id, with_states=with_states)
        if len(away) == 2:
            await settle(queue)
            raise DatabaseUnavailable("away")
        return await get_batch(self, batch_id, with_states=with_states)

    monkeypatch.setattr(Queue, "_batch", now_and_then)
    assert (await queue.wait_batch(batch.id, timeout=30)).finished
    monkeypatch.setattr(Queue, "_batch", _unavailable)
    with pytest.raises(DatabaseUnavailable):
        await queue.wait_batch(batch.id)


async def _unavailable(*_: Any, **__: Any) -> Any:
    raise DatabaseUnavailable("away")


async def test_a_caller_s_transaction_decides(queue: Queue, dsn: str) -> None:
    async with queue.batch() as batch:
        async with await psycopg.AsyncConnection.connect(dsn) as own:
            await batch.submit("load", connection=own)
            await batch.submit_many([NewJob(kind="load")] * 50, connection=own)
            await own.rollback()
        assert (await batch.progress()).total == 0


def test_the_blocking_twin(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        with queue.batch("twin", on_all="report") as batch:
            batch.submit("load")
            batch.submit_many(NewJob(kind="load") for _ in range(50))
            batch.submit_many([NewJob(kind="load")])
        assert queue.get_batch(batch.id).total == 52
        found: list[Any] = []
        waiter = threading.Thread(target=lambda: found.append(queue.wait_batch(batch.id, 30)))
        waiter.start()
        assert queue.cancel_batch(batch.id).jobs == 52
        with queue.connection() as conn:
            conn.execute("select queue_pg.settle_batches()")
        waiter.join()
        assert found[0].state is BatchState.CANCELLED
        assert queue.list_batches().batches[0].id == batch.id
        assert queue.retry_failed(batch.id, and_cancelled=True).jobs == 52
