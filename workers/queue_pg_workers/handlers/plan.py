"""The kind `plan`: a model splits a task into subtasks. What it answers is taken as it is or not at all."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from queue_pg.errors import InvalidJob
from queue_pg.models import Fail, Plan, Snooze
from queue_pg.payloads import encode_json, sanitise_text
from queue_pg.task_model import MAX_DESCRIPTION_CHARS, SUBTASK_QUEUE
from queue_pg_workers.handlers.chat import complete, text_of
from queue_pg_workers.providers.base import ChatRequest, MockScript, Provider
from queue_pg_workers.providers.shapes import is_list

KIND: Final = "plan"
DESCRIPTION: Final = "Splits a task into subtasks: a model is asked for a JSON list of them."
MAX_SUBTASKS: Final = 50
MAX_SUBTASK_CHARS: Final = 2_000
_MAX_ANSWER_CHARS: Final = 200_000
_SHOWN_CHARS: Final = 500

INSTRUCTIONS: Final = (
    "You split a task into subtasks that different people can work on at the same time. Answer with a JSON array of "
    "strings and nothing else: one short sentence for each subtask, at most 10 of them."
)
# Models like to wrap JSON in a code block; what stands around the block would be a guess.
_FENCED: Final = re.compile(r"```(?:json)?[ \t]*\r?\n(.*?)\r?\n?```", re.DOTALL | re.IGNORECASE)


class PlanPayload(BaseModel):
    """Payload of a `plan` job. The rules plan when a task is submitted; who runs a job is asked for an `llm` plan."""

    model_config = ConfigDict(extra="forbid")

    description: str = Field(min_length=1, max_length=MAX_DESCRIPTION_CHARS)
    planner: Literal["llm"] = "llm"
    subtask_queue: str = Field(default=SUBTASK_QUEUE, min_length=1, max_length=200)
    max_attempts: int | None = Field(default=None, ge=1, le=1_000, description="Of each subtask.")
    timeout_seconds: float | None = Field(default=None, gt=0, le=31_536_000, description="Of each subtask.")
    model: str | None = Field(default=None, min_length=1)
    mock: MockScript | None = Field(default=None, description="Script for the mock provider; others ignore it.")

    def request(self) -> ChatRequest:
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": self.description}]
        return ChatRequest(messages=messages, model=self.model, mock=self.mock or MockScript())


async def run_plan(provider: Provider, payload: PlanPayload) -> Plan | Snooze | Fail:
    """Return the plan; an answer that is none is a failed attempt."""
    response = await complete(provider, payload.request())
    if not isinstance(response, dict):
        return response
    text = text_of(response)
    try:
        subtasks = subtasks_of(text)
    except ValueError as error:
        details = {"answer": sanitise_text(text[:_SHOWN_CHARS]), "provider": provider.name}
        return Fail(f"the model's answer is no plan: {error}", code="plan_invalid", details=details)
    timeout = None if payload.timeout_seconds is None else timedelta(seconds=payload.timeout_seconds)
    return Plan(subtasks, queue=payload.subtask_queue, max_attempts=payload.max_attempts, timeout=timeout)


def subtasks_of(answer: str) -> list[str]:
    """Read a model's answer. Raises ValueError for all but a JSON list of a bounded number of bounded texts."""
    if len(answer) > _MAX_ANSWER_CHARS:
        raise ValueError(f"it has {len(answer):,} characters")
    text = answer.strip()
    if (block := _FENCED.fullmatch(text)) is not None:
        text = block[1]
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not is_list(found):
        raise ValueError("it is no JSON list")
    if not 1 <= len(found) <= MAX_SUBTASKS:
        raise ValueError(f"it has {len(found)} subtasks; 1 to {MAX_SUBTASKS} are taken")
    subtasks: list[str] = []
    for place, item in enumerate(found):
        if not isinstance(item, str):
            raise ValueError(f"its entry {place} is no text")
        subtask = item.strip()
        if not 1 <= len(subtask) <= MAX_SUBTASK_CHARS:
            raise ValueError(f"its entry {place} has {len(subtask):,} characters; 1 to {MAX_SUBTASK_CHARS:,} are taken")
        subtasks.append(subtask)
    try:
        encode_json(subtasks, field="subtasks")
    except InvalidJob as refused:
        raise ValueError(f"its {refused.message}") from None
    return subtasks
