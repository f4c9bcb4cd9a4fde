"""/tasks: work in the words of the Orchestrator and of Vinci4D. A view of jobs, so any job can be read here."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from starlette.responses import Response

from queue_pg.errors import InvalidJob, JobNotFound, UnknownKind
from queue_pg.logs import with_request_id
from queue_pg.task_model import NewTask, TaskInfo
from queue_pg_api.answers import TaskAnswer, TaskPageAnswer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import ApiError, invalid, json_response, not_found
from queue_pg_api.rendering import task_json, task_summary
from queue_pg_api.schemas import CancelBody, NoBody, NoQuery, TaskBody, TaskFilter, TaskRetryBody
from queue_pg_api.submissions import KEY_HEADER, idempotency_key, traceparent

endpoints = Endpoints("Tasks")


@endpoints.post("/tasks", answers={200: TaskAnswer}, refuses=(403, 408, 413, 415, 422, 503))
async def submit_task(call: Call[NoQuery, TaskBody]) -> Response:
    """Submit a task.

    Exactly one field says what it is: `description` is planned into subtasks, `prompt` or `messages` go to a chat
    model, `type` with `payload` to the handler of that kind, `cmd` is a command. A task planned by the rules answers
    with its subtasks. 200 and `Idempotency-Replayed: true` when the unique key already named a task.
    """
    task = await _new_task(call)
    with _parent_named():
        return _stored(call, *await call.queue.submit_task_new(task))


@endpoints.get("/tasks", answers={200: TaskPageAnswer}, refuses=(422, 503))
async def list_tasks(call: Call[TaskFilter, NoBody]) -> Response:
    """List tasks, newest first, without their outputs; every job is one."""
    wanted = call.query
    page = await call.queue.list_tasks(
        state=wanted.state,
        parent_task_id=wanted.parent_task_id,
        limit=wanted.limit,
        offset=wanted.offset,
        cursor=wanted.cursor,
    )
    return json_response({"tasks": [task_summary(task) for task in page.tasks], "next_cursor": page.next_cursor})


@endpoints.get("/tasks/{id}", answers={200: TaskAnswer}, refuses=(404, 422, 503))
async def get_task(call: Call[NoQuery, NoBody]) -> Response:
    """Read a task, or a subtask by its id `<task>-<n>`."""
    with _task_found():
        return json_response(task_json(await call.queue.get_task(_task_id(call))))


@endpoints.post("/tasks/{id}/chain", answers={200: TaskAnswer}, refuses=(403, 404, 408, 409, 413, 415, 422, 503))
async def chain_task(call: Call[NoQuery, TaskBody]) -> Response:
    """Submit a task that follows this one, which has to be completed.

    The output of this one stands at the end of its prompt, or where the prompt says `{{ parents.parent.output }}`.
    """
    task = await _new_task(call)
    with _task_found():
        return _stored(call, *await call.queue.chain_task_new(_task_id(call), task))


@endpoints.post("/tasks/{id}/retry", answers={200: TaskAnswer}, refuses=(403, 404, 409, 422, 503))
async def retry_task(call: Call[NoQuery, TaskRetryBody]) -> Response:
    """Put a failed task back, its attempts counted anew; of its subtasks those that did not complete.

    409 for any other; `POST /jobs/{id}/retry` takes cancelled ones too.
    """
    with _task_found():
        return json_response(task_json(await call.queue.retry_task(_task_id(call), call.body.max_attempts)))


@endpoints.post("/tasks/{id}/cancel", answers={200: TaskAnswer}, refuses=(403, 404, 409, 422, 503))
async def cancel_task(call: Call[NoQuery, CancelBody]) -> Response:
    """Cancel an unfinished task, a running one too, and with it its subtasks. Twice is fine."""
    with _task_found():
        return json_response(task_json(await call.queue.cancel_task(_task_id(call), call.body.reason)))


async def _new_task(call: Call[NoQuery, TaskBody]) -> NewTask:
    body, key, settings = call.body, idempotency_key(call.request), call.service.settings
    if key is not None and body.unique_key is not None and key != body.unique_key:
        raise invalid("unique_key", f"differs from the {KEY_HEADER} header; give one of them")
    given: dict[str, Any] = body.model_dump(exclude={"timeout_seconds"})
    given["unique_key"] = body.unique_key if body.unique_key is not None else key
    if body.timeout_seconds is not None:
        given["timeout"] = timedelta(seconds=body.timeout_seconds)
    if body.description is not None:
        given["planner"] = body.planner or settings.planner
        given["subtask_queue"] = body.subtask_queue or settings.subtask_queue
    if body.type is not None:
        try:
            await call.service.kinds.check([(body.type, body.queue)])
        except UnknownKind as error:
            about = error.message if error.hint is None else f"{error.message} {error.hint}"
            raise invalid(
                "type", about.removeprefix("kind: "), code=error.code, suggestions=error.suggestions
            ) from None
    given["metadata"] = with_request_id(body.metadata)
    return NewTask(**given, traceparent=traceparent(call.request))


def _stored(call: Call[Any, Any], task: TaskInfo, created: bool) -> Response:
    headers = {"location": call.url(f"/tasks/{task.id}")}
    if not created:
        headers["idempotency-replayed"] = "true"
    return json_response(task_json(task), headers=headers)


def _task_id(call: Call[Any, Any]) -> str:
    return str(call.request.path_params["id"])


@contextmanager
def _task_found() -> Generator[None]:
    """Answer in the Orchestrator's words when there is no such task; an id that is no text is that of no task."""
    try:
        yield
    except JobNotFound:
        raise _no_task() from None
    except InvalidJob as error:
        if error.field == "task_id":
            raise _no_task() from None
        raise


def _no_task() -> ApiError:
    return not_found("Task not found", code="task_not_found")


@contextmanager
def _parent_named() -> Generator[None]:
    try:
        yield
    except JobNotFound as error:
        raise invalid("parent_task_id", f"no task {error.job_id}") from None
