"""The kind `subtask`: a part of a planned task, done by the model that the worker is set up for."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from queue_pg import store
from queue_pg.handler_patience import run_patiently
from queue_pg.models import Fail, Snooze
from queue_pg.tasks import JobContext
from queue_pg_workers.handlers.chat import answer
from queue_pg_workers.providers.base import ChatRequest, Provider

KIND: Final = "subtask"
DESCRIPTION: Final = "One part of a planned task, done by a chat model; a task of yours of this kind takes its place."


class SubtaskPayload(BaseModel):
    """Payload of a `subtask` job, as its plan has made it."""

    model_config = ConfigDict(extra="ignore")

    task_id: UUID
    subtask_id: str = Field(min_length=1)
    description: str = Field(min_length=1)
    priority: int = 0


async def run_subtask(provider: Provider, payload: SubtaskPayload, job: JobContext) -> dict[str, Any] | Snooze | Fail:
    """Return what a `chat` job returns, of a model that is told the whole task and this part of it."""
    # By the edge between the two and not by payload.task_id, which anybody may have written.
    task = await run_patiently(job, lambda conn: store.task_description(conn, job.job_id))
    prompt = payload.description
    if task is not None:
        prompt = f"Do this part of a task, and nothing else: {payload.description}\n\nThe whole task: {task}"
    return await answer(provider, ChatRequest(messages=[{"role": "user", "content": prompt}]))
