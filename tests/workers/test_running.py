"""Jobs to their ends: the three ways to run a handler, and every kind of outcome."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from in_process import emitted, finished, row, running, soon
from process_tasks import process_tasks
from psycopg.types.json import Jsonb
from pydantic import AfterValidator
from queue_pg_workers import attempt

from queue_pg import Queue
from queue_pg.models import Cancel, Fail, JobState, Snooze
from queue_pg.tasks import Tasks, current_job


async def test_the_three_ways_to_run(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    async def on_the_loop(text: str) -> dict[str, Any]:
        return {"text": text, "thread": threading.current_thread().name, "attempt": current_job().attempt}

    @tasks.task
    def in_a_thread(text: str, times: int = 2) -> dict[str, Any]:
        return {"text": text * times, "thread": threading.current_thread().name, "job": str(current_job().job_id)}

    async with running(dsn, tasks):
        first = await queue.submit("on_the_loop", {"text": "a"})
        second = await queue.submit("in_a_thread", {"text": "b"}, metadata={"k": "v"})
        third = await queue.submit("chat", {"prompt": "Summarise: One. Two."})
        jobs = [await finished(queue, job.id) for job in (first, second, third)]
    assert [job.error for job in jobs] == [None] * 3
    assert [job.state for job in jobs] == ["completed"] * 3
    assert jobs[0].result == {"text": "a", "thread": threading.current_thread().name, "attempt": 1}
    assert jobs[1].result["text"] == "bb"
    assert jobs[1].result["job"] == str(second.id)
    assert jobs[1].result["thread"] != threading.current_thread().name
    assert jobs[2].result["text"] == "One."
    assert jobs[2].result["provider"] == "mock"


async def test_handlers_in_processes(dsn: str, queue: Queue) -> None:
    async with running(dsn, process_tasks, concurrency=2):
        count = await queue.submit("count_primes", {"below": 1000}, metadata={"k": "v"})
        raising = await queue.submit("raise_in_process", {}, max_attempts=1)
        job = await finished(queue, count.id)
        assert job.state == "completed"
        assert job.result["primes"] == 168
        assert job.result["metadata"] == {"k": "v"}
        failed = await finished(queue, raising.id)
        assert failed.error is not None
        assert (failed.error["code"], failed.error["message"]) == ("ZeroDivisionError", "division by zero")
        assert "raise_in_process" in failed.error["traceback"]


async def test_a_process_that_dies_hurts_its_own_job_only(dsn: str, queue: Queue) -> None:
    async with running(dsn, process_tasks, concurrency=1):
        dying = await queue.submit("die", {}, max_attempts=1)
        after = await queue.submit("count_primes", {"below": 10})
        failed = await finished(queue, dying.id)
        assert failed.error is not None
        assert failed.error["code"] == "ProcessDied"
        assert "SIGKILL" in failed.error["message"]
        assert (await finished(queue, after.id)).state == "completed"


async def test_arguments_that_cannot_be_pickled_fail_the_job(dsn: str, queue: Queue) -> None:
    async with running(dsn, process_tasks, concurrency=1) as worker, emitted(worker, "finished") as recorded:
        job = await queue.submit("add_up", {"numbers": [1, 2]})
        end = await finished(queue, job.id)
        assert await recorded() == (job.id, True, "failed")
        assert len(worker.leases) == 0
    assert end.error is not None
    assert (end.attempt, end.error["code"]) == (1, "arguments_unpicklable")
    assert "pickle" in end.error["message"]


async def test_an_error_of_the_worker_s_own_ends_the_attempt(
    dsn: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_text: str) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(attempt, "decode_json", broken)
    async with running(dsn, concurrency=1) as worker, emitted(worker, "finished") as recorded:
        job = await queue.submit("chat", {"prompt": "x"}, max_attempts=1)
        end = await finished(queue, job.id)
        assert await recorded() == (job.id, True, "failed")
        assert len(worker.leases) == 0
    assert end.error is not None
    assert end.error["code"] == "worker_error"
    assert "can't start new thread" in end.error["message"]


def _leave(_value: int) -> int:
    raise SystemExit(3)


async def test_a_validator_that_exits_fails_its_attempt_only(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    async def validated(number: Annotated[int, AfterValidator(_leave)]) -> int:
        return number

    async with running(dsn, tasks):
        end = await finished(queue, (await queue.submit("validated", {"number": 1}, max_attempts=1)).id)
        assert (await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)).state == "completed"
    assert end.error is not None
    assert end.error["code"] == "SystemExit"


async def test_what_handlers_return(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    async def give(what: str) -> Any:
        return {
            "none": None,
            "cancel": Cancel("not needed"),
            "fail": Fail("refused", code="mine", retry=False, details={"status": 400, "code": "x", "message": "y"}),
            "object": object(),
            "nan": float("nan"),
            "nul": "a\x00b",
            "wrong snooze": Snooze("soon"),  # type: ignore[arg-type]
            "bad details": Fail("m", retry=False, details={"odd": object()}),
        }[what]

    async with running(dsn, tasks):
        ends = {}
        for what in ("none", "cancel", "fail", "object", "nan", "nul", "wrong snooze", "bad details"):
            ends[what] = await finished(queue, (await queue.submit("give", {"what": what})).id)
    assert ends["none"].error is None
    assert (ends["none"].state, ends["none"].result) == ("completed", None)
    assert ends["cancel"].state == "cancelled"
    assert ends["fail"].error == {"code": "mine", "message": "refused", "status": 400}
    assert ends["bad details"].state == "failed"
    for what in ("object", "nan", "nul", "wrong snooze"):
        error = ends[what].error
        assert error is not None
        assert (ends[what].state, ends[what].attempt, error["code"]) == ("failed", 1, "result_invalid")


@pytest.mark.parametrize("way", ["loop", "thread"])
async def test_whatever_a_handler_raises_fails_its_attempt_only(dsn: str, queue: Queue, way: str) -> None:
    tasks = Tasks()

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raisable = {
        "nul": ValueError("a\x00b\ud800c"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "stop": StopIteration(1),
        "cancelled": asyncio.CancelledError(),
        "unprintable": Unprintable(),
        "huge": ValueError("x" * 10_000_000),
        "group": BaseExceptionGroup("several", [SystemExit(), ValueError("v")]),
    }

    def throw(what: str) -> None:
        raise raisable[what]

    async def throw_async(what: str) -> None:
        raise raisable[what]

    if way == "loop":
        tasks.task(kind="throw")(throw_async)
    else:
        tasks.task(kind="throw")(throw)
    async with running(dsn, tasks):
        submitted = {what: await queue.submit("throw", {"what": what}, max_attempts=1) for what in raisable}
        ends = {what: await finished(queue, job.id) for what, job in submitted.items()}
    codes = {what: job.error["code"] for what, job in ends.items() if job.error is not None}
    assert codes == {
        "nul": "ValueError",
        "exit": "SystemExit",
        "interrupt": "KeyboardInterrupt",
        "stop": "RuntimeError" if way == "loop" else "StopIteration",
        "cancelled": "CancelledError",
        "unprintable": "Unprintable",
        "huge": "ValueError",
        "group": "BaseExceptionGroup",
    }
    assert {job.state for job in ends.values()} == {JobState.FAILED}
    nul = ends["nul"].error
    assert nul is not None
    assert nul["message"].startswith("a\ufffdb")


async def test_retries_with_backoff_until_the_attempts_are_used(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks = Tasks()
    attempts: list[int] = []

    @tasks.task(max_attempts=3, retry_base_seconds=0.01, retry_cap_seconds=0.02)
    async def unlucky() -> None:
        attempts.append(current_job().attempt)
        raise OSError("no luck")

    async with running(dsn, tasks):
        job = await finished(queue, (await queue.submit("unlucky")).id)
    assert attempts == [1, 2, 3]
    assert (job.state, job.attempt) == ("failed", 3)
    assert job.error is not None
    assert job.error["code"] == "OSError"
    [kind] = [kind for kind in await queue.kinds() if kind.kind == "unlucky"]
    assert kind.retry_cap == timedelta(seconds=0.02)


async def test_a_snooze_burns_no_attempt(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    seen: list[tuple[int, int]] = []

    @tasks.task(max_attempts=1)
    async def later() -> Any:
        seen.append((current_job().attempt, current_job().lease_token))
        return Snooze(timedelta(milliseconds=10)) if len(seen) < 3 else "done"

    async with running(dsn, tasks):
        job = await finished(queue, (await queue.submit("later")).id)
    assert (job.state, job.result, job.attempt) == ("completed", "done", 1)
    assert seen == [(1, 1), (1, 2), (1, 3)]


async def test_poison_hurts_only_itself(dsn: str, queue: Queue, conn: psycopg.AsyncConnection) -> None:
    tasks = Tasks()

    @tasks.task
    async def add(n: float, m: int = 0) -> float:
        return n + m

    deep = '{"n":' + "[" * 3000 + "]" * 3000 + "}"
    rows = {
        "innocent": '{"n": 1}',
        "number": '{"n": 1e5000}',
        "long number": '{"n": 1' + "0" * 5000 + "}",
        "deep": deep,
        "wrong type": '{"n": "x"}',
        "extra": '{"n": 1, "q": 2}',
        "missing": "{}",
        "no object": "[1]",
        "innocent too": '{"n": 2, "m": 3}',
    }
    for name, payload in rows.items():
        await conn.execute(
            "insert into queue_pg.jobs (kind, payload, metadata) values ('add', %s::jsonb, %s)",
            [payload, Jsonb({"name": name})],
        )
    await conn.execute(
        "insert into queue_pg.jobs (kind, payload, metadata) values ('add', '{\"n\":1}', '{\"x\":1e5000}')"
    )
    cursor = await conn.execute("select id, metadata->>'name' from queue_pg.jobs")
    names: dict[UUID, str | None] = dict(await cursor.fetchall())
    async with running(dsn, tasks, concurrency=20):
        ends = {name: await finished(queue, job_id) for job_id, name in names.items()}
    assert (ends["innocent"].result, ends["innocent"].attempt) == (1, 1)
    assert (ends["innocent too"].result, ends["innocent too"].attempt) == (5, 1)
    for unreadable in ("number", "long number", "deep", None):
        error = ends[unreadable].error
        assert error is not None
        assert (ends[unreadable].state, error["code"]) == ("failed", "payload_unreadable")
    for name, field in (
        ("wrong type", "payload.n"),
        ("extra", "payload.q"),
        ("missing", "payload.n"),
        ("no object", "payload"),
    ):
        error = ends[name].error
        assert error is not None
        assert (ends[name].attempt, error["code"], error["field"]) == (1, "payload_invalid", field)


async def test_a_result_that_the_database_refuses_spoils_no_batch(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks = Tasks()
    ready = asyncio.Barrier(3)

    @tasks.task
    async def give(what: int) -> Any:
        await ready.wait()
        return what

    # Stands for whatever limit of the server our own checks do not know.
    await conn.execute(
        "alter table queue_pg.finished_jobs add constraint picky check (result is null or result <> '13'::jsonb)"
    )
    async with running(dsn, tasks):
        jobs = [await queue.submit("give", {"what": what}) for what in (12, 13, 14)]
        ends = [await finished(queue, job.id) for job in jobs]
    assert [job.state for job in ends] == ["completed", "failed", "completed"]
    assert ends[1].error is not None
    assert ends[1].error["code"] == "result_invalid"


async def test_claims_only_kinds_it_knows_and_queues_it_serves(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks = Tasks()

    @tasks.task
    async def known() -> None: ...

    foreign = await conn.execute("insert into queue_pg.jobs (kind) values ('foreign') returning id")
    [foreign_id] = await foreign.fetchone() or [uuid4()]
    elsewhere = await queue.submit("known", queue="elsewhere")
    async with running(dsn, tasks, queues=("default", "second")) as worker:
        assert (await finished(queue, (await queue.submit("known", queue="second")).id)).state == "completed"
        [listed] = await queue.workers()
        assert (listed.id, listed.kinds, listed.queues) == (
            worker.id,
            ["chat", "known", "plan", "subtask", "webhook"],
            ["default", "second"],
        )
    assert (await row(conn, foreign_id))["state"] == "queued"
    assert (await row(conn, elsewhere.id))["state"] == "queued"
    assert await queue.workers() == []


async def test_never_more_than_its_slots(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    now = 0
    most = 0
    lock = threading.Lock()
    both_kinds_full = threading.Event()

    def enter() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == 4:
                both_kinds_full.set()

    def leave() -> None:
        nonlocal now
        with lock:
            now -= 1

    @tasks.task
    async def on_the_loop() -> None:
        enter()
        await asyncio.sleep(0.002)
        leave()

    @tasks.task
    def in_a_thread() -> None:
        enter()
        both_kinds_full.wait(10)
        leave()

    from queue_pg.models import NewJob

    submitted = await queue.submit_many(
        NewJob(kind="in_a_thread" if number % 2 else "on_the_loop") for number in range(100)
    )
    async with running(dsn, tasks, concurrency=4):
        for one in submitted:
            assert (await finished(queue, one.id)).state == "completed"
    assert most == 4


async def test_a_sync_handler_gets_the_context_variables(dsn: str, queue: Queue) -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="unset")
    variable.set("carried")
    tasks = Tasks()

    @tasks.task
    def read() -> str:
        return variable.get()

    async with running(dsn, tasks):
        assert (await finished(queue, (await queue.submit("read")).id)).result == "carried"


async def test_an_idle_worker_is_woken(dsn: str, queue: Queue) -> None:
    async with running(dsn) as worker, emitted(worker, "idle") as idle, emitted(worker, "claimed") as claimed:
        await idle()
        await soon(asyncio.to_thread(worker.wakeups.wait_listening, 10))
        job = await queue.submit("chat", {"prompt": "hi"})
        assert await claimed() == 1
        assert (await finished(queue, job.id)).state == "completed"


async def test_without_notifications_it_polls(dsn: str, queue: Queue) -> None:
    async with running(dsn, notify=False) as worker, emitted(worker, "idle") as idle:
        await idle()
        job = await queue.submit("chat", {"prompt": "hi"})
        assert (await finished(queue, job.id)).state == "completed"
