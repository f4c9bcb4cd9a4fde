"""Tasks as the library takes and hands them out: jobs, in the words of those who split work into parts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

from queue_pg import arguments, rows
from queue_pg.errors import InvalidJob
from queue_pg.models import Job, JobState, NewJob

MAX_DESCRIPTION_CHARS: Final = 10_000
MAX_NAME_CHARS: Final = 200
MAX_OFFSET: Final = 10_000
SUBTASK_QUEUE: Final = "work_queue"
PLANNERS: Final = ("rules", "llm")
# What says what a task is; it has one of them.
WAYS: Final = ("description", "prompt", "messages", "type", "cmd")
PARENT_NAME: Final = "parent"
_PLACEHOLDER: Final = re.compile(r"\{\{\s*parents\.parent\b")
_OUTPUT: Final = "{{ parents.parent.output }}"
_OUTPUT_TEXT: Final = "{{ parents.parent.output.text }}"


@dataclass(slots=True, kw_only=True)
class NewTask:
    """A task to submit. One of five says what it is:

    `description` is planned into subtasks, by the `planner` rules or llm (by the `model`, if given), which go to
    `subtask_queue`; `prompt` or `messages` are for a chat model; `type` is a kind of job, with its `payload`; `cmd` is
    a command with its `input`, `env` and `timeout_secs`. It starts at `scheduled_for`, None: now. With `parent_task_id`
    it follows another task, whose output its texts may take as {{ parents.parent.output }}.
    """

    description: str | None = None
    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    type: str | None = None
    payload: Any = None
    cmd: Sequence[str] | None = None
    input: Any = None
    env: Mapping[str, str] | None = None
    timeout_secs: float | None = None
    planner: str | None = None
    model: str | None = None
    name: str | None = None
    queue: str = "default"
    subtask_queue: str | None = None
    priority: int = 0
    scheduled_for: datetime | None = None
    max_attempts: int | None = None
    timeout: timedelta | float | None = None
    unique_key: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    traceparent: str | None = None
    parent_task_id: UUID | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A task: its job, and what it is to those who planned it.

    `status` is the job's state, but that of a task that waits for its subtasks is theirs: queued until one has started,
    then running. Lists leave out the output, and payloads of more than 16 KiB, and so prompt and description.
    """

    job: Job
    status: JobState
    subtasks: list[str]
    parent_task_id: UUID | None

    @property
    def id(self) -> UUID:
        return self.job.id

    @property
    def subtask_ids(self) -> list[str]:
        """The ids by which the subtasks can be read."""
        return [f"{self.job.id}-{number}" for number in range(len(self.subtasks))]

    @property
    def name(self) -> str | None:
        given = _task_metadata(self.job).get("name")
        if isinstance(given, str):
            return given
        return self._text("subtask_id") if self.job.kind == "subtask" else None

    @property
    def description(self) -> str | None:
        return self._text("description") if self.job.kind in ("plan", "subtask") else None

    @property
    def prompt(self) -> str | None:
        return self._text("prompt") if self.job.kind == "chat" else None

    @property
    def scheduled_for(self) -> datetime | None:
        """When it was to start; None: at once."""
        given = _moment(_task_metadata(self.job).get("scheduled_for"))
        if given is None and self.job.state is JobState.SCHEDULED and self.job.attempt == 0:
            return self.job.run_at
        return given

    @property
    def output(self) -> Any:
        return self.job.result

    def _text(self, name: str) -> str | None:
        payload: Any = self.job.payload
        value = cast("dict[str, Any]", payload).get(name) if isinstance(payload, dict) else None
        return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A page of tasks, newest first. Give `next_cursor` as `cursor` for the next one; None: this is the last."""

    tasks: list[TaskInfo]
    next_cursor: str | None


def task_of(row: Mapping[str, Any]) -> TaskInfo:
    """Return the task of a row of sql/get_task.sql."""
    parent = row["parent_task_id"]
    return TaskInfo(
        job=rows.job(row),
        status=JobState(row["status"]),
        subtasks=json.loads(row["subtasks"]),
        parent_task_id=None if parent is None else UUID(parent),
    )


def task_of_job(job: Job, parent: UUID | None = None) -> TaskInfo:
    """Return the task that a job is which has no subtasks yet."""
    return TaskInfo(job=job, status=job.state, subtasks=[], parent_task_id=job.parent_id or parent)


def job_of(task: NewTask) -> NewJob:
    """Return the job that a task becomes, without its parent. Raises InvalidJob naming the field."""
    way = _way(task)
    timeout = arguments.duration("timeout", task.timeout)
    kind, payload = _WAYS[way](task)
    return NewJob(
        kind=kind,
        payload=payload,
        queue=task.queue,
        priority=task.priority,
        run_at=task.scheduled_for,
        max_attempts=task.max_attempts,
        timeout=timeout,
        unique_key=task.unique_key,
        tags=task.tags,
        metadata=_metadata(task),
        traceparent=task.traceparent,
    )


def planned_by_rules(task: NewTask) -> bool:
    return task.description is not None and task.planner != "llm"


def with_output(job: NewJob, output: Any) -> NewJob:
    """Put what the parent has made into the prompt of a job that follows it, unless the prompt says itself where."""
    if job.kind != "chat" or output is None:
        return job
    payload = dict(cast("Mapping[str, Any]", job.payload))
    fields: dict[str, Any] = cast("dict[str, Any]", output) if isinstance(output, dict) else {}
    given = _OUTPUT_TEXT if isinstance(fields.get("text"), str) else _OUTPUT
    if _PLACEHOLDER.search(json.dumps(payload.get("prompt") or payload.get("messages"), default=str)):
        return job
    if payload.get("prompt") is not None:
        payload["prompt"] = f"{payload['prompt']}\n\n{given}"
    else:
        payload["messages"] = _added(payload["messages"], given)
    job.payload = payload
    return job


def _added(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    *before, last = [dict(message) for message in messages]
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = f"{content}\n\n{text}"
    elif isinstance(content, list):
        last["content"] = [*content, {"type": "text", "text": text}]
    else:
        return [*before, last, {"role": "user", "content": text}]
    return [*before, last]


# --- the ways to say what a task is -----------------------------------------------------------------------------------


def _way(task: NewTask) -> str:
    given = [way for way in WAYS if getattr(task, way) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are given" if given else "none is given"
        raise InvalidJob(", ".join(given or WAYS), f"give exactly one of {', '.join(WAYS)}; {found}")
    way = given[0]
    for name, ways in _BELONGS.items():
        if getattr(task, name) is not None and way not in ways:
            raise InvalidJob(name, f"belongs to {' or '.join(ways)}, not to {way}")
    return way


# Fields that make sense beside some of the ways only.
_BELONGS: Final = {
    "payload": ("type",),
    "input": ("cmd",),
    "env": ("cmd",),
    "timeout_secs": ("cmd",),
    "model": ("prompt", "messages", "description"),
    "planner": ("description",),
    "subtask_queue": ("description",),
}


def _described(task: NewTask) -> tuple[str, Any]:
    planner = task.planner or "rules"
    if planner not in PLANNERS:
        raise InvalidJob("planner", f"must be one of {', '.join(PLANNERS)}")
    if planner == "rules" and task.model is not None:
        raise InvalidJob("model", "is for the planner llm")
    if planner == "rules" and task.parent_task_id is not None:
        raise InvalidJob("parent_task_id", "the planner rules plans at once; one that follows another needs llm")
    timeout = arguments.duration("timeout", task.timeout)
    payload: dict[str, Any] = {
        "description": _text("description", task.description, MAX_DESCRIPTION_CHARS),
        "planner": planner,
        "subtask_queue": _text("subtask_queue", task.subtask_queue or SUBTASK_QUEUE, MAX_NAME_CHARS),
        "max_attempts": task.max_attempts,
        "timeout_seconds": None if timeout is None else timeout.total_seconds(),
        "model": None if task.model is None else _text("model", task.model, MAX_NAME_CHARS),
    }
    return "plan", {name: value for name, value in payload.items() if value is not None}


def _prompted(task: NewTask) -> tuple[str, Any]:
    return "chat", _chat(task, {"prompt": _text("prompt", task.prompt)})


def _with_messages(task: NewTask) -> tuple[str, Any]:
    messages = _list("messages", task.messages, "must be a list of at least one message")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidJob(f"messages[{place}]", "must be an object")
        _text(f"messages[{place}].role", cast("Mapping[str, Any]", message).get("role"), MAX_NAME_CHARS)
    return "chat", _chat(task, {"messages": messages})


def _chat(task: NewTask, payload: dict[str, Any]) -> dict[str, Any]:
    return payload if task.model is None else {**payload, "model": _text("model", task.model, MAX_NAME_CHARS)}


def _typed(task: NewTask) -> tuple[str, Any]:
    return _text("type", task.type, MAX_NAME_CHARS), task.payload


def _command(task: NewTask) -> tuple[str, Any]:
    cmd = _list("cmd", task.cmd, "must be a list of texts: the program and its arguments")
    for place, word in enumerate(cmd):
        if not isinstance(word, str):
            raise InvalidJob(f"cmd[{place}]", f"must be a string, not {type(word).__name__}")
    payload: dict[str, Any] = {"cmd": cmd}
    for name in ("input", "env", "timeout_secs"):
        if (given := getattr(task, name)) is not None:
            payload[name] = given
    return "command", payload


_WAYS: Final = {
    "description": _described,
    "prompt": _prompted,
    "messages": _with_messages,
    "type": _typed,
    "cmd": _command,
}


def _metadata(task: NewTask) -> Mapping[str, Any]:
    own: dict[str, Any] = {}
    if task.name is not None:
        own["name"] = _text("name", task.name, MAX_NAME_CHARS)
    at: Any = task.scheduled_for
    if isinstance(at, datetime) and at.utcoffset() is not None:
        own["scheduled_for"] = at.isoformat()
    if not isinstance(cast(Any, task.metadata), Mapping):
        raise InvalidJob("metadata", "must be an object")
    return {**task.metadata, "task": own} if own else task.metadata


def _text(name: str, value: Any, max_chars: int | None = None) -> str:
    if value is None:
        raise InvalidJob(name, "must be given")
    if not isinstance(value, str):
        raise InvalidJob(name, f"must be a string, not {type(value).__name__}")
    if not value.strip():
        raise InvalidJob(name, "must not be empty")
    if max_chars is not None and len(value) > max_chars:
        raise InvalidJob(name, f"must have at most {max_chars:,} characters, not {len(value):,}")
    return value


def _list(name: str, value: Any, rule: str) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise InvalidJob(name, rule)
    return [*value]


def _task_metadata(job: Job) -> Mapping[str, Any]:
    metadata: Any = job.metadata
    own = cast("dict[str, Any]", metadata).get("task") if isinstance(metadata, dict) else None
    return cast("dict[str, Any]", own) if isinstance(own, dict) else {}


def _moment(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.utcoffset() is not None else None
