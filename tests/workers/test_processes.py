"""Real worker processes: killed, told to stop, cut off from the database, supervised, misconfigured."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from in_process import finished, row
from queue_pg_workers.supervisor import Supervisor
from worker_process import Pipe, cuttable, told_pipe, worker_process

from queue_pg import Queue
from queue_pg.embedded import EmbeddedPostgres
from queue_pg.errors import LeaseLost
from queue_pg.models import NewJob
from queue_pg.schema import migrate

SHORT_LEASE = {"LEASE_SECONDS": "1"}


@pytest.fixture
async def pipe(tmp_path: Path) -> AsyncIterator[Pipe]:
    async with told_pipe(tmp_path) as opened:
        yield opened


async def test_a_killed_worker_s_job_is_finished_by_another_once(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, pipe: Pipe
) -> None:
    job = await queue.submit("hang_at_first")
    async with worker_process(dsn, "telling_tasks", pipe=pipe, env=SHORT_LEASE) as first:
        await first.told("began", 1)
        first.signal(signal.SIGKILL)
        await first.ended()
        async with worker_process(dsn, "telling_tasks", pipe=pipe) as second:
            await second.told("began", 2)
            end = await finished(queue, job.id)
    assert (end.state, end.result, end.attempt) == ("completed", 2, 1)
    with pytest.raises(LeaseLost):
        await queue.complete(job.id, 1, "too late")
    cursor = await conn.execute("select count(*) from queue_pg.finished_jobs where id = %s", [job.id])
    assert await cursor.fetchone() == (1,)


async def test_a_worker_that_slept_past_its_lease_stops_its_handler(dsn: str, queue: Queue, pipe: Pipe) -> None:
    job = await queue.submit("hang_at_first")
    async with worker_process(dsn, "telling_tasks", pipe=pipe, env=SHORT_LEASE) as first:
        await first.told("began", 1)
        first.signal(signal.SIGSTOP)
        async with worker_process(dsn, "telling_tasks", pipe=pipe) as second:
            await second.told("began", 2)
            end = await finished(queue, job.id)
        first.signal(signal.SIGCONT)
        await first.told("stopped", 1)
        first.signal(signal.SIGTERM)
        assert await first.ended() == 0
    assert (await queue.get(job.id)) == end
    assert (end.state, end.result, end.lease_token) == ("completed", 2, 2)


async def test_sigterm_lets_running_jobs_finish(dsn: str, queue: Queue, tmp_path: Path, pipe: Pipe) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    job = await queue.submit("until_file", {"path": str(go)})
    async with worker_process(dsn, "telling_tasks", pipe=pipe) as worker:
        await worker.told("began", 1)
        worker.signal(signal.SIGTERM)
        await worker.logged("is stopping, 1 jobs are running")
        late = await queue.submit("quick")
        await asyncio.to_thread(go.write_text, "the end")
        assert await worker.ended() == 0
    end = await finished(queue, job.id)
    assert (end.state, end.result) == ("completed", "the end")
    assert (await queue.get(late.id)).state == "queued"
    assert await queue.workers() == []


@pytest.mark.parametrize("kind", ["hang_at_first", "never_return"])
async def test_after_the_grace_jobs_are_handed_back_unburnt(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, pipe: Pipe, kind: str
) -> None:
    job = await queue.submit(kind)
    async with worker_process(dsn, "telling_tasks", "--grace", "0.2", pipe=pipe) as worker:
        await worker.told("began", 1)
        worker.signal(signal.SIGINT)
        if kind == "hang_at_first":
            await worker.told("stopped", 1)
        assert await worker.ended() == 0
    assert await row(conn, job.id) == {
        "state": "queued",
        "attempt": 0,
        "lease_token": 1,
        "worker_id": (await row(conn, job.id))["worker_id"],
        "error": None,
    }
    assert await queue.workers() == []


async def test_a_second_signal_hands_back_at_once(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, pipe: Pipe
) -> None:
    job = await queue.submit("hang_at_first")
    async with worker_process(dsn, "telling_tasks", "--grace", "600", pipe=pipe) as worker:
        await worker.told("began", 1)
        worker.signal(signal.SIGTERM)
        await worker.logged("is stopping")
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    assert (await row(conn, job.id))["state"] == "queued"
    assert (await row(conn, job.id))["attempt"] == 0


async def test_a_blocked_loop_cannot_keep_the_process_from_ending(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, pipe: Pipe
) -> None:
    job = await queue.submit("block_the_loop", {"seconds": 600})
    async with worker_process(dsn, "telling_tasks", "--grace", "0", pipe=pipe) as worker:
        await worker.told("began", 1)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    assert (await row(conn, job.id))["state"] == "queued"
    assert (await row(conn, job.id))["attempt"] == 0


async def test_a_cut_line_is_survived(dsn: str, queue: Queue, pipe: Pipe) -> None:
    async with (
        cuttable(dsn) as (line, through),
        worker_process(through, "telling_tasks", pipe=pipe, env={"LOG_LEVEL": "DEBUG"}) as worker,
    ):
        await finished(queue, (await queue.submit("quick")).id)
        for _ in range(2):
            # Cut off before this answer, it would claim nothing.
            await worker.logged("(quick): completed")
            line.refuse()
            await worker.logged("claiming: the database cannot be used")
            job = await queue.submit("quick")
            worker.log.clear()
            line.heal()
            assert (await finished(queue, job.id)).state == "completed"
            await worker.logged("claiming: the database works again")
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0


@pytest.mark.parametrize("how", ["refuse", "freeze"])
async def test_sigterm_ends_a_worker_whose_database_is_away(dsn: str, queue: Queue, pipe: Pipe, how: str) -> None:
    await queue.submit("hang_at_first")
    async with (
        cuttable(dsn) as (line, through),
        worker_process(through, "telling_tasks", "--grace", "0.5", pipe=pipe) as worker,
    ):
        await worker.told("began", 1)
        getattr(line, how)()
        asked_at = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert time.monotonic() - asked_at < 10


async def test_it_waits_for_a_database_that_is_not_there_yet(dsn: str, queue: Queue, pipe: Pipe) -> None:
    async with cuttable(dsn) as (line, through):
        line.refuse()
        async with worker_process(through, "telling_tasks", pipe=pipe) as worker:
            await worker.logged("start-up: the database cannot be used")
            line.heal()
            assert (await finished(queue, (await queue.submit("quick")).id)).state == "completed"
        line.refuse()
        async with worker_process(through, "telling_tasks", pipe=pipe) as worker:
            await worker.logged("start-up: the database cannot be used")
            worker.signal(signal.SIGTERM)
            assert await worker.ended() == 0


async def test_a_supervisor_restarts_what_dies_and_passes_signals_on(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, pipe: Pipe
) -> None:
    async with worker_process(
        dsn,
        "telling_tasks",
        "--processes",
        "2",
        "--concurrency",
        "1",
        pipe=pipe,
        env={"WORKER_ID": "me"},
    ) as worker:
        await queue.submit_many([NewJob(kind="hang_at_first", payload={"times": 3}) for _ in range(2)])
        pids = {(await worker.told("began", 1))[2] for _ in range(2)}
        assert len(pids) == 2
        assert {listed.id for listed in await queue.workers()} == {"me-0", "me-1"}
        killed = pids.pop()
        [its_id] = [listed.id for listed in await queue.workers() if listed.pid == int(killed)]
        os.kill(int(killed), signal.SIGKILL)
        # The lease of its job is over; that of the other, who is alive, is as long as ever.
        await conn.execute("update queue_pg.jobs set lease_expires_at = queue_pg.now() where worker_id = %s", [its_id])
        # By the restarted one: the other's only slot is taken.
        assert (await worker.told("began", 2))[2] not in pids | {killed}
        worker.signal(signal.SIGTERM)
        for index in range(2):
            await worker.logged(f"worker me-{index} is stopping")
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    assert await queue.workers() == []


async def test_a_process_that_has_just_ended_keeps_no_order_from_the_others() -> None:
    supervisor = Supervisor([], reload=False)
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    alive = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    # As it is between the end of a process and the moment when the supervisor's task hears of it.
    supervisor._processes.update({0: gone, 1: alive})  # pyright: ignore[reportPrivateUsage]
    supervisor._pass_on()  # pyright: ignore[reportPrivateUsage]
    assert await asyncio.wait_for(alive.wait(), 10) == -signal.SIGTERM


async def test_processes_end_with_their_supervisor(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, pipe: Pipe
) -> None:
    job = await queue.submit("hang_at_first")
    async with worker_process(dsn, "telling_tasks", "--processes", "2", pipe=pipe) as worker:
        await worker.told("began", 1)
        worker.signal(signal.SIGKILL)
        await worker.told("stopped", 1)
        # The log's end is the end of the last process that writes to it.
        await worker.ended()
    assert (await row(conn, job.id))["attempt"] == 0


async def test_a_handler_s_process_ends_with_its_worker(dsn: str, queue: Queue, pipe: Pipe) -> None:
    await queue.submit("never_return_in_a_process")
    async with worker_process(dsn, "telling_tasks", pipe=pipe) as worker:
        handler = os.pidfd_open(int((await worker.told("began", 1))[2]))
        worker.signal(signal.SIGKILL)
        # Readable when the process has ended.
        readable, _, _ = await asyncio.to_thread(select.select, [handler], [], [], 10)
        assert readable == [handler]
        os.close(handler)


async def test_registry_by_attribute(dsn: str, queue: Queue) -> None:
    async with worker_process(dsn, "telling_tasks:others") as worker:
        end = await finished(queue, (await queue.submit("other")).id)
        assert end.result == "other"
        [listed] = await queue.workers()
        assert listed.kinds == ["chat", "other", "plan", "subtask", "webhook"]
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["no_such_module"], {}, "'no_such_module' cannot be imported: ModuleNotFoundError"),
        (["broken"], {}, "'broken' cannot be imported: ZeroDivisionError: division by zero (broken.py:1)"),
        (["telling_tasks:not_tasks"], {}, "'telling_tasks:not_tasks' is no registry"),
        (["empty"], {}, "'empty' has no tasks"),
        (["leaving"], {}, "'leaving' cannot be imported: SystemExit: 3 (leaving.py:2)"),
        (["broken.py"], {}, "'broken.py' is a file's path; a worker takes a module's name. Try: broken"),
        ([], {"LLM_PROVIDER": "openai"}, "LLM_PROVIDER is openai, but there is neither a key nor a server"),
        (["--concurrency", "0"], {}, "worker_concurrency"),
    ],
)
async def test_what_cannot_work_is_said_in_one_line(
    dsn: str, tmp_path: Path, arguments: list[str], env: dict[str, str], message: str
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "telling_tasks.py").write_text("not_tasks = 1\n")
    async with worker_process(dsn, *arguments, cwd=tmp_path, env=env) as worker:
        assert await worker.ended() == 2
    [line] = worker.log
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_schema_that_does_not_fit(empty_dsn: str, processes: str) -> None:
    async with worker_process(empty_dsn, "--processes", processes) as worker:
        assert await worker.ended() == 3
    errors = [line for line in worker.log if line.startswith("error: ")]
    assert "Run: queue-pg migrate" in errors[0]


async def test_a_standby_is_waited_out(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    with server as dsn:
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as primary:
            # Partitions made while the first jobs end would hide those jobs from readers for a moment.
            primary.execute("select queue_pg.maintain_history()")
    (server.cluster / "standby.signal").touch()
    with server as dsn:
        async with worker_process(dsn) as worker:
            assert "hot standby" in await worker.logged("start-up: the database cannot be used")
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
                await admin.execute("select pg_promote()")
            async with Queue(dsn) as queue:
                assert (await finished(queue, (await queue.submit("chat", {"prompt": "x"})).id)).state == "completed"
            worker.signal(signal.SIGTERM)
            assert await worker.ended() == 0


async def test_reload_runs_the_changed_code(dsn: str, queue: Queue, tmp_path: Path) -> None:
    module = tmp_path / "changing.py"
    source = "from queue_pg import task\n\n@task\nasync def version() -> int:\n    return {}\n"
    module.write_text(source.format(1))
    async with worker_process(dsn, "changing", "--reload", cwd=tmp_path, env={"LOG_LEVEL": "DEBUG"}) as worker:
        assert (await finished(queue, (await queue.submit("version")).id)).result == 1
        await worker.logged("watching")
        module.write_text(source.format(2))
        await worker.logged("changed: changing.py")
        await worker.logged("has ended")
        assert (await finished(queue, (await queue.submit("version")).id)).result == 2
        # Code that cannot be imported is waited out.
        module.write_text("this is no Python\n")
        await worker.logged("waiting for a change")
        module.write_text(source.format(3))
        assert (await finished(queue, (await queue.submit("version")).id)).result == 3
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0


async def test_saving_twice_does_not_cut_running_jobs_short(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    module, gate = tmp_path / "changing.py", tmp_path / "gate"
    os.mkfifo(gate)
    source = (
        "import asyncio\nfrom pathlib import Path\nfrom queue_pg import task\n\n"
        "@task\nasync def slow(path: str) -> str:\n    return await asyncio.to_thread(Path(path).read_text)\n"
    )
    module.write_text(source)
    async with worker_process(dsn, "changing", "--reload", cwd=tmp_path, env={"LOG_LEVEL": "DEBUG"}) as worker:
        await worker.logged("watching")
        job = await queue.submit("slow", {"path": str(gate)})
        await worker.logged("attempt 1 of 4 begins")
        for name in ("first.py", "second.py"):
            (tmp_path / name).write_text("")
            await worker.logged(f"changed: {name}")
        await asyncio.to_thread(gate.write_text, "done")
        assert (await finished(queue, job.id)).result == "done"
        assert (await row(conn, job.id))["lease_token"] == 1
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
