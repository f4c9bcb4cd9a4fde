"""Keeping a lease, losing it, and being stopped: timeout, cancel, lost lease, dead database."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from in_process import emitted, finished, row, running, soon
from process_tasks import process_tasks
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from queue_pg_workers.leases import FENCE_SECONDS
from stalls import stalled

from queue_pg import Queue, store
from queue_pg.errors import LeaseLost
from queue_pg.models import LeasedJob, NewJob
from queue_pg.surroundings import Surroundings
from queue_pg.tasks import Tasks, current_job
from tests.faults.lines import DOWN, UP, Line

LEASE: dict[str, Any] = {"lease_seconds": 1.0}


class Stoppable:
    """A task that says when it began and when it was stopped."""

    def __init__(self, tasks: Tasks) -> None:
        self.began: asyncio.Queue[int] = asyncio.Queue()
        self.stopped: asyncio.Queue[float] = asyncio.Queue()

        @tasks.task
        async def stoppable() -> None:
            self.began.put_nowait(current_job().lease_token)
            try:
                await asyncio.Event().wait()
            finally:
                assert current_job().cancelled.is_set()
                self.stopped.put_nowait(time.monotonic())


async def test_a_timeout_cancels_the_handler_and_burns_an_attempt(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    task = Stoppable(tasks)
    async with running(dsn, tasks):
        job = await queue.submit("stoppable", timeout=timedelta(milliseconds=50), max_attempts=1)
        await soon(task.stopped.get())
        end = await finished(queue, job.id)
    assert (end.state, end.attempt) == ("failed", 1)
    assert end.error is not None
    assert (end.error["code"], end.error["timeout_seconds"]) == ("timeout", 0.05)


async def test_a_timeout_is_retried(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task(timeout=timedelta(milliseconds=100), retry_base_seconds=0.01)
    async def slow_once() -> str:
        if current_job().attempt == 1:
            await asyncio.Event().wait()
        return "done"

    async with running(dsn, tasks):
        end = await finished(queue, (await queue.submit("slow_once")).id)
    assert (end.state, end.attempt, end.result) == ("completed", 2, "done")


async def test_a_thread_past_its_timeout_keeps_its_slot_only(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    told = threading.Event()
    let_go = threading.Event()

    @tasks.task(timeout=timedelta(milliseconds=50), max_attempts=1)
    def stubborn() -> None:
        if current_job().cancelled.wait(20):
            told.set()
        let_go.wait(20)

    @tasks.task
    async def other() -> str:
        return "ran"

    async with running(dsn, tasks, concurrency=1) as worker, emitted(worker, "slot_freed") as slot_freed:
        end = await finished(queue, (await queue.submit("stubborn")).id)
        assert end.error is not None
        assert end.error["code"] == "timeout"
        assert await asyncio.to_thread(told.wait, 10)
        waiting = await queue.submit("other")
        assert worker.stuck == 1
        assert (await queue.get(waiting.id)).state == "queued"
        let_go.set()
        await slot_freed()
        assert (await finished(queue, waiting.id)).state == "completed"


async def test_a_process_past_its_timeout_is_killed(dsn: str, queue: Queue, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    async with running(dsn, process_tasks, concurrency=1):
        # A process that is there already: the start of one can take longer than any timeout that a test can wait for.
        await finished(queue, (await queue.submit("count_primes", {"below": 10})).id)
        job = await queue.submit("tell_pid_and_hang", {"path": str(told)}, timeout=timedelta(seconds=3), max_attempts=1)
        end = await finished(queue, job.id)
        pid = int(told.read_text())
        assert end.error is not None
        assert end.error["code"] == "timeout"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        after = await finished(queue, (await queue.submit("count_primes", {"below": 10})).id)
        assert after.result["pid"] != pid


@pytest.mark.parametrize("notify", [True, False])
async def test_a_cancelled_job_is_stopped_within_a_second(dsn: str, queue: Queue, notify: bool) -> None:
    tasks = Tasks()
    task = Stoppable(tasks)
    async with running(dsn, tasks, notify=notify) as worker:
        if notify:
            await soon(asyncio.to_thread(worker.wakeups.wait_listening, 10))
        job = await queue.submit("stoppable")
        await soon(task.began.get())
        with stalled() as stalls:
            cancelled_at = time.monotonic()
            await queue.cancel(job.id, "changed my mind")
            assert await soon(task.stopped.get()) - cancelled_at - stalls.seconds < 1.0
        assert (await queue.get(job.id)).state == "cancelled"
        # The slot is free again.
        assert (await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)).state == "completed"


async def test_a_cancelled_handler_in_a_process_is_killed(dsn: str, queue: Queue, tmp_path: Path) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    async with running(dsn, process_tasks) as worker, emitted(worker, "slot_freed") as slot_freed:
        job = await queue.submit("tell_pid_and_hang", {"path": str(pipe)})
        pid = int(await asyncio.to_thread(pipe.read_text))
        await queue.cancel(job.id)
        await slot_freed()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_lost_lease_stops_the_handler_and_drops_its_outcome(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks = Tasks()
    task = Stoppable(tasks)
    async with (
        running(dsn, tasks, maintenance=False, notify=False) as worker,
        emitted(worker, "finished") as recorded,
    ):
        job = await queue.submit("stoppable")
        token = await soon(task.began.get())
        # As if this worker had been silent past its lease, and the reaper and another worker had been at the job.
        await conn.execute(
            "update queue_pg.jobs set lease_token = lease_token + 1, worker_id = 'other',"
            " lease_expires_at = queue_pg.now() + interval '1 h' where id = %s",
            [job.id],
        )
        await soon(task.stopped.get())
        assert await recorded() == (job.id, False, None)
        with pytest.raises(LeaseLost):
            await queue.complete(job.id, token, "too late")
        assert await row(conn, job.id) == {
            "state": "running",
            "attempt": 1,
            "lease_token": token + 1,
            "worker_id": "other",
            "error": None,
        }


@pytest.mark.parametrize("way", ["sleeping", "spinning"])
async def test_a_blocked_event_loop_keeps_its_leases(dsn: str, queue: Queue, way: str) -> None:
    tasks = Tasks()
    lease_seconds = 3.0

    @tasks.task(max_attempts=1)
    async def block() -> int:
        until = time.monotonic() + 2 * lease_seconds
        while time.monotonic() < until:
            if way == "sleeping":
                time.sleep(0.5)  # noqa: ASYNC251 - that is the point
        return current_job().lease_token

    # Its maintenance cannot reap while the loop is blocked, so another process's does.
    async with running(dsn, tasks, lease_seconds=lease_seconds):
        stop = threading.Event()
        reaper = threading.Thread(target=_reap, args=(dsn, stop))
        reaper.start()
        try:
            end = await finished(queue, (await queue.submit("block")).id)
        finally:
            stop.set()
            await asyncio.to_thread(reaper.join)
    assert (end.state, end.attempt, end.result) == ("completed", 1, 1)


async def test_leases_that_the_blocked_loop_has_not_heard_of_are_kept(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, blocked = store.claim_for_worker, False

    async def answered_late(conn: psycopg.AsyncConnection[Any], *args: Any, **options: Any) -> list[LeasedJob]:
        nonlocal blocked
        jobs = await claim(conn, *args, **options)
        if jobs and not blocked:
            blocked = True
            _block_past_the_lease(dsn, jobs[0].id)
        return jobs

    monkeypatch.setattr(store, "claim_for_worker", answered_late)
    tasks = Tasks()

    @tasks.task(max_attempts=1)
    async def work() -> int:
        # Long enough to be stopped, should its lease not be trusted.
        await asyncio.sleep(2 * FENCE_SECONDS)
        return current_job().lease_token

    async with running(dsn, tasks, lease_seconds=4.0) as worker:
        orphan = await _orphaned_by(worker.id, queue, conn)
        end = await finished(queue, (await queue.submit("work")).id)
    assert blocked
    assert (end.state, end.attempt, end.result) == ("completed", 1, 1)
    # Whatever it was that claimed this one in our name, it is not the claim that the loop waits for.
    assert (await row(conn, orphan))["state"] == "queued"


async def _orphaned_by(worker_id: str, queue: Queue, conn: psycopg.AsyncConnection) -> UUID:
    """Return a job whose claim in the name of the worker nobody has heard of, and that nobody takes afterwards."""
    job = await queue.submit("orphan", queue="other", timeout=timedelta(minutes=5))
    await conn.execute("select queue_pg.claim(%s, '{other}', lease => '4 seconds')", [worker_id])
    return job.id


def _block_past_the_lease(dsn: str, job: str) -> None:
    """Hold the thread past the end of the lease that the job has, reaping what is over."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        first = "select lease_expires_at from queue_pg.jobs where id = %s"
        [(end,)] = conn.execute(first, [job]).fetchall()
        while conn.execute("select queue_pg.now() <= %s", [end]).fetchall() == [(True,)]:
            pass
        conn.execute("select queue_pg.reap()")


def _reap(dsn: str, stop: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        looked_at = time.monotonic()
        while not stop.wait(0.1):
            now = time.monotonic()
            # After a moment in which the whole machine stood still the heartbeat has its turn first.
            if now - looked_at < 0.5:
                conn.execute("select queue_pg.reap()")
            looked_at = now


async def test_a_lease_shorter_than_the_heartbeat_is_extended(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks = Tasks()
    begun = asyncio.Event()
    go_on = asyncio.Event()

    @tasks.task
    async def wait() -> int:
        begun.set()
        await go_on.wait()
        return current_job().lease_token

    await conn.execute("insert into queue_pg.queues (queue, lease) values ('default', '3 seconds')")
    async with running(dsn, tasks) as worker:
        async with emitted(worker, "heartbeat") as beaten:
            await beaten()
            job = await queue.submit("wait")
            await soon(begun.wait())
            extended = 0
            while extended < 3:
                extended += await beaten()
        go_on.set()
        assert (await finished(queue, job.id)).result == 1


async def test_past_its_trust_deadline_a_handler_is_stopped(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks = Tasks()
    task = Stoppable(tasks)
    async with running(dsn, tasks, maintenance=False, notify=False, grace_seconds=0, **LEASE) as worker:
        job = await queue.submit("stoppable")
        await soon(task.began.get())
        async with conn.transaction():
            # Heartbeats hang on the row's lock, as on a database that does not answer; nobody reaps either.
            await conn.execute("select from queue_pg.jobs where id = %s for update", [job.id])
            async with emitted(worker, "handler_interrupted") as interrupted:
                assert await interrupted() == (job.id, "fenced")
            await soon(task.stopped.get())
        # The token was still good, so its release counted and burnt no attempt: it runs again.
        assert await soon(task.began.get()) == 2
        assert (await row(conn, job.id))["attempt"] == 1


async def test_a_claim_whose_answer_comes_too_late_begins_nothing(
    dsn: str, queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else may have its jobs. Those that nobody has are handed back."""
    claim, late, tokens = store.claim_for_worker, [60.0], list[int]()

    class Clock(Surroundings):
        seconds = 0.0

        def monotonic(self) -> float:
            return super().monotonic() + self.seconds

    clock = Clock()

    async def slowly(*arguments: Any, **options: Any) -> Any:
        jobs = await claim(*arguments, **options)
        if jobs and late:
            clock.seconds += late.pop()
        return jobs

    monkeypatch.setattr(store, "claim_for_worker", slowly)
    tasks = Tasks()

    @tasks.task
    async def on_the_loop() -> None:
        tokens.append(current_job().lease_token)

    @tasks.task
    def in_a_thread() -> None:
        tokens.append(current_job().lease_token)

    async with running(dsn, tasks, surroundings=clock, lease_seconds=30.0):
        for kind in ("on_the_loop", "in_a_thread"):
            job = await finished(queue, (await queue.submit(kind)).id)
            assert (job.state, job.lease_token, job.attempt) == ("completed", 2, 1)
            late.append(60.0)
            assert f"job {job.id} ({kind}): its lease was over 30." in caplog.text
    assert tokens == [2, 2]


async def test_a_worker_whose_row_is_gone_registers_again(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    async with running(dsn, **LEASE) as worker:
        await conn.execute("delete from queue_pg.workers")
        async with emitted(worker, "heartbeat") as beaten:
            await beaten()  # may have been under way
            await beaten()
        assert [listed.id for listed in await queue.workers()] == [worker.id]


async def test_the_worker_row_counts(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    task = Stoppable(tasks)
    async with running(dsn, tasks, grace_seconds=0, **LEASE) as worker:
        await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)
        await finished(queue, (await queue.submit("chat", {"prompt": "x", "mock": {"status": 400}})).id)
        await queue.submit("stoppable")
        await soon(task.began.get())
        async with emitted(worker, "heartbeat") as beaten:
            await beaten()  # may have been under way
            await beaten()
        [listed] = await queue.workers()
        assert (listed.active, listed.processed, listed.failed, listed.capacity) == (1, 2, 1, 8)
        assert listed.pid == os.getpid()
        assert listed.live


async def test_connections_cut_by_the_server_are_made_again(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks = Tasks()
    begun = asyncio.Event()
    go_on = asyncio.Event()

    @tasks.task
    async def wait() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    async with running(dsn, tasks, **LEASE) as worker:
        job = await queue.submit("wait")
        await soon(begun.wait())
        for _ in range(3):
            async with emitted(worker, "heartbeat") as beaten:
                await conn.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and application_name like 'queue-pg worker%'"
                )
                await beaten()
        go_on.set()
        assert (await finished(queue, job.id)).result == "done"
        end = await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)
        assert (end.state, end.attempt) == ("completed", 1)
        assert (await finished(queue, job.id)).attempt == 1


async def test_an_outcome_that_a_dead_line_swallows_is_recorded_within_the_grace(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @tasks.task
    async def wait() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    server = conninfo_to_dict(dsn)
    with closing(Line(int(server["port"] or 0), random.Random(1))) as line:
        through = make_conninfo(dsn, host="127.0.0.1", port=line.port)
        async with running(through, tasks, maintenance=False, notify=False, grace_seconds=4.0) as worker:
            # The connection for outcomes is there, and idle.
            await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)
            job = await queue.submit("wait")
            await soon(begun.wait())
            line.lose()
            go_on.set()
        end = await queue.get(job.id)
    assert (end.state, end.attempt, end.result) == ("completed", 1, "done")
    assert worker.stuck == 0


@pytest.mark.parametrize(("way", "grace_seconds"), [("lose", 3.0), ("hold", 6.0)])
async def test_letting_go_of_dead_lines_is_a_part_of_the_grace(
    dsn: str, queue: Queue, way: str, grace_seconds: float
) -> None:
    """Lines that are there do not answer, or new ones neither; a claim, an event and an outcome are on their way."""
    tasks = Tasks()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @tasks.task
    async def wait() -> str:
        begun.set()
        await go_on.wait()
        await current_job().log("said")
        return "done"

    server = conninfo_to_dict(dsn)
    with ExitStack() as stack:
        line = stack.enter_context(closing(Line(int(server["port"] or 0), random.Random(1))))
        through = make_conninfo(dsn, host="127.0.0.1", port=line.port)
        async with running(through, tasks, poll_seconds=0.1, grace_seconds=grace_seconds):
            await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)
            await queue.submit("wait")
            await soon(begun.wait())
            line.lose() if way == "lose" else line.hold(UP, DOWN)
            await queue.submit("chat", {"prompt": "x"})
            go_on.set()
            stopped_at = time.monotonic()
            stalls = stack.enter_context(stalled())
        took = time.monotonic() - stopped_at - stalls.seconds
        line.flow()
    # A second for a busy machine.
    assert took < grace_seconds + 1.0


async def test_an_outcome_outlives_an_outage(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from queue_pg import store

    real = store.finish
    refusals = 3

    async def away(connection: Any, outcomes: Any) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            if refusals == 1:
                # Recorded, but the answer got lost.
                await real(connection, outcomes)
            raise psycopg.OperationalError("the database is away")
        return await real(connection, outcomes)

    monkeypatch.setattr(store, "finish", away)
    async with (
        running(dsn) as worker,
        emitted(worker, "outage") as outage,
        emitted(worker, "recovered") as recovered,
        emitted(worker, "finished") as recorded,
    ):
        job = await queue.submit("chat", {"prompt": "x"})
        assert await outage() == "recording outcomes"
        assert await recovered() == "recording outcomes"
        assert await recorded() == (job.id, True, "completed")
        end = await finished(queue, job.id)
    assert (end.state, end.attempt) == ("completed", 1)
    assert refusals == 0


async def test_while_outcomes_cannot_be_recorded_nothing_more_is_claimed(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from queue_pg import store

    real = store.finish
    healed = False

    async def away(connection: Any, outcomes: Any) -> Any:
        if not healed:
            raise psycopg.OperationalError("the database is away")
        return await real(connection, outcomes)

    monkeypatch.setattr(store, "finish", away)
    jobs = await queue.submit_many([NewJob(kind="chat", payload={"prompt": "x"}) for _ in range(50)])
    async with running(dsn, concurrency=2) as worker, emitted(worker, "recovered") as recovered:
        async with emitted(worker, "outage") as outage:
            await outage()
        cursor = await conn.execute("select count(*) from queue_pg.jobs where state = 'running'")
        [claimed] = await cursor.fetchone() or [0]
        # Two batches of outcomes, and what was running when the second was full.
        assert 2 <= claimed <= 8
        healed = True
        await recovered()
        for job in jobs:
            end = await finished(queue, job.id)
            assert (end.state, end.attempt) == ("completed", 1)


async def test_claiming_goes_on_after_an_outage_that_cost_all_leases(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from queue_pg import store

    real = store.finish
    healed = False

    async def away(connection: Any, outcomes: Any) -> Any:
        if not healed:
            raise psycopg.OperationalError("the database is away")
        return await real(connection, outcomes)

    monkeypatch.setattr(store, "finish", away)
    async with (
        running(dsn, maintenance=False, concurrency=1, **LEASE) as worker,
        emitted(worker, "outage") as outage,
        emitted(worker, "finished") as recorded,
    ):
        job = await queue.submit("chat", {"prompt": "x"})
        assert await outage() == "recording outcomes"
        # Another worker got it meanwhile; the heartbeat hears of it before the outcome is sent again.
        await conn.execute(
            "update queue_pg.jobs set lease_token = lease_token + 1, worker_id = 'other',"
            " lease_expires_at = queue_pg.now() + interval '1 h' where id = %s",
            [job.id],
        )
        assert await recorded() == (job.id, False, None)
        healed = True
        assert (await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)).state == "completed"
