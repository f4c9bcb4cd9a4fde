"""Handlers with steps, durable sleeps and events, in real workers."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from in_process import emitted, finished, running, soon
from process_tasks import process_tasks
from worker_process import cuttable, told_pipe, worker_process

from queue_pg import EventTimeout, InvalidStep, LeaseLost, Queue, Suspended
from queue_pg.models import JobState
from queue_pg.tasks import JobContext, Tasks, current_job
from queue_pg.testing import Clock, drain


async def test_a_retry_resumes_after_the_last_finished_step(dsn: str, queue: Queue) -> None:
    tasks, did = Tasks(), list[str]()

    @tasks.task(retry_base_seconds=0, retry_cap_seconds=0)
    async def order(item: str) -> dict[str, Any]:
        job = current_job()

        async def fetch(name: str, *, times: int) -> dict[str, Any]:
            did.append("fetch")
            return {"name": name, "pair": (times, times)}

        def charge() -> None:
            did.append("charge")

        found = await job.step("fetch", fetch, item, times=2)
        if job.attempt == 1:
            raise ConnectionError("the network")
        charged = await job.step("charge", charge)
        if job.attempt == 2:
            raise ConnectionError("again")
        return {"found": found, "charged": charged, "attempt": job.attempt}

    async with running(dsn, tasks):
        end = await finished(queue, (await queue.submit("order", {"item": "book"})).id)
    # A kept result is what JSON makes of it, in the attempt that made it too.
    assert end.result == {"found": {"name": "book", "pair": [2, 2]}, "charged": None, "attempt": 3}
    assert did == ["fetch", "charge"]
    kept = await queue.steps(end.id)
    assert [(step.name, step.type, step.result, step.attempt) for step in kept] == [
        ("fetch", "step", {"name": "book", "pair": [2, 2]}, 1),
        ("charge", "step", None, 2),
    ]
    assert all(step.finished_at is not None for step in kept)


async def test_a_killed_worker_s_job_goes_on_after_its_last_step(dsn: str, queue: Queue, tmp_path: Path) -> None:
    job = await queue.submit("hang_between_steps")
    async with told_pipe(tmp_path) as pipe:
        async with worker_process(dsn, "telling_tasks", pipe=pipe, env={"LEASE_SECONDS": "1"}) as first:
            await first.told("began", 1)
            first.signal(signal.SIGKILL)
            await first.ended()
        async with worker_process(dsn, "telling_tasks", pipe=pipe) as second:
            # The next that is done is not the first step again.
            assert await second.told("did") == ["did", "second", "2"]
            end = await finished(queue, job.id)
    assert (end.state, end.result, end.attempt) == ("completed", [1, 2], 1)


def waiting_tasks(told: list[Any]) -> Tasks:
    """The same handler on the loop and in a thread."""
    tasks = Tasks()

    @tasks.task
    async def on_the_loop(timeout: float | None = None) -> Any:
        job = current_job()
        await job.step("draft", told.append, "draft")
        try:
            answer = await job.wait_for_event("review", timeout)
        except EventTimeout as error:
            return await job.step("give up", str, f"gave up: {error.event}")
        await job.sleep(timedelta(seconds=60), name="cool off")
        return {"answer": answer, "attempt": job.attempt}

    @tasks.task
    def in_a_thread(timeout: float | None = None) -> Any:
        job = current_job()
        job.step_blocking("draft", told.append, "draft")
        try:
            answer = job.wait_for_event_blocking("review", timeout)
        except EventTimeout as error:
            return job.step_blocking("give up", str, f"gave up: {error.event}")
        job.sleep_blocking(60, name="cool off")
        return {"answer": answer, "attempt": job.attempt}

    @tasks.task
    async def other() -> str:
        return "other"

    return tasks


KINDS = pytest.mark.parametrize("kind", ["on_the_loop", "in_a_thread"])


@KINDS
async def test_waiting_frees_the_slot_and_burns_no_attempt(dsn: str, queue: Queue, clock: Clock, kind: str) -> None:
    told: list[Any] = []
    async with running(dsn, waiting_tasks(told), concurrency=1) as worker, emitted(worker, "finished") as recorded:
        job = await queue.submit(kind, max_attempts=1)
        assert await recorded() == (job.id, True, "scheduled")
        # One slot, and another job runs in it.
        assert await queue.result((await queue.submit("other")).id, 20) == "other"
        [why] = await queue.why_waiting(job.id)
        assert (why.reason, why.held_by) == ("event", "review")
        await recorded()
        assert await queue.signal(job.id, "review", {"approved": True}) is True
        assert await recorded() == (job.id, True, "scheduled")
        [why] = await queue.why_waiting(job.id)
        assert (why.reason, why.detail) == ("sleep", "The job sleeps (step 'cool off').")
        clock.advance(61)
        end = await finished(queue, job.id)
    assert end.result == {"answer": {"approved": True}, "attempt": 1}
    assert told == ["draft"]
    assert [(step.name, step.type) for step in await queue.steps(job.id)] == [
        ("draft", "step"),
        ("review", "event"),
        ("cool off", "sleep"),
    ]


@KINDS
async def test_an_event_that_does_not_come_in_time(dsn: str, queue: Queue, clock: Clock, kind: str) -> None:
    async with running(dsn, waiting_tasks([]), concurrency=1) as worker, emitted(worker, "finished") as recorded:
        job = await queue.submit(kind, {"timeout": 3600})
        assert await recorded() == (job.id, True, "scheduled")
        clock.advance(3601)
        end = await finished(queue, job.id)
    assert (end.state, end.result) == ("completed", "gave up: review")
    event = (await queue.steps(job.id))[1]
    assert (event.name, event.timed_out, event.result) == ("review", True, None)


async def test_a_timeout_that_nobody_catches_fails_the_job_until_it_is_retried(
    dsn: str, queue: Queue, clock: Clock
) -> None:
    tasks = Tasks()

    @tasks.task
    async def impatient() -> Any:
        return await current_job().wait_for_event("review", 60)

    async with running(dsn, tasks, concurrency=1) as worker, emitted(worker, "finished") as recorded:
        job = await queue.submit("impatient")
        await recorded()
        clock.advance(61)
        end = await finished(queue, job.id)
        assert (end.state, end.attempt) == ("failed", 1)
        assert end.error is not None
        assert (end.error["code"], end.error["event"]) == ("event_timeout", "review")
        await recorded()
        await queue.retry(job.id)
        assert await recorded() == (job.id, True, "scheduled")
        await queue.signal(job.id, "review", 7)
        assert await queue.result(job.id, 20) == 7


async def test_a_signal_before_the_wait_needs_no_second_run(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    async def patient() -> Any:
        job = current_job()
        return [await job.wait_for_event("go"), job.lease_token]

    job = await queue.submit("patient")
    assert await queue.signal(job.id, "go", "early") is True
    assert await queue.signal(job.id, "go", "late") is False
    async with running(dsn, tasks):
        assert await queue.result(job.id, 20) == ["early", 1]


async def test_a_signal_while_the_handler_runs(dsn: str, queue: Queue) -> None:
    tasks, reached, go_on = Tasks(), asyncio.Event(), asyncio.Event()

    @tasks.task
    async def busy() -> Any:
        reached.set()
        await go_on.wait()
        job = current_job()
        return [await job.wait_for_event("go"), job.lease_token]

    async with running(dsn, tasks):
        job = await queue.submit("busy")
        await soon(reached.wait())
        await queue.signal(job.id, "go", 1)
        go_on.set()
        assert await queue.result(job.id, 20) == [1, 1]


async def test_signals_and_waits_in_a_storm(dsn: str, queue: Queue) -> None:
    """Each signal comes at about the moment at which its job begins to wait, and none is lost."""
    tasks = Tasks()

    @tasks.task
    async def patient(number: int) -> Any:
        job = current_job()
        return [await job.wait_for_event("a"), await job.wait_for_event("b")]

    async with running(dsn, tasks, concurrency=8):

        async def one(number: int) -> Any:
            job = await queue.submit("patient", {"number": number})
            await asyncio.sleep(0.001 * (number % 7))
            await asyncio.gather(queue.signal(job.id, "b", -number), queue.signal(job.id, "a", number))
            return await queue.result(job.id, 20)

        assert await asyncio.gather(*map(one, range(60))) == [[number, -number] for number in range(60)]


async def test_a_durable_sleep_until_a_moment_and_one_that_is_over(dsn: str, queue: Queue, clock: Clock) -> None:
    tasks = Tasks()

    @tasks.task
    async def sleepy(until: datetime) -> list[str]:
        job = current_job()
        await job.sleep(0)
        await job.sleep(until=datetime(2020, 1, 1, tzinfo=UTC))
        await job.sleep(until=until)
        return [step.name for step in await queue.steps(job.job_id)]

    async with running(dsn, tasks, concurrency=1) as worker, emitted(worker, "finished") as recorded:
        until = clock.now() + timedelta(hours=5)
        job = await queue.submit("sleepy", {"until": until.isoformat()})
        assert await recorded() == (job.id, True, "scheduled")
        assert (await queue.get(job.id)).run_at == until
        clock.advance(5 * 3600 + 1)
        assert await queue.result(job.id, 20) == ["sleep 1", "sleep 2", "sleep 3"]


async def test_several_waits_at_once(dsn: str, queue: Queue, clock: Clock) -> None:
    tasks = Tasks()

    @tasks.task
    async def both() -> Any:
        job = current_job()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(job.wait_for_event("a"))
            second = group.create_task(job.wait_for_event("b"))
        return [first.result(), second.result()]

    async with running(dsn, tasks, concurrency=1) as worker, emitted(worker, "finished") as recorded:
        job = await queue.submit("both", max_attempts=1)
        await recorded()
        await queue.signal(job.id, "b", 2)
        assert await recorded() == (job.id, True, "scheduled")
        await queue.signal(job.id, "a", 1)
        assert await queue.result(job.id, 20) == [1, 2]


async def test_steps_at_once_read_the_kept_ones_once(dsn: str, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, reads = Tasks(), list[UUID]()
    from queue_pg import step_store

    read = step_store.steps

    async def counted(conn: Any, job_id: UUID, **options: Any) -> Any:
        reads.append(job_id)
        return await read(conn, job_id, **options)

    monkeypatch.setattr(step_store, "steps", counted)

    @tasks.task
    async def many() -> Any:
        job = current_job()
        return await asyncio.gather(*(job.step(f"s{n}", lambda n=n: n) for n in range(20)))

    @tasks.task
    async def none() -> None:
        current_job()

    async with running(dsn, tasks):
        await finished(queue, (await queue.submit("none")).id)
        job = await queue.submit("many")
        assert await queue.result(job.id, 20) == list(range(20))
    assert reads == [job.id]


# --- what makes no sense ----------------------------------------------------------------------------------------------


async def test_what_makes_no_sense_is_told_and_not_retried(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    async def twice(job: JobContext) -> None:
        await job.step("a", lambda: 1)
        await job.step("a", lambda: 2)

    wrong: dict[str, Any] = {
        "twice": twice,
        "no json": lambda job: job.step("a", object),
        "nan": lambda job: job.step("a", lambda: float("nan")),
        "large": lambda job: job.step("a", lambda: "x" * 1_048_576),
        "large in jsonb": lambda job: job.step("a", lambda: [0] * 400_000),
        "empty name": lambda job: job.step("", lambda: 1),
        "long name": lambda job: job.step("x" * 201, lambda: 1),
        "no name": lambda job: job.step(None, lambda: 1),
        "nul": lambda job: job.step("a\0", lambda: 1),
        "no duration": lambda job: job.sleep(),
        "negative": lambda job: job.sleep(-1),
        "both": lambda job: job.sleep(1, until=datetime.now(UTC)),
        "no zone": lambda job: job.sleep(until=datetime(2040, 1, 1)),
        "too far": lambda job: job.sleep(until=datetime(9000, 1, 1, tzinfo=UTC)),
        "timeout": lambda job: job.wait_for_event("a", timeout="soon"),
        "negative timeout": lambda job: job.wait_for_event("a", timeout=-1),
    }

    @tasks.task
    async def handler(what: str) -> None:
        await wrong[what](current_job())

    async with running(dsn, tasks):
        for what in wrong:
            end = await finished(queue, (await queue.submit("handler", {"what": what})).id)
            assert end.error is not None, what
            assert (end.state, end.attempt, end.error["code"]) == ("failed", 1, "invalid_step"), what
            assert "step " in end.error["message"]


async def test_a_failed_step_may_be_tried_again(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    async def stubborn() -> Any:
        job, tries = current_job(), list[int]()

        def flaky() -> int:
            tries.append(1)
            if len(tries) < 3:
                raise ConnectionError
            return len(tries)

        while True:
            try:
                return await job.step("flaky", flaky)
            except ConnectionError:
                continue

    async with running(dsn, tasks):
        assert await queue.result((await queue.submit("stubborn")).id, 20) == 3


async def test_a_name_that_changed_its_type(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task(retry_base_seconds=0, retry_cap_seconds=0)
    async def changed() -> None:
        job = current_job()
        if job.attempt == 1:
            await job.step("a", lambda: 1)
            raise ConnectionError
        await job.wait_for_event("a")

    async with running(dsn, tasks):
        end = await finished(queue, (await queue.submit("changed")).id)
    assert end.error is not None
    assert (end.attempt, end.error["code"], end.error["step"]) == (2, "invalid_step", "a")


async def test_async_steps_are_not_for_threads(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    async def work() -> None: ...

    @tasks.task
    def in_a_thread() -> None:
        current_job().step_blocking("a", work)

    async with running(dsn, tasks):
        end = await finished(queue, (await queue.submit("in_a_thread")).id)
    assert end.error is not None
    assert (end.error["code"], "async" in end.error["message"]) == ("invalid_step", True)


async def test_handlers_in_processes_have_no_steps(dsn: str, queue: Queue) -> None:
    async with running(dsn, process_tasks, concurrency=1):
        end = await finished(queue, (await queue.submit("step_in_process", max_attempts=1)).id)
    assert end.error is not None
    assert end.error["code"] == "RuntimeError"
    assert 'run_in="process"' in end.error["message"]


async def test_a_handler_that_swallows_the_suspension_has_its_way(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    async def rude() -> str:
        try:
            await current_job().wait_for_event("go")
        except Exception:
            return "an Exception"
        except Suspended:
            return "told"
        return "went on"

    async with running(dsn, tasks):
        assert await queue.result((await queue.submit("rude")).id, 20) == "told"


async def test_a_stale_worker_saves_nothing(dsn: str, queue: Queue, conn: psycopg.AsyncConnection) -> None:
    tasks, reached, go_on, caught = Tasks(), asyncio.Event(), asyncio.Event(), list[Exception]()

    @tasks.task
    def slow() -> None:
        """Blocks in a thread, which cannot be stopped."""
        job = current_job()

        def work() -> None:
            loop.call_soon_threadsafe(reached.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()

        try:
            job.step_blocking("a", work)
        except LeaseLost as error:
            caught.append(error)
            raise

    loop = asyncio.get_running_loop()
    async with running(dsn, tasks) as worker, emitted(worker, "slot_freed") as freed:
        job = await queue.submit("slow")
        await soon(reached.wait())
        await queue.cancel(job.id)
        go_on.set()
        assert await freed() == job.id
    assert len(caught) == 1
    assert await queue.steps(job.id) == []
    assert (await queue.get(job.id)).state == "cancelled"


async def test_a_step_that_is_done_outlives_a_short_outage(dsn: str, queue: Queue) -> None:
    tasks, times = Tasks(), list[int]()
    async with cuttable(dsn) as (line, through):

        @tasks.task
        async def unlucky() -> int:
            def work() -> int:
                times.append(1)
                line.refuse()
                asyncio.get_running_loop().call_later(0.2, line.heal)
                return len(times)

            return int(await current_job().step("a", work))

        async with running(through, tasks):
            job = await queue.submit("unlucky")
            assert await queue.result(job.id, 20) == 1
    assert times == [1]
    assert (await queue.get(job.id)).lease_token == 1


async def test_what_a_handler_asks_for_in_a_short_outage_it_gets(dsn: str, queue: Queue) -> None:
    """Its finished steps, a sleep, an event, an artifact: a lost line costs it no attempt."""
    tasks, loop = Tasks(), asyncio.get_running_loop()
    past = datetime(2000, 1, 1, tzinfo=UTC)
    async with cuttable(dsn) as (line, through):

        async def lose_the_line() -> None:
            line.refuse()
            loop.call_later(0.15, line.heal)

        def lose_the_line_in_a_thread() -> None:
            asyncio.run_coroutine_threadsafe(lose_the_line(), loop).result()

        @tasks.task
        async def on_the_loop() -> Any:
            job = current_job()
            await job.linked().run(lambda conn: conn.execute("select 1"))
            await lose_the_line()
            await job.step("a", int)
            await lose_the_line()
            await job.sleep(until=past)
            await lose_the_line()
            with pytest.raises(EventTimeout):
                await job.wait_for_event("e", timeout=0)
            await lose_the_line()
            await job.artifact("out.txt", b"done")
            await lose_the_line()
            return (await (await job.open_artifact("out.txt")).read()).decode()

        @tasks.task
        def in_a_thread() -> Any:
            job = current_job()
            job.linked().run_blocking(lambda conn: conn.execute("select 1"))
            lose_the_line_in_a_thread()
            job.step_blocking("a", int)
            lose_the_line_in_a_thread()
            job.sleep_blocking(until=past)
            lose_the_line_in_a_thread()
            with pytest.raises(EventTimeout):
                job.wait_for_event_blocking("e", timeout=0)
            lose_the_line_in_a_thread()
            job.artifact_blocking("out.txt", b"done")
            lose_the_line_in_a_thread()
            return job.open_artifact_blocking("out.txt").read().decode()

        async with running(through, tasks):
            for kind in ("on_the_loop", "in_a_thread"):
                job = await queue.submit(kind)
                assert await queue.result(job.id, 20) == "done"
                assert (await queue.get(job.id)).lease_token == 1


async def test_steps_in_tests_of_applications(queue: Queue, clock: Clock) -> None:
    tasks = waiting_tasks([])
    for kind in ("on_the_loop", "in_a_thread"):
        job = await queue.submit(kind)
        assert [each.state for each in await drain(queue, tasks)] == [JobState.SCHEDULED]
        await queue.signal(job.id, "review", 1)
        assert [each.state for each in await drain(queue, tasks)] == [JobState.SCHEDULED]
        clock.advance(61)
        [end] = await drain(queue, tasks)
        assert end.result == {"answer": 1, "attempt": 1}


def test_the_errors() -> None:
    job = JobContext(job_id=UUID(int=1), kind="k", queue="q", attempt=1, max_attempts=3, lease_token=1)
    error = EventTimeout(job.job_id, "go")
    assert isinstance(error, TimeoutError)
    assert (str(error), error.event, error.job_id) == ("The event 'go' did not come in time.", "go", job.job_id)
    assert str(InvalidStep("a", "no")) == "step 'a': no"
    assert not issubclass(Suspended, Exception)
