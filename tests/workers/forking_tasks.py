"""Tasks whose handlers start processes of their own. For real workers: forking the test runner would be no good."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from typing import Any, NoReturn

from queue_pg.tasks import Tasks

PATIENCE_SECONDS = 10.0

forking_tasks = Tasks()


def _say_and_hang(ready: Any) -> NoReturn:
    ready.send("ready")
    while True:
        threading.Event().wait()


def _killed_child(number: int, *, at_once: bool) -> int | None:
    """Fork a child, send it a signal; return its exit code, None when it did not end."""
    forking = multiprocessing.get_context("fork")
    ours, theirs = forking.Pipe()
    child = forking.Process(target=_say_and_hang, args=(theirs,))
    child.start()
    assert child.pid is not None
    if not at_once:
        ours.recv()
    os.kill(child.pid, number)
    child.join(PATIENCE_SECONDS)
    code = child.exitcode
    child.kill()
    child.join()
    return code


@forking_tasks.task
def fork_in_a_thread(number: int) -> int | None:
    return _killed_child(number, at_once=False)


@forking_tasks.task(run_in="process")
def fork_in_a_process(number: int) -> int | None:
    return _killed_child(number, at_once=False)


@forking_tasks.task
def terminate_new_forks(times: int) -> list[int | None]:
    return [_killed_child(signal.SIGTERM, at_once=True) for _ in range(times)]


@forking_tasks.task(run_in="process")
def start_program_in_a_process(number: int) -> int:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as program:
        program.send_signal(number)
        try:
            return program.wait(PATIENCE_SECONDS)
        finally:
            program.kill()


def _fork_and_leave(how: str) -> int:
    """Return the child's id in the parent; in the child, leave the handler."""
    child = os.fork()
    if not child:
        if how == "exit":
            sys.exit(3)
        if how == "raise":
            raise ValueError
    return child


def _exit_code_of(child: int) -> int:
    descriptor = os.pidfd_open(child)
    ended, _, _ = select.select([descriptor], [], [], PATIENCE_SECONDS)
    os.close(descriptor)
    if not ended:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@forking_tasks.task
async def leave_on_the_loop(how: str) -> int:
    child = _fork_and_leave(how)
    # The child has no such thread, and must not come so far.
    return await asyncio.to_thread(_exit_code_of, child) if child else 0


@forking_tasks.task
def leave_in_a_thread(how: str) -> int:
    child = _fork_and_leave(how)
    return _exit_code_of(child) if child else 0


@forking_tasks.task(run_in="process")
def leave_in_a_process(how: str) -> int:
    child = _fork_and_leave(how)
    return _exit_code_of(child) if child else 0


@forking_tasks.task(run_in="process")
def die_before_a_child(path: str) -> None:
    """Write the id of a forked child into a named pipe, then die; the child lives on."""
    ready = threading.Event()
    child = os.fork()
    if not child:
        ready.wait()
    with open(path, "w") as pipe:
        pipe.write(f"{child}\n")
    os.kill(os.getpid(), signal.SIGKILL)
