"""`tasks`: work that is described, planned into subtasks and followed as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from queue_pg.cli.connect import find_database, load_settings, open_queue
from queue_pg.cli.output import Column, DatabaseUrl, JsonFlag, print_fields, print_json, print_line, print_table, say
from queue_pg.cli.submit import check_kind
from queue_pg.cli.values import choice, optional_duration, optional_time, parse_payload, parse_priority
from queue_pg.models import JobState

if TYPE_CHECKING:
    from queue_pg.task_model import TaskInfo

TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task's id, or <task>-<n>.", show_default=False)]
Type = Annotated[str | None, typer.Option("--type", metavar="KIND", help="A job of this kind, with --payload.")]
Payload = Annotated[str | None, typer.Option(help="Beside --type: JSON, @file or -.")]
Cmd = Annotated[str | None, typer.Option(help='A command: a JSON array such as ["sort", "-n"], @file or -.')]
Messages = Annotated[str | None, typer.Option(help="For a chat model: a JSON array, @file or -.")]
Model = Annotated[str | None, typer.Option(help="The chat model, also of the planner llm.")]
Name = Annotated[str | None, typer.Option(help="For people.")]
QueueName = Annotated[str, typer.Option("--queue", help="The queue of the task itself.")]
Priority = Annotated[str | None, typer.Option(help="A number, or critical, high, normal, low, batch.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    tasks = typer.Typer(
        invoke_without_command=True,
        help="List tasks; submit, show, chain, retry and cancel them.",
        rich_markup_mode=None,
    )
    tasks.callback()(list_tasks)
    tasks.command("submit")(submit)
    tasks.command("show")(show)
    tasks.command("chain")(chain)
    tasks.command("retry")(retry)
    tasks.command("cancel")(cancel)
    app.add_typer(tasks, name="tasks")


def list_tasks(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="ID", help="Subtasks of this one, and those chained to it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many tasks at most.")] = 50,
    offset: Annotated[int, typer.Option(min=0, max=10_000, help="How many to pass over.")] = 0,
    cursor: Annotated[str | None, typer.Option(help="Go on where an earlier page ended.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List tasks, newest first; submit, show, chain, retry and cancel them."""
    context.obj = (as_json, database_url)
    if context.invoked_subcommand is not None:
        return
    wanted = choice(state, list(JobState), field="state")
    with open_queue(database_url) as queue:
        page = queue.list_tasks(state=wanted, parent_task_id=parent, limit=limit, offset=offset, cursor=cursor)
    if as_json:
        print_json({"tasks": [_fields(task) for task in page.tasks], "next_cursor": page.next_cursor})
        return
    print_table(
        [
            Column("id", whole=True),
            Column("status", style_by_value=True, whole=True),
            Column("subtasks", right=True, whole=True, optional=True),
            Column("name", optional=True),
            Column("what"),
            Column("created", whole=True),
        ],
        [
            (
                task.id,
                task.status,
                len(task.subtasks) or None,
                task.name,
                task.description or task.prompt or task.job.kind,
                task.job.created_at,
            )
            for task in page.tasks
        ],
        empty="No tasks.",
    )
    if page.next_cursor is not None:
        say(f"There are more: --cursor {page.next_cursor}")


def submit(
    context: typer.Context,
    description: Annotated[
        str | None, typer.Argument(help="What is to be done; it is planned into subtasks.", show_default=False)
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="For a chat model, instead of a description.")] = None,
    messages: Messages = None,
    kind: Type = None,
    payload: Payload = None,
    cmd: Cmd = None,
    planner: Annotated[str | None, typer.Option(help="rules or llm; default: PLANNER.")] = None,
    model: Model = None,
    name: Name = None,
    queue: QueueName = "default",
    subtask_queue: Annotated[str | None, typer.Option(help="Of the subtasks; default: SUBTASK_QUEUE.")] = None,
    priority: Priority = None,
    scheduled_for: Annotated[str | None, typer.Option(help="Not before this time: 2026-01-31T09:00:00Z.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, max=1000, help="How often it may run in all.")] = None,
    timeout: Annotated[str | None, typer.Option(help="How long one attempt may take.")] = None,
    unique_key: Annotated[str | None, typer.Option(help="Submit once: the same key gives the same task again.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="Follow this task.")] = None,
    any_kind: Annotated[bool, typer.Option("--any-kind", help="Accept a kind that no worker is known for.")] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Submit a task: a description, or one of --prompt, --messages, --type and --cmd. Prints its id."""
    settings = load_settings(database_url or _outer(context)[1])
    given: dict[str, Any] = {
        "description": description,
        "prompt": prompt,
        "planner": planner if description is None else planner or settings.planner,
        "subtask_queue": subtask_queue if description is None else subtask_queue or settings.subtask_queue,
        "scheduled_for": optional_time(scheduled_for, field="scheduled_for"),
        "max_attempts": max_attempts,
        "timeout": optional_duration(timeout, field="timeout"),
        "unique_key": unique_key,
        "tags": tag or (),
        "parent_task_id": parent,
        **_common(messages, kind, payload, cmd, model=model, name=name, queue=queue, priority=priority),
    }
    from queue_pg.client_sync import SyncQueue
    from queue_pg.task_model import NewTask

    with SyncQueue(find_database(settings)) as client:
        if kind is not None:
            check_kind(client, kind, queue, policy="accept" if any_kind else settings.unknown_kinds)
        _print_made(client.submit_task(NewTask(**given)), as_json=as_json or _outer(context)[0])


def show(context: typer.Context, task_id: TaskId, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Show a task and its subtasks."""
    with open_queue(database_url or _outer(context)[1]) as queue:
        _print(queue.get_task(task_id), as_json=as_json or _outer(context)[0])


def chain(
    context: typer.Context,
    task_id: TaskId,
    prompt: Annotated[
        str | None, typer.Argument(help="The output goes to its end, or where it says so.", show_default=False)
    ] = None,
    messages: Messages = None,
    kind: Type = None,
    payload: Payload = None,
    cmd: Cmd = None,
    model: Model = None,
    name: Name = None,
    queue: QueueName = "default",
    priority: Priority = None,
    any_kind: Annotated[bool, typer.Option("--any-kind", help="Accept a kind that no worker is known for.")] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Submit a task that follows a completed one, with that one's output in its prompt. Prints its id."""
    settings = load_settings(database_url or _outer(context)[1])
    given = _common(messages, kind, payload, cmd, model=model, name=name, queue=queue, priority=priority)
    from queue_pg.client_sync import SyncQueue
    from queue_pg.task_model import NewTask

    with SyncQueue(find_database(settings)) as client:
        if kind is not None:
            check_kind(client, kind, queue, policy="accept" if any_kind else settings.unknown_kinds)
        _print_made(client.chain_task(task_id, NewTask(prompt=prompt, **given)), as_json=as_json or _outer(context)[0])


def retry(
    context: typer.Context,
    task_id: TaskId,
    max_attempts: Annotated[int | None, typer.Option(min=1, max=1000, help="Attempts from now on.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Put a failed task back, of its subtasks those that did not complete."""
    with open_queue(database_url or _outer(context)[1]) as queue:
        _print(queue.retry_task(task_id, max_attempts), as_json=as_json or _outer(context)[0])


def cancel(
    context: typer.Context,
    task_id: TaskId,
    reason: Annotated[str | None, typer.Option(help="Kept as the error's message.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Cancel an unfinished task, and with it its subtasks."""
    with open_queue(database_url or _outer(context)[1]) as queue:
        _print(queue.cancel_task(task_id, reason), as_json=as_json or _outer(context)[0])


def _common(
    messages: str | None,
    kind: str | None,
    payload: str | None,
    cmd: str | None,
    *,
    model: str | None,
    name: str | None,
    queue: str,
    priority: str | None,
) -> dict[str, Any]:
    return {
        "messages": None if messages is None else parse_payload(messages, field="messages"),
        "type": kind,
        "payload": None if payload is None else parse_payload(payload),
        "cmd": None if cmd is None else parse_payload(cmd, field="cmd"),
        "model": model,
        "name": name,
        "queue": queue,
        "priority": 0 if priority is None else parse_priority(priority),
    }


def _fields(task: TaskInfo) -> dict[str, Any]:
    """Return a task in the words of `GET /tasks`."""
    return {
        "id": task.id,
        "name": task.name,
        "description": task.description,
        "prompt": task.prompt,
        "status": task.status,
        "priority": task.job.priority,
        "created_at": task.job.created_at,
        "scheduled_for": task.scheduled_for,
        "subtasks": task.subtasks,
        "subtask_ids": task.subtask_ids,
        "output": task.output,
        "error": task.job.error,
        "attempts": task.job.attempt,
        "max_attempts": task.job.max_attempts,
        "parent_task_id": task.parent_task_id,
    }


def _print(task: TaskInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(_fields(task))
        return
    fields = _fields(task)
    fields["subtasks"] = dict(zip(task.subtask_ids, task.subtasks, strict=True))
    fields["subtask_ids"] = None
    print_fields([(name.replace("_", " "), value) for name, value in fields.items()])


def _print_made(task: TaskInfo, *, as_json: bool) -> None:
    print_json(_fields(task)) if as_json else print_line(str(task.id))


def _outer(context: typer.Context) -> tuple[bool, str | None]:
    """Return `--json` and `--database-url` as given before the subcommand."""
    found: tuple[bool, str | None] = context.obj or (False, None)
    return found
