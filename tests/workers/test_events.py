"""What running handlers say: in order, before the outcome, fenced, kept through an outage, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from in_process import emitted, finished, running, soon
from queue_pg_workers import event_buffer
from queue_pg_workers.event_buffer import EventBuffer
from queue_pg_workers.link import Link
from queue_pg_workers.signals import Signals

from queue_pg import InvalidJob, JobEvent, LeaseLost, Queue, store
from queue_pg.handler_events import chunk_events, log_event
from queue_pg.tasks import JobContext, Tasks, current_job
from queue_pg.testing import drain


async def events(queue: Queue, job: UUID) -> list[JobEvent]:
    return (await queue.events_page(job)).events


async def told(queue: Queue, job: UUID) -> list[tuple[str, Any]]:
    """What handlers said, without the transitions."""
    plain = ("submitted", "started", "completed", "failed", "cancelled", "lease_lost")
    return [(event.type, event.data) for event in await events(queue, job) if event.type not in plain]


SAID = [
    ("log", {"stream": "stdout", "line": "hello"}),
    ("log", {"stream": "stderr", "line": "oh", "level": 3}),
    ("progress", {"fraction": 0.5}),
    ("progress", {"step": 2}),
    ("chunk", {"text": "to"}),
    ("chunk", {"text": "ken"}),
    ("cooked", {"dish": "rice"}),
]


def speaking() -> Tasks:
    tasks = Tasks()

    @tasks.task
    async def on_the_loop() -> str:
        job = current_job()
        await job.log("hello")
        await job.log("oh", "stderr", level=3)
        await job.progress(0.5)
        await job.progress({"step": 2})
        await job.stream("to")
        await job.stream("ken")
        await job.emit("cooked", {"dish": "rice"})
        return "done"

    @tasks.task
    def in_a_thread() -> str:
        job = current_job()
        job.log_blocking("hello")
        job.log_blocking("oh", "stderr", level=3)
        job.progress_blocking(0.5)
        job.progress_blocking({"step": 2})
        job.stream_blocking("to")
        job.stream_blocking("ken")
        job.emit_blocking("cooked", {"dish": "rice"})
        return "done"

    return tasks


@pytest.mark.parametrize("kind", ["on_the_loop", "in_a_thread"])
async def test_handlers_say_things_before_they_end(dsn: str, queue: Queue, kind: str) -> None:
    async with running(dsn, speaking()):
        job = await queue.submit(kind)
        assert (await finished(queue, job.id)).result == "done"
    assert await told(queue, job.id) == SAID
    assert [event.type for event in await events(queue, job.id)][-1] == "completed"


@pytest.mark.parametrize("kind", ["on_the_loop", "in_a_thread"])
async def test_and_in_tests_of_applications(queue: Queue, kind: str) -> None:
    await queue.submit(kind)
    [job] = await drain(queue, speaking())
    assert job.result == "done"
    assert await told(queue, job.id) == SAID


async def test_a_reader_sees_it_while_the_handler_runs(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    go_on = asyncio.Event()

    @tasks.task
    async def chat() -> None:
        await current_job().stream("first")
        await go_on.wait()

    async with running(dsn, tasks):
        job = await queue.submit("chat")
        async for event in queue.events(job.id):
            if event.type == "chunk":
                go_on.set()
        assert event.type == "completed"


@pytest.mark.parametrize("kind", ["chat", "blocking_chat"])
async def test_a_reader_waits_for_no_gathering(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(event_buffer, "GATHER_SECONDS", 3_600.0)
    tasks = Tasks()
    heard = asyncio.Event()

    @tasks.task
    async def chat() -> None:
        for n in range(5):
            heard.clear()
            await current_job().stream(str(n))
            await heard.wait()

    @tasks.task
    def blocking_chat() -> None:
        for n in range(5):
            heard.clear()
            current_job().stream_blocking(str(n))
            asyncio.run_coroutine_threadsafe(heard.wait(), loop).result()

    loop = asyncio.get_running_loop()

    async def read(job: UUID) -> str:
        said = ""
        async for event in queue.events(job):
            if event.type == "chunk":
                said += event.data["text"]
                heard.set()
        return said

    job = await queue.submit(kind)
    # Before the first word: who comes after it is known with the next batch only.
    await conn.execute("select queue_pg.follow(array[%s])", (job.id,))
    async with running(dsn, tasks):
        assert await soon(read(job.id)) == "01234"


class Storing:
    """A link whose user is told of every statement that has been run."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.conn = conn
        self.ran = asyncio.Event()

    async def run(self, statement: Callable[[Any], Awaitable[Any]], **_: Any) -> Any:
        answer = await statement(self.conn)
        self.ran.set()
        return answer


async def test_while_nobody_reads_more_is_gathered(
    queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_buffer, "GATHER_SECONDS", 3_600.0)
    await queue.submit("k")
    [claimed] = await queue.claim("w", ["default"])
    link = Storing(conn)
    buffer = EventBuffer(link, signals=Signals(), on_lost=lambda _: True)  # type: ignore[arg-type]
    job = context(claimed.id, claimed.lease_token)
    key = (str(job.job_id), job.lease_token)
    storing = asyncio.create_task(buffer.run())

    async def stored_by_itself() -> bool:
        done, _ = await asyncio.wait({waiting := asyncio.create_task(link.ran.wait())}, timeout=0.1)
        waiting.cancel()
        link.ran.clear()
        return bool(done)

    # Whether somebody reads is not known before the first answer.
    await buffer.add(job, [log_event("first")])
    await soon(link.ran.wait())
    link.ran.clear()
    await buffer.add(job, [log_event("second")])
    assert not await stored_by_itself()
    # An outcome ends the gathering, and the answer tells of readers that have come meanwhile.
    await conn.execute("select queue_pg.follow(array[%s])", (claimed.id,))
    stored = asyncio.Event()
    buffer.when_stored(key, stored.set)
    await soon(stored.wait())
    link.ran.clear()
    await buffer.add(job, [log_event("third")])
    await soon(link.ran.wait())
    buffer.close()
    await soon(storing)
    assert [data["line"] for _, data in await told(queue, claimed.id)] == ["first", "second", "third"]


async def test_a_failing_handler_has_said_it_all(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task(max_attempts=1)
    async def fails() -> None:
        for n in range(100):
            await current_job().log(f"line {n}")
        raise ValueError("no")

    async with running(dsn, tasks):
        job = await queue.submit("fails")
        assert (await finished(queue, job.id)).state == "failed"
    found = await events(queue, job.id)
    assert [event.data["line"] for event in found[2:-1]] == [f"line {n}" for n in range(100)]
    assert [event.seq for event in found] == list(range(1, 104))


async def test_what_cannot_be_stored_is_refused_in_the_handler_or_shown_as_refused(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    async def odd() -> list[str]:
        job = current_job()
        refused: list[str] = []
        attempts: list[Callable[[], Awaitable[None]]] = [
            lambda: job.emit("a", {"n": float("nan")}),
            lambda: job.emit("a", {"text": "x" * 70_000}),
            lambda: job.progress(2),
            lambda: job.log("x", note=object()),
        ]
        for attempt in attempts:
            try:
                await attempt()
            except InvalidJob as error:
                refused.append(error.field)
        await job.log("nul \x00 and surrogate \ud800")
        await job.log(b"bytes")  # type: ignore[arg-type]
        await job.log("y" * 100_000)
        # Known only when it is stored; the others of its batch are not to suffer.
        await job.emit("completed")
        await job.emit("Not A Type")
        await job.emit("wide", {"numbers": [1e-300] * 5_000})
        await job.log("last")
        return refused

    async with running(dsn, tasks):
        job = await queue.submit("odd")
        assert (await finished(queue, job.id)).result == ["data.n", "data", "progress", "fields.note"]
    said = await told(queue, job.id)
    lines = [data["line"] for name, data in said if name == "log"]
    assert lines[0].rstrip("\ufffd") == "nul \ufffd and surrogate "
    assert lines[1] == "b'bytes'"
    assert "characters cut" in lines[2]
    assert lines[3] == "last"
    assert [data["type"] for name, data in said if name == "refused"][:2] == ["completed", "Not A Type"]


async def test_a_long_chunk_comes_out_whole(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    text = "Ünïcødé 🎈" * 10_000

    @tasks.task
    async def long() -> None:
        await current_job().stream(text)
        await current_job().stream("")

    async with running(dsn, tasks):
        job = await queue.submit("long")
        assert (await finished(queue, job.id)).state == "completed"
    assert "".join(data["text"] for _, data in await told(queue, job.id)) == text


async def test_a_lost_lease_stops_the_handler_that_speaks(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    spoke = asyncio.Event()

    @tasks.task
    async def speaks() -> None:
        while True:
            await current_job().log("still here")
            spoke.set()
            await asyncio.sleep(0.001)

    # Without notifications and heartbeats only what it says can tell it.
    async with (
        running(dsn, tasks, notify=False, lease_seconds=60) as worker,
        emitted(worker, "slot_freed") as freed,
        emitted(worker, "finished") as recorded,
    ):
        job = await queue.submit("speaks")
        await soon(spoke.wait())
        await queue.cancel(job.id)
        await freed()
        assert await recorded() == (job.id, False, None)
    assert [event.type for event in await events(queue, job.id)][-1] == "cancelled"


async def test_an_outage_loses_nothing_and_stores_nothing_twice(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    release = asyncio.Event()

    @tasks.task
    async def speaks() -> None:
        for n in range(300):
            await current_job().log(f"line {n}")
            await asyncio.sleep(0.001)
        await release.wait()
        await current_job().log("end")

    async with running(dsn, tasks), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
        job = await queue.submit("speaks")
        for _ in range(5):
            async for event in queue.events(job.id):
                if event.type == "log":
                    break
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'queue-pg worker%%'"
                " and datname = current_database()"
            )
            await asyncio.sleep(0.05)
        release.set()
        assert (await finished(queue, job.id)).state == "completed"
    lines = [data["line"] for _, data in await told(queue, job.id)]
    assert lines == [*(f"line {n}" for n in range(300)), "end"]


class LostAnswers:
    """A link that does what it is told and then loses the answer, `losses` times."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], losses: int) -> None:
        self.conn = conn
        self.losses = losses

    async def run(self, statement: Callable[[Any], Awaitable[Any]], **_: Any) -> Any:
        answer = await statement(self.conn)
        if self.losses and isinstance(answer, list):
            self.losses -= 1
            raise psycopg.OperationalError("the connection is lost")
        return answer


@pytest.mark.parametrize("before", [0, 1])
async def test_a_batch_whose_answer_was_lost_is_not_stored_twice(
    queue: Queue, conn: psycopg.AsyncConnection, before: int
) -> None:
    await queue.submit("k")
    [claimed] = await queue.claim("w", ["default"])
    link = LostAnswers(conn, 0)
    buffer = EventBuffer(link, signals=Signals(), on_lost=lambda _: True)  # type: ignore[arg-type]
    job = context(claimed.id, claimed.lease_token)
    storing = asyncio.create_task(buffer.run())
    stored = asyncio.Event()
    for n in range(before):
        await buffer.add(job, [log_event(f"before {n}")])
        buffer.when_stored((str(job.job_id), 1), stored.set)
        await soon(stored.wait())
        stored.clear()
    link.losses = 1
    await buffer.add(job, [log_event("one"), log_event("two")])
    buffer.when_stored((str(job.job_id), 1), stored.set)
    await soon(stored.wait())
    buffer.close()
    await soon(storing)
    lines = [data["line"] for _, data in await told(queue, claimed.id)]
    assert lines == [*(f"before {n}" for n in range(before)), "one", "two"]


async def test_whether_a_batch_was_stored_is_told_when_the_statement_that_stores_it_has_ended(
    queue: Queue, conn: psycopg.AsyncConnection, dsn: str
) -> None:
    """Its line may be cut while the server is still at it."""
    await queue.submit("k")
    [claimed] = await queue.claim("w", ["default"])
    async with (
        await psycopg.AsyncConnection.connect(dsn) as server,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as asking,
    ):
        await server.execute(
            "select queue_pg.append_events(%s::uuid[], array[1]::bigint[], array['log'], array['{}']::jsonb[])",
            ([claimed.id],),
        )
        told = asyncio.create_task(store.appended(asking, [claimed.id], [1]))
        waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
        async with asyncio.timeout(20):
            while not told.done():
                if await (await conn.execute(waits, (asking.info.backend_pid,))).fetchone() == (True,):
                    break
                await asyncio.wait({told}, timeout=0.01)
        await server.commit()
        assert await soon(told) == {str(claimed.id): (True, 1)}


async def test_the_buffer_is_bounded_and_the_handlers_wait(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setattr(event_buffer, "MAX_EVENTS", 10)
    buffer = EventBuffer(Link(dsn, application="test"), signals=Signals(), on_lost=lambda _: True)
    job = context(uuid4(), 1)
    for _ in range(10):
        await buffer.add(job, [log_event("x")])
    waiting = asyncio.create_task(buffer.add(job, [log_event("y")]))
    blocked = asyncio.create_task(asyncio.to_thread(buffer.add_blocking, job, [log_event("z")]))
    done, _ = await asyncio.wait({waiting, blocked}, timeout=0.05)
    assert not done
    job.cancelled.set()
    with pytest.raises(LeaseLost):
        await soon(blocked)
    assert len(buffer._next_batch()) == 10
    await soon(waiting)
    buffer.give_up()


async def test_nothing_is_kept_of_attempts_that_ended(dsn: str, queue: Queue) -> None:
    async with running(dsn, speaking()) as worker:
        for _ in range(5):
            job = await queue.submit("on_the_loop")
            await finished(queue, job.id)
        assert worker._events.silent
        await queue.submit("in_a_thread")


def test_a_handler_in_a_process_is_told_that_it_cannot_speak() -> None:
    job = context(uuid4(), 1)
    with pytest.raises(RuntimeError, match='run_in="process"'):
        job.log_blocking("x")


def test_chunks_are_split_and_never_cut() -> None:
    assert chunk_events("") == []
    assert len(chunk_events("x" * 24_001)) == 3


def context(job_id: UUID, token: int) -> JobContext:
    return JobContext(job_id=job_id, kind="k", queue="q", attempt=1, max_attempts=3, lease_token=token)
