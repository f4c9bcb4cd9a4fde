"""Tasks of real worker processes. They tell the test what happens through a named pipe, QUEUE_PG_TEST_PIPE."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from queue_pg.tasks import Tasks, current_job, task


def tell(*words: object) -> None:
    # One write of less than PIPE_BUF is atomic, so lines of several processes do not mix.
    descriptor = os.open(os.environ["QUEUE_PG_TEST_PIPE"], os.O_WRONLY)
    os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    os.close(descriptor)


@task
async def hang_at_first(times: int = 1) -> int:
    """Hang in the first executions; the lease token counts them."""
    token = current_job().lease_token
    tell("began", token, os.getpid())
    if token <= times:
        try:
            await asyncio.Event().wait()
        finally:
            tell("stopped", token, os.getpid())
    return token


@task
async def hang_between_steps() -> list[int]:
    """Hang in the first execution, after a step."""
    job = current_job()

    def work(name: str) -> int:
        tell("did", name, job.lease_token)
        return job.lease_token

    first = await job.step("first", work, "first")
    if job.lease_token == 1:
        tell("began", 1, os.getpid())
        await asyncio.Event().wait()
    return [first, await job.step("second", work, "second")]


@task
async def until_file(path: str) -> str:
    """Return what comes out of the named pipe `path`."""
    tell("began", current_job().lease_token, os.getpid())
    return await asyncio.to_thread(_read, path)


def _read(path: str) -> str:
    with open(path) as pipe:
        return pipe.read()


@task
async def block_the_loop(seconds: float) -> None:
    tell("began", current_job().lease_token, os.getpid())
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point


@task
def never_return() -> None:
    tell("began", current_job().lease_token, os.getpid())
    threading.Event().wait()


@task(run_in="process")
def never_return_in_a_process() -> None:
    tell("began", current_job().lease_token, os.getpid())
    threading.Event().wait()


@task
async def quick(number: int = 0) -> int:
    tell("ran", number, os.getpid())
    return number


others = Tasks()


@others.task
async def other() -> str:
    return "other"


not_tasks = "a string"
