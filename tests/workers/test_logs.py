"""Lines that are logged inside a handler say which job they belong to, wherever the handler runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from in_process import finished, running
from worker_process import worker_process

from queue_pg import Queue, logs
from queue_pg.tasks import Tasks

log = logging.getLogger("handlers")


async def test_on_the_loop_and_in_threads(dsn: str, queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()

    @tasks.task
    async def on_the_loop() -> None:
        log.warning("here")

    @tasks.task
    def in_a_thread() -> None:
        log.warning("here")

    caplog.handler.setFormatter(logs.formatter("json"))
    async with running(dsn, tasks):
        jobs = [await queue.submit(kind, metadata={"request_id": kind}) for kind in ("on_the_loop", "in_a_thread")]
        for job in jobs:
            await finished(queue, job.id)
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    said = {line["kind"]: line for line in lines if line["logger"] == "handlers"}
    assert {kind: line["job_id"] for kind, line in said.items()} == {
        "on_the_loop": str(jobs[0].id),
        "in_a_thread": str(jobs[1].id),
    }
    assert all(line["request_id"] == kind and line["attempt"] == 1 for kind, line in said.items())


async def test_the_worker_s_own_lines_about_a_job(dsn: str, queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()

    @tasks.task
    async def broken() -> None:
        raise ValueError

    caplog.handler.setFormatter(logs.formatter("json"))
    async with running(dsn, tasks):
        job = await queue.submit("broken", max_attempts=1)
        await finished(queue, job.id)
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    [line] = [line for line in lines if "attempt 1 failed" in line["message"]]
    assert (line["job_id"], line["kind"], line["attempt"]) == (str(job.id), "broken", 1)


MODULE = """
import logging
from queue_pg.tasks import Tasks
tasks = Tasks()

@tasks.task(run_in="process")
def apart() -> None:
    logging.getLogger("handlers").info("here", extra={"n": 1})

@tasks.task
async def on_the_loop() -> None:
    logging.getLogger("handlers").info("here")
"""


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_the_command_logs_json_in_every_process(dsn: str, queue: Queue, tmp_path: Path, processes: str) -> None:
    (tmp_path / "logging_tasks.py").write_text(MODULE)
    env = {"LOG_FORMAT": "json"}
    async with worker_process(dsn, "logging_tasks:tasks", "-p", processes, cwd=tmp_path, env=env) as worker:
        jobs = [await queue.submit(kind) for kind in ("apart", "on_the_loop")]
        for job in jobs:
            await finished(queue, job.id)
            line: dict[str, Any] = json.loads(await worker.logged(str(job.id)))
            assert (line["logger"], line["message"], line["level"]) == ("handlers", "here", "INFO")
            assert (line["job_id"], line["attempt"]) == (str(job.id), 1)
        worker.process.terminate()
        assert await worker.ended() == 0
    assert all(json.loads(line)["message"] for line in worker.log)


async def test_text_is_the_default(dsn: str, queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "logging_tasks.py").write_text(MODULE)
    async with worker_process(dsn, "logging_tasks:tasks", cwd=tmp_path) as worker:
        job = await queue.submit("on_the_loop")
        line = await worker.logged(str(job.id))
        assert line.endswith(f"INFO handlers: here [job={job.id} attempt=1]")
