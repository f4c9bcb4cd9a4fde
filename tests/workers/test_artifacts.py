"""Artifacts from handlers, on the loop and in threads, over the worker's connection for handlers."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import psycopg
import pytest
from in_process import emitted, finished, running, soon

from queue_pg import ArtifactNotFound, InvalidArtifact, JobContext, LeaseLost, Queue, current_job
from queue_pg.tasks import Tasks

MiB = 1024 * 1024


async def test_on_the_loop_and_in_a_thread(dsn: str, queue: Queue, tmp_path: Path) -> None:
    tasks = Tasks()
    path = tmp_path / "report.txt"
    path.write_bytes(b"r" * (2 * MiB + 1))

    @tasks.task
    async def on_the_loop() -> list[Any]:
        job = current_job()
        made = [
            await job.artifact("report.txt", path),
            await job.artifact("logs/out.bin", b"done", "application/x-log"),
            await job.artifact("stream", io.BytesIO(b"s" * MiB)),
        ]
        assert await (await job.open_artifact("input")).read() == b"given"
        with pytest.raises(ArtifactNotFound):
            await job.open_artifact("nothing")
        with pytest.raises(InvalidArtifact):
            await job.artifact("../x", b"x")
        return [[each.name, each.size, each.content_type, each.attempt] for each in made]

    @tasks.task
    def in_a_thread() -> list[Any]:
        job = current_job()
        made = [
            job.artifact_blocking("report.txt", path),
            job.artifact_blocking("logs/out.bin", b"done", "application/x-log"),
            job.artifact_blocking("stream", io.BytesIO(b"s" * MiB)),
        ]
        assert job.open_artifact_blocking("input").read() == b"given"
        with pytest.raises(ArtifactNotFound):
            job.open_artifact_blocking("nothing")
        with pytest.raises(InvalidArtifact):
            job.artifact_blocking("../x", b"x")
        return [[each.name, each.size, each.content_type, each.attempt] for each in made]

    for kind in ("on_the_loop", "in_a_thread"):
        job = await queue.submit(kind, delay=3600)
        await queue.put_artifact(job.id, "input", b"given")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("update queue_pg.jobs set run_at = queue_pg.now() where id = %s", (job.id,))
        async with running(dsn, tasks):
            ended = await finished(queue, job.id)
        assert ended.result == [
            ["report.txt", 2 * MiB + 1, "text/plain", 1],
            ["logs/out.bin", 4, "application/x-log", 1],
            ["stream", MiB, "application/octet-stream", 1],
        ], ended.error
        assert await (await queue.open_artifact(job.id, "report.txt")).read() == path.read_bytes()
        assert [each.name for each in await queue.artifacts(job.id)] == [
            "input",
            "logs/out.bin",
            "report.txt",
            "stream",
        ]


async def test_a_stale_worker_is_refused(dsn: str, queue: Queue) -> None:
    tasks = Tasks()
    told: list[Any] = []
    cancelled = asyncio.Event()

    @tasks.task
    async def slow() -> None:
        job = current_job()
        try:
            await cancelled.wait()
        finally:
            for data in (b"x", bytes(MiB)):
                try:
                    await job.artifact("late", data)
                except LeaseLost as error:
                    told.append(error.state)

    async with running(dsn, tasks) as worker, emitted(worker, "handler_started") as started:
        job = await queue.submit("slow")
        await started()
        await queue.cancel(job.id)
    assert told == ["cancelled", "cancelled"]
    assert await queue.artifacts(job.id) == []


async def test_others_have_their_turn_between_two_chunks(dsn: str, queue: Queue) -> None:
    """A handler whose stream waits keeps nobody from the connection that handlers share."""
    tasks = Tasks()
    waiting, go_on = asyncio.Event(), asyncio.Event()

    @tasks.task
    async def large() -> int:
        async def content() -> Any:
            yield bytes(2 * MiB)
            waiting.set()
            await go_on.wait()
            yield b"end"

        return (await current_job().artifact("large", content())).size

    @tasks.task
    async def small() -> int:
        return (await current_job().artifact("small", b"x")).size

    async with running(dsn, tasks):
        one = await queue.submit("large")
        await soon(waiting.wait())
        two = await queue.submit("small")
        assert (await finished(queue, two.id)).result == 1
        go_on.set()
        assert (await finished(queue, one.id)).result == 2 * MiB + 3


async def test_a_handler_in_a_process_is_told_that_it_cannot() -> None:
    from uuid import uuid4

    job = JobContext(job_id=uuid4(), kind="k", queue="q", attempt=1, max_attempts=3, lease_token=1)
    with pytest.raises(RuntimeError, match='run_in="process"'):
        await job.artifact("a", b"x")
    with pytest.raises(RuntimeError, match='run_in="process"'):
        job.artifact_blocking("a", b"x")
