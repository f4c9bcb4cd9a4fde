"""Handlers that start processes: these are no workers, and end when they are told to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import finished
from worker_process import worker_process

from queue_pg import Queue

TASKS = "forking_tasks:forking_tasks"


@pytest.mark.parametrize("kind", ["fork_in_a_thread", "fork_in_a_process", "start_program_in_a_process"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_handler_s_child_ends_by_a_signal(dsn: str, queue: Queue, kind: str, number: int) -> None:
    async with worker_process(dsn, TASKS) as worker:
        end = await finished(queue, (await queue.submit(kind, {"number": number}, max_attempts=1)).id)
        # The worker's own handling is as before.
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    assert (end.result, end.error) == (-number, None)


async def test_no_signal_gets_lost_between_the_fork_and_the_child_s_first_step(dsn: str, queue: Queue) -> None:
    async with worker_process(dsn, TASKS):
        end = await finished(queue, (await queue.submit("terminate_new_forks", {"times": 30}, max_attempts=1)).id)
    assert end.result == [-signal.SIGTERM] * 30


@pytest.mark.parametrize("kind", ["leave_on_the_loop", "leave_in_a_thread", "leave_in_a_process"])
@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("raise", 1), ("return", 0)])
async def test_a_forked_child_that_leaves_the_handler_ends(
    dsn: str, queue: Queue, kind: str, how: str, code: int
) -> None:
    async with worker_process(dsn, TASKS) as worker:
        end = await finished(queue, (await queue.submit(kind, {"how": how}, max_attempts=1)).id)
        assert (end.result, end.error) == (code, None)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    assert len([line for line in worker.log if "is stopping" in line]) == 1


async def test_a_child_that_outlives_its_handler_s_process_hides_no_death(
    dsn: str, queue: Queue, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    os.mkfifo(path)
    async with worker_process(dsn, TASKS):
        job = await queue.submit("die_before_a_child", {"path": str(path)}, max_attempts=1)
        child = int(await asyncio.to_thread(path.read_text))
        try:
            end = await finished(queue, job.id)
        finally:
            os.kill(child, signal.SIGKILL)
    assert end.error is not None
    assert end.error["code"] == "ProcessDied"


def test_a_child_that_has_kept_the_handler_obeys_the_signal_itself() -> None:
    # Forked by C code, say, which runs no hooks of Python.
    script = """if True:
        import ctypes, os, signal
        from queue_pg_workers.forks import handle_stop_signals
        handle_stop_signals(lambda *_: print("handed back", flush=True))
        child = ctypes.PyDLL(None).fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == [str(-signal.SIGTERM)]
