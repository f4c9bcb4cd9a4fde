"""What applications and handlers of any queue write down. Runs in other environments: the standard library only.

Each process has files of its own in FAULTS_FOLDER. A line is written whole or not at all.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from typing import Any

# For how long a job takes.
SECONDS = float(os.environ.get("PEER_SECONDS", "0"))
CONCURRENCY = int(os.environ.get("PEER_CONCURRENCY", "8"))
# After how long a worker that says nothing counts as dead.
DEAD_SECONDS = int(os.environ.get("PEER_DEAD_SECONDS", "5"))
# Whether PgBouncer in transaction mode is in between.
POOLED = bool(os.environ.get("PEER_POOLED"))

_executions = count(1)


@cache
def _file(name: str, pid: int) -> int:
    path = os.path.join(os.environ["FAULTS_FOLDER"], f"{name}-{pid}.jsonl")
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def write(name: str, *words: Any, durable: bool = False) -> None:
    """Append one line; a durable one is on disk when this returns."""
    file = _file(name, os.getpid())
    os.write(file, json.dumps(words).encode() + b"\n")
    if durable:
        os.fdatasync(file)


@contextmanager
def effect(n: int, job: object, token: int | None = None) -> Generator[None]:
    """Say that job number `n` begins, and that it ends unless it is torn down. Without a token it is numbered here."""
    execution = next(_executions) if token is None else token
    write("effects", "begin", n, str(job), execution, os.getpid(), time.monotonic_ns())
    yield
    write("effects", "end", n, str(job), execution, os.getpid(), time.monotonic_ns())


async def produce(submit: Callable[[int], Awaitable[object]]) -> None:
    """Submit PEER_RATE jobs a second, numbered from PEER_FIRST, each tried once, until SIGTERM."""
    halt = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, halt.set)
    pause = 1 / float(os.environ["PEER_RATE"])
    due = time.monotonic()
    for n in count(int(os.environ["PEER_FIRST"])):
        began = time.monotonic_ns()
        try:
            job = await submit(n)
        except Exception as error:
            # Whether it is there nobody knows.
            write("submissions", n, "unknown", None, began, time.monotonic_ns(), repr(error)[:200], durable=True)
        else:
            write("submissions", n, "acked", str(job), began, time.monotonic_ns(), durable=True)
        # Time that was lost in an outage is not made up for.
        due = max(due + pause, time.monotonic())
        with suppress(TimeoutError):
            await asyncio.wait_for(halt.wait(), max(0.001, due - time.monotonic()))
        if halt.is_set():
            return
