"""A handler's way to the database while it runs."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg
import pytest
from in_process import finished, running

from queue_pg import Queue
from queue_pg.errors import QueuePgError
from queue_pg.tasks import JobContext, Tasks, current_job


async def token_of(conn: psycopg.AsyncConnection[Any]) -> int:
    row = await (await conn.execute("select lease_token from queue_pg.jobs where state = 'running'")).fetchone()
    assert row is not None
    return int(row[0])


async def broken(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("select * from queue_pg.nowhere")


async def test_on_the_loop_and_in_a_thread(dsn: str, queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task
    async def on_the_loop() -> bool:
        job = current_job()
        with pytest.raises(QueuePgError):
            await job.linked().run(broken)
        return await job.linked().run(token_of) == job.lease_token

    @tasks.task
    def in_a_thread() -> bool:
        job = current_job()
        return job.linked().run_blocking(token_of) == job.lease_token

    async with running(dsn, tasks):
        for kind in ("on_the_loop", "in_a_thread"):
            job = await queue.submit(kind)
            assert (await finished(queue, job.id)).result is True


def test_a_handler_without_a_link_is_told_so() -> None:
    job = JobContext(job_id=uuid4(), kind="k", queue="q", attempt=1, max_attempts=3, lease_token=1)
    with pytest.raises(RuntimeError, match='run_in="process"'):
        job.linked()
