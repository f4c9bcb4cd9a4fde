"""What a worker can run: one handler a kind, from the user's registry and the built-in ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ValidationError

from queue_pg.models import Snooze
from queue_pg.schedules import TaskSchedule
from queue_pg.signatures import refusal
from queue_pg.tasks import Task, current_job
from queue_pg.tracing import find_tracer
from queue_pg_workers.commands.runner import CommandRunner
from queue_pg_workers.handlers import chat, command, plan, subtask, webhook
from queue_pg_workers.providers.base import Provider
from queue_pg_workers.spans import traced
from queue_pg_workers.webhooks.sender import WebhookSender, WebhookSettings

SPREAD = 0.25


class RunIn(StrEnum):
    """Where a handler's code runs."""

    LOOP = "loop"
    THREAD = "thread"
    PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """How to run one kind.

    `validate` turns a decoded payload into the keyword arguments of `fn`, raising `InvalidJob`; `spec` is what
    `queue_pg.register_kinds` is told; `schedule` is when it runs by itself.
    """

    kind: str
    fn: Callable[..., Any]
    validate: Callable[[Any], Mapping[str, Any]]
    run_in: RunIn
    spec: dict[str, Any]
    schedule: TaskSchedule | None = None


def traced_handlers(handlers: Mapping[str, Handler]) -> dict[str, Handler]:
    """Return the handlers as they are or, when the process has a tracer provider, such that each attempt has a span.

    Not those that run in processes of their own, which have no provider.
    """
    tracer = find_tracer()
    if tracer is None:
        return dict(handlers)
    return {
        kind: handler
        if handler.run_in is RunIn.PROCESS
        else replace(handler, fn=traced(tracer, handler.fn, is_async=handler.run_in is RunIn.LOOP))
        for kind, handler in handlers.items()
    }


def chat_handler(provider: Provider) -> Handler:
    """Return the built-in handler of the kind `chat` on this provider."""

    async def run(payload: chat.ChatPayload) -> Any:
        return await chat.run_chat(provider, payload)

    return _built_in(chat.KIND, run, chat.ChatPayload, chat.DESCRIPTION)


def plan_handler(provider: Provider) -> Handler:
    """Return the built-in handler of the kind `plan` on this provider."""

    async def run(payload: plan.PlanPayload) -> Any:
        return await plan.run_plan(provider, payload)

    return _built_in(plan.KIND, run, plan.PlanPayload, plan.DESCRIPTION)


def subtask_handler(provider: Provider) -> Handler:
    """Return the built-in handler of the kind `subtask` on this provider."""

    async def run(payload: subtask.SubtaskPayload) -> Any:
        return await subtask.run_subtask(provider, payload, current_job())

    return _built_in(subtask.KIND, run, subtask.SubtaskPayload, subtask.DESCRIPTION)


def command_handler(runner: CommandRunner) -> Handler:
    """Return the built-in handler of the kind `command`."""

    async def run(payload: command.CommandPayload) -> Any:
        return await command.run_command(runner, payload)

    return _built_in(command.KIND, run, command.CommandPayload, command.DESCRIPTION)


def webhook_handler(sender: WebhookSender) -> Handler:
    """Return the built-in handler of the kind `webhook`."""

    async def run(payload: webhook.WebhookPayload) -> Any:
        return await webhook.run_webhook(sender, payload, current_job().job_id)

    return _built_in(
        webhook.KIND,
        run,
        webhook.WebhookPayload,
        webhook.DESCRIPTION,
        max_attempts=webhook.MAX_ATTEMPTS,
        retry_base_seconds=webhook.RETRY_BASE_SECONDS,
        retry_cap_seconds=webhook.RETRY_CAP_SECONDS,
    )


def _built_in(kind: str, run: Callable[..., Any], model: type[BaseModel], description: str, **policy: float) -> Handler:
    def validate(payload: Any) -> Mapping[str, Any]:
        try:
            return {"payload": model.model_validate(payload)}
        except ValidationError as error:
            raise refusal(error) from None

    async def run_apart(payload: Any) -> Any:
        return spread(await run(payload))

    spec = {"kind": kind, "schema": model.model_json_schema(), "description": description, **policy}
    return Handler(kind=kind, fn=run_apart, validate=validate, run_in=RunIn.LOOP, spec=spec)


def spread(outcome: Any) -> Any:
    """Have whom a model server has asked to wait come back at that time or up to a quarter later.

    One that refuses many at one moment asks all of them to wait equally long; they must not come back as one.
    """
    if isinstance(outcome, Snooze):
        return Snooze(outcome.delay * random.uniform(1, 1 + SPREAD))
    return outcome


def task_handler(task: Task[..., Any]) -> Handler:
    """Return the handler of a user's task."""
    run_in = RunIn.LOOP if task.is_async else RunIn(task.run_in)
    return Handler(
        kind=task.kind,
        fn=task.fn,
        validate=task.validate,
        run_in=run_in,
        spec=task.kind_row(),
        schedule=task.schedule,
    )


def handlers_of(
    tasks: Iterable[Task[..., Any]],
    provider: Provider,
    sender: WebhookSender | None = None,
    commands: CommandRunner | None = None,
) -> dict[str, Handler]:
    """Return handlers by kind: the built-in ones and the user's, whose own `chat` goes before ours.

    Without `commands` there is none for the kind `command`: its jobs are left to other workers.
    """
    built_in = [
        chat_handler(provider),
        plan_handler(provider),
        subtask_handler(provider),
        webhook_handler(sender or WebhookSender(WebhookSettings())),
    ]
    if commands is not None:
        built_in.append(command_handler(commands))
    handlers = [*built_in, *(task_handler(task) for task in tasks)]
    return {handler.kind: handler for handler in handlers}
