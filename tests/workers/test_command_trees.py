"""Nothing is left of a command, however it ends, and however its processes try to get away."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commanding import all_gone, children_of, commands, lines, parent_of, python, run
from in_process import emitted, soon
from queue_pg_workers.commands import keeping
from worker_process import WorkerProcess, cuttable, worker_process

from queue_pg import Queue

# A child, a daemon (session of its own, parent dead, deaf to SIGTERM, output closed) and a daemon of a daemon. Each
# says its process id; `end` is what the command itself does then.
TREE = """
import os, signal, sys, time

def say():
    os.write(1, f'{os.getpid()}\\n'.encode())

def daemon(depth):
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say()
    if depth:
        daemon(depth - 1)
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    while True: signal.pause()

daemon(1)
if not os.fork():
    say()
    while True: signal.pause()
say()
"""
PAUSE = "while True: signal.pause()"
# What counts: nobody is alive two seconds after the worker was killed, or the job stopped.
SECONDS = 2.0


async def pids_of(queue: Queue, job: Any, count: int = 4) -> list[int]:
    """Return the process ids that a running command has said."""
    found: list[int] = []

    async def read() -> None:
        async for event in queue.events(job.id):
            if event.type == "log":
                found.append(int(event.data["line"]))
                if len(found) == count:
                    return

    await soon(read())
    return found


async def submit_tree(queue: Queue, end: str = PAUSE, **payload: Any) -> Any:
    return await queue.submit("command", {"cmd": python(TREE + end), **payload}, max_attempts=1)


@asynccontextmanager
async def worker_with_commands(dsn: str, folder: Path, **env: str) -> AsyncGenerator[WorkerProcess]:
    settings = {"QUEUE_PG_COMMANDS": "any", "COMMAND_TEMP_DIR": str(folder), **env}
    async with worker_process(dsn, env=settings) as process:
        await process.logged("serves default")
        yield process


async def test_what_it_leaves_running_ends_with_it(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await submit_tree(queue, "")
        ended = await queue.wait(job.id, timeout=20)
        assert ended.state == "completed", ended.error
        # Nobody waits for them: the output is closed and the job recorded when they are gone.
        await all_gone([int(line) for line in await lines(queue, ended)], 0)


async def test_cancel(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws") as worker, emitted(worker, "slot_freed") as freed:
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        await queue.cancel(job.id)
        await all_gone(pids, SECONDS)
        await freed()
    assert not list((tmp_path / "ws").glob("*/*"))


async def test_a_polite_end(dsn: str, queue: Queue, tmp_path: Path) -> None:
    """SIGTERM comes first, to all of the tree, and there is time to react."""
    code = """
import os, signal, sys, time
parent = os.getpid()
def end(*_):
    open(sys.argv[1] + ('/parent' if os.getpid() == parent else '/child'), 'w')
    os._exit(0)
signal.signal(signal.SIGTERM, end)
os.fork()
os.write(1, f'{os.getpid()}\\n'.encode())
while True: signal.pause()
"""
    told = tmp_path / "told"
    told.mkdir()
    async with commands(dsn, tmp_path / "ws"):
        job = await queue.submit("command", {"cmd": python(code, str(told))})
        pids = await pids_of(queue, job, 2)
        await queue.cancel(job.id)
        await all_gone(pids, SECONDS)
    assert {path.name for path in told.iterdir()} == {"parent", "child"}


async def test_timeouts(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws", grace_seconds=0.2):
        job = await submit_tree(queue, timeout_secs=2)
        pids = await pids_of(queue, job)
        ended = await queue.wait(job.id, timeout=20)
        assert ended.error["code"] == "timeout"
        await all_gone(pids, 0)
        # The job's own, which stops the handler.
        job = await queue.submit("command", {"cmd": python(TREE + PAUSE)}, timeout=2, max_attempts=1)
        pids = await pids_of(queue, job)
        ended = await queue.wait(job.id, timeout=20)
        assert ended.error["code"] == "timeout"
        await all_gone(pids, SECONDS)


async def test_a_lost_lease(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        # Somebody else has it now.
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute(
                "update queue_pg.jobs set lease_token = lease_token + 1, worker_id = 'another' where id = %s", [job.id]
            )
        await all_gone(pids, 10 + SECONDS)


async def test_a_worker_without_a_database_ends_it_in_time(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with (
        cuttable(dsn) as (line, through),
        commands(through, tmp_path / "ws", worker={"lease_seconds": 2, "grace_seconds": 0.1}),
    ):
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        line.freeze()
        await all_gone(pids, 2 + SECONDS)
        line.heal()


async def test_a_worker_that_stops(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with worker_with_commands(dsn, tmp_path / "ws", GRACE_SECONDS="0.1") as process:
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        await all_gone(pids, SECONDS)
    again = await queue.get(job.id)
    assert (again.state, again.attempt) == ("queued", 0)
    assert [path.name for path in (tmp_path / "ws").iterdir()] == ["lock"]


async def test_a_worker_that_waits_for_it(dsn: str, queue: Queue, tmp_path: Path) -> None:
    """Within the grace a command ends as it would."""
    async with worker_with_commands(dsn, tmp_path / "ws", GRACE_SECONDS="20") as process:
        code = "import os; os.write(1, f'{os.getpid()}\\n'.encode()); open(sys.argv[1]).read(); print('done')"
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        job = await queue.submit("command", {"cmd": python(f"import sys; {code}", str(fifo))})
        await pids_of(queue, job, 1)
        process.signal(signal.SIGTERM)
        await process.logged("is stopping")
        await asyncio.to_thread(fifo.write_text, "go on")
        assert await process.ended() == 0
    assert (await queue.get(job.id)).result["stdout"].endswith("done\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_worker_leaves_no_orphan(dsn: str, queue: Queue, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "ws"
    async with worker_with_commands(dsn, folder) as process:
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        process.signal(number)
        await all_gone(pids, SECONDS)
        await process.ended()
    [left] = [path for path in folder.iterdir() if path.name != "lock"]
    # The next worker removes what that one has left.
    async with worker_with_commands(dsn, folder) as process:
        assert not left.exists()
        await process.logged("which a dead worker has left")
        assert len(list(folder.iterdir())) == 2


async def test_a_killed_worker_whose_sockets_others_hold(dsn: str, queue: Queue, tmp_path: Path) -> None:
    """A child that a handler has forked has copies of all descriptors, so that none of them closes."""
    (tmp_path / "holding.py").write_text("""
import os, signal
from queue_pg import task

@task
def hold() -> int:
    if not (pid := os.fork()):
        os.closerange(0, 3)
        while True: signal.pause()
    return pid
""")
    settings = {"QUEUE_PG_COMMANDS": "any", "COMMAND_TEMP_DIR": str(tmp_path / "ws"), "PYTHONWARNINGS": "ignore"}
    async with worker_process(dsn, "holding", cwd=tmp_path, env=settings) as process:
        await process.logged("serves default")
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        holder = await queue.submit("hold")
        forked = (await queue.wait(holder.id, timeout=20)).result
        try:
            process.signal(signal.SIGKILL)
            await all_gone(pids, SECONDS)
        finally:
            os.kill(forked, signal.SIGKILL)


async def test_an_output_that_others_hold_open(dsn: str, queue: Queue, tmp_path: Path) -> None:
    """A process that is not below the command has got its output; it is not waited for."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        code = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
print('said', flush=True)
socket.send_fds(s, [b'x'], [1, 2])
"""
        async with commands(dsn, tmp_path / "ws"):
            job = await queue.submit("command", {"cmd": python(code, path)})
            connection, _ = await asyncio.to_thread(server.accept)
            with connection:
                _, held, _, _ = await asyncio.to_thread(socket.recv_fds, connection, 10, 2)
                try:
                    ended = await queue.wait(job.id, timeout=20)
                finally:
                    for descriptor in held:
                        os.close(descriptor)
    assert (ended.state, ended.result["stdout"]) == ("completed", "said\n")


async def test_a_worker_below_a_supervisor_that_is_killed(dsn: str, queue: Queue, tmp_path: Path) -> None:
    settings = {"QUEUE_PG_COMMANDS": "any", "COMMAND_TEMP_DIR": str(tmp_path / "ws")}
    async with worker_process(dsn, "--processes", "2", env=settings) as process:
        await process.logged("serves default")
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        process.signal(signal.SIGKILL)
        # The worker processes notice, hand their jobs back and end.
        await all_gone(pids, SECONDS + 2)


async def test_a_keeper_that_is_killed_takes_all_along(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        keeper = parent_of(pids[-1]) if parent_of(pids[-1]) not in pids else parent_of(parent_of(pids[-1]))
        os.kill(keeper, signal.SIGKILL)
        await all_gone(pids, SECONDS)
        ended = await queue.wait(job.id, timeout=20)
    assert ended.error["code"] == "command_lost"


async def test_a_keeper_that_is_stopped_is_not_waited_for_for_ever(
    dsn: str, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queue_pg_workers.commands.keeping.STUCK_SECONDS", 0.2)
    async with commands(dsn, tmp_path / "ws") as worker, emitted(worker, "slot_freed") as freed:
        job = await submit_tree(queue)
        pids = await pids_of(queue, job)
        keeper = parent_of(pids[-1]) if parent_of(pids[-1]) not in pids else parent_of(parent_of(pids[-1]))
        os.kill(keeper, signal.SIGSTOP)
        await queue.cancel(job.id)
        await all_gone(pids, SECONDS)
        await freed()


async def test_a_fork_bomb_ends(dsn: str, queue: Queue, tmp_path: Path) -> None:
    """Processes that fork faster than one can look are killed all the same."""
    code = """
import os, time
os.write(1, f'{os.getpid()}\\n'.encode())
end = time.monotonic() + 20
while time.monotonic() < end:
    # A chain: each makes the next one and dies, so that there is always a new one, of a dead parent.
    if os.fork(): os._exit(0)
"""
    outer = f"import os, signal, sys\nif os.fork() == 0:\n    os.setsid()\n    exec({code!r})\nsignal.pause()"
    async with commands(dsn, tmp_path / "ws") as worker, emitted(worker, "slot_freed") as freed:
        job = await queue.submit("command", {"cmd": python(outer)}, max_attempts=1)
        await pids_of(queue, job, 1)
        [keeper] = children_of(os.getpid(), "keeper.py")
        await queue.cancel(job.id)
        # It ends when it has no descendants any more.
        await all_gone([keeper], 10)
        await freed()


async def test_processes_that_are_others_whenever_one_looks(
    dsn: str, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at all processes of a machine takes long where there are many; here it is always too late."""
    blind = tmp_path / "blind.py"
    blind.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(keeping.PROGRAM).parent)!r})\n"
        "import keeper\nkeeper._descendants = lambda root: []\nkeeper.main()\n"
    )
    monkeypatch.setattr(keeping, "PROGRAM", str(blind))
    code = """
import os, time
os.write(1, f'{os.getpid()}\\n'.encode())
end = time.monotonic() + 20
while time.monotonic() < end:
    if os.fork(): os._exit(0)
    os.setsid()
"""
    async with commands(dsn, tmp_path / "ws"):
        job = await queue.submit("command", {"cmd": python(code)}, max_attempts=1)
        await pids_of(queue, job, 1)
        # The command itself ends at once, and then what it has left running.
        ended = await queue.wait(job.id, timeout=10)
    assert ended.state == "completed"


async def test_no_zombies_and_no_descriptors_are_left(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        await run(queue, "true")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            assert (await run(queue, "sh", "-c", "echo x; sleep 0 & exec true", input="y")).state == "completed"
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert children_of(os.getpid(), "keeper.py") == []


async def test_orphans_are_waited_for_while_it_runs(dsn: str, queue: Queue, tmp_path: Path) -> None:
    """A long command whose daemons come and go collects no zombies."""
    code = """
import os, time
for _ in range(50):
    if not os.fork():
        if os.fork(): os._exit(0)
        os._exit(0)
    os.wait()
keeper = os.getppid()
def left(): return [p for p in os.listdir('/proc') if p.isdigit() and p != str(os.getpid()) and ppid(p) == keeper]
def ppid(p):
    try: return int(open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[1])
    except OSError: return 0
end = time.monotonic() + 15
while left() and time.monotonic() < end: time.sleep(0.01)
print(left())
"""
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python(code))
    assert job.result["stdout"] == "[]\n"
