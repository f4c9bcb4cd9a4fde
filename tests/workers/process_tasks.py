"""Tasks that run in processes of their own, which import this module by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Any

from queue_pg.tasks import Tasks, current_job

process_tasks = Tasks()


@process_tasks.task(run_in="process")
def count_primes(below: int) -> dict[str, Any]:
    primes = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))
    return {"primes": primes, "metadata": current_job().metadata, "pid": os.getpid()}


@process_tasks.task(run_in="process")
def raise_in_process() -> float:
    return 1 / 0


@process_tasks.task(run_in="process")
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@process_tasks.task(run_in="process")
def tell_pid_and_hang(path: str) -> None:
    """Write the process's id into a file or a named pipe, then never return."""
    with open(path, "w") as pipe:
        pipe.write(f"{os.getpid()}\n")
    signal.pause()


@process_tasks.task(run_in="process")
def add_up(numbers: Iterable[int]) -> int:
    """Take what pydantic makes of an Iterable: an iterator, which cannot be pickled."""
    return sum(numbers)


@process_tasks.task(run_in="process")
def step_in_process() -> int:
    return int(current_job().step_blocking("a", lambda: 1))
