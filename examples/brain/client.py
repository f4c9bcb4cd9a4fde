"""The client: push tasks, wait for their results, look at the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from brain.payloads import TYPES
from queue_pg import JobNotFound, Queue, WaitTimeout
from queue_pg.models import WorkerInfo

RESULT_TTL = "1 hour"


class TaskQueue:
    """One connection to the pool's tasks. `connect()` first; DATABASE_URL says where, unless `database_url` does."""

    def __init__(self, database_url: str | None = None) -> None:
        self._queue = Queue(database_url)

    async def connect(self) -> TaskQueue:
        """Open the connection, and have the pool's results kept for an hour."""
        await self._queue.open()
        async with self._queue.connection() as conn:
            for queue in {queue for queue, _ in TYPES.values()}:
                await conn.execute(
                    "select queue_pg.configure_queue(%s, retention => %s::interval)", (queue, RESULT_TTL)
                )
        return self

    async def close(self) -> None:
        await self._queue.close()

    async def push_task(self, type: str, payload: Mapping[str, Any]) -> str:  # noqa: A002 - BRAiN's name
        """Store a task and return its id. Raises ValueError for an unknown type, or a payload that does not fit it."""
        if type not in TYPES:
            raise ValueError(f"unknown task type {type!r}; there are {', '.join(TYPES)}")
        queue, model = TYPES[type]
        try:
            checked = model.model_validate(payload)
        except ValidationError as error:
            raise ValueError(f"payload of {type}: {error}") from None
        job = await self._queue.submit(type, checked.model_dump(mode="json"), queue=queue)
        return str(job.id)

    async def get_task_result(self, task_id: str, timeout: float = 10) -> dict[str, Any] | None:
        """Return `{"success": ..., ...}` as soon as the task has ended; None when it has not within `timeout` seconds.

        A task that is not there, or whose result was kept for its hour, is None at once.
        """
        try:
            job = await self._queue.wait(task_id, timeout=timeout)
        except (WaitTimeout, JobNotFound):
            return None
        if job.state == "completed":
            return dict(job.result)
        return {"success": False, "error": (job.error or {}).get("message", str(job.state))}

    async def active_workers(self) -> list[WorkerInfo]:
        """Return the workers that have sent a heartbeat lately, with their counts."""
        return [worker for worker in await self._queue.workers() if worker.live]

    async def worker(self, worker_id: str) -> WorkerInfo | None:
        """Return one worker."""
        return next((worker for worker in await self._queue.workers() if worker.id == worker_id), None)
