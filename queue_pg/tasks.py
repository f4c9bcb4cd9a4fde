"""Functions as jobs: `@task` makes a kind of a function, with typed `submit` and a payload model from its signature.

@task(queue="texts", max_attempts=3)
async def summarise(text: str, words: int = 50) -> str: ...

job = await summarise.submit(text="...")                        # checked by your type checker
job = await summarise.using(delay=60).submit(text="...")        # with options
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, Generic, Literal, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast, overload
from uuid import UUID

from psycopg import AsyncConnection
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from queue_pg import arguments, default_queue, signatures
from queue_pg.artifacts import AsyncArtifactReader, upload_async
from queue_pg.artifacts_sync import SyncArtifactReader, upload_sync
from queue_pg.client import Queue
from queue_pg.client_sync import SyncQueue
from queue_pg.content import BlockingContent, Content
from queue_pg.default_queue import use_queue
from queue_pg.errors import InvalidJob
from queue_pg.handler_artifacts import AsyncLinkCalls, SyncLinkCalls
from queue_pg.handler_events import EventSink, SaysEvents
from queue_pg.models import Artifact, Job, Parents
from queue_pg.schedules import Missed, TaskSchedule, Timing
from queue_pg.steps import StepLog
from queue_pg.submission import encode_kinds

__all__ = [
    "JobContext",
    "SubmitOptions",
    "Task",
    "Tasks",
    "current_job",
    "default_tasks",
    "job_context",
    "task",
    "use_queue",
]

_FIELD: Final = re.compile(r"\{(\w+)\}")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
RunIn = Literal["thread", "process"]
LimitKey = str | Callable[[dict[str, Any]], str | None]


class SubmitOptions(TypedDict, total=False):
    """The options of `using`; those of `Queue.submit`. `queue` is the Queue to submit by, or the name of a queue."""

    queue: Queue | SyncQueue | str
    priority: int
    run_at: datetime | None
    delay: timedelta | float | None
    max_attempts: int | None
    timeout: timedelta | float | None
    expires_at: datetime | None
    unique_key: str | None
    tags: Sequence[str]
    metadata: Mapping[str, Any] | None
    traceparent: str | None
    batch_id: UUID | str | None
    depends_on: Parents
    limit_key: str | None
    cost: int
    cache: bool | None
    cache_for: timedelta | float | None
    cache_version: str | None
    connection: Any


@dataclass(frozen=True, slots=True)
class Task(Generic[P, R]):
    """A function that runs as jobs of `kind`. Calling it runs the function here and now.

    Retries wait `retry_base_seconds`, doubling up to `retry_cap_seconds`; None means the database's defaults.
    `run_in` says where workers run a function that is not async; "process" is for work that keeps a CPU busy.
    """

    fn: Callable[P, R]
    kind: str
    queue: str
    payload_model: type[BaseModel]
    priority: int = 0
    max_attempts: int | None = None
    timeout: timedelta | None = None
    retry_base_seconds: float | None = None
    retry_cap_seconds: float | None = None
    run_in: RunIn = "thread"
    description: str | None = None
    schedule: TaskSchedule | None = None
    limit_key: LimitKey | None = None
    cost: int = 1
    cache: bool | None = None
    cache_for: timedelta | float | None = None
    cache_version: str | None = None
    options: SubmitOptions = field(default_factory=lambda: SubmitOptions())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.fn)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the payload."""
        return self.payload_model.model_json_schema(by_alias=True)

    def using(self, **options: Unpack[SubmitOptions]) -> Task[P, R]:
        """Return this task with options for `submit`; they never collide with the function's own parameters."""
        return replace(self, options=cast(SubmitOptions, {**self.options, **options}))

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Submit a job that calls the function with these arguments. Raises InvalidJob naming `payload.<parameter>`.

        Goes by the Queue of `using(queue=...)`, else that of `use_queue`, else one opened from the settings.
        """
        payload = self.payload(*args, **kwargs)
        client = self.options.get("queue")
        if isinstance(client, SyncQueue):
            raise TypeError("using(queue=...) has a SyncQueue; call submit_sync, or give a Queue")
        if not isinstance(client, Queue):
            client = await default_queue.for_async()
        return await client.submit(self.kind, payload, **self._submit_arguments(payload))

    def submit_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Submit like `submit`, blocking, by a SyncQueue."""
        payload = self.payload(*args, **kwargs)
        client = self.options.get("queue")
        if isinstance(client, Queue):
            raise TypeError("using(queue=...) has an async Queue; await submit, or give a SyncQueue")
        if not isinstance(client, SyncQueue):
            client = default_queue.for_sync()
        return client.submit(self.kind, payload, **self._submit_arguments(payload))

    def _submit_arguments(self, payload: dict[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = {"priority": self.priority, "cost": self.cost, **self._cache(), **self.options}
        if self.limit_key is not None and "limit_key" not in given:
            given["limit_key"] = _limit_key(self.limit_key, payload)
        queue = given.get("queue")
        given["queue"] = queue if isinstance(queue, str) else self.queue
        # max_attempts and timeout are the kind's, which workers register; a job carries only what deviates.
        if self.max_attempts is not None:
            given.setdefault("max_attempts", self.max_attempts)
        if self.timeout is not None:
            given.setdefault("timeout", self.timeout)
        return given

    def _cache(self) -> dict[str, Any]:
        if self.options.get("depends_on"):
            # A job that waits for others cannot be answered: what it is to do is not known yet.
            return {}
        return {"cache": self.cache, "cache_for": self.cache_for, "cache_version": self.cache_version}

    def payload(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """Return the payload for a call: a JSON object of all parameters, defaults included."""
        given = signatures.named_arguments(self.fn, args, kwargs)
        checked = self._checked(given)
        try:
            return checked.model_dump(mode="json", by_alias=True)
        except PydanticSerializationError as error:
            raise InvalidJob("payload", f"cannot be written as JSON: {error}") from None

    def validate(self, payload: Any) -> dict[str, Any]:
        """Return the keyword arguments for the function from a stored payload. Raises InvalidJob."""
        checked = self._checked(payload)
        # pydantic keeps the fields' values in the instance's __dict__, by name and not by alias.
        values = vars(checked)
        renamed = _renamed_parameters(self.payload_model)
        return {renamed.get(name, name): value for name, value in values.items()} if renamed else values

    def _checked(self, payload: Any) -> BaseModel:
        try:
            return self.payload_model.model_validate(payload)
        except ValidationError as error:
            raise signatures.refusal(error) from None

    def kind_row(self) -> dict[str, Any]:
        """Return what `queue_pg.register_kinds` takes for this task."""
        return {
            "kind": self.kind,
            "schema": self.schema,
            "max_attempts": self.max_attempts,
            "timeout_seconds": None if self.timeout is None else self.timeout.total_seconds(),
            "retry_base_seconds": self.retry_base_seconds,
            "retry_cap_seconds": self.retry_cap_seconds,
            "description": self.description,
        }


def _limit_key(wanted: LimitKey, payload: dict[str, Any]) -> str | None:
    if callable(wanted):
        return wanted(payload)
    # Fields by their plain name: what str.format() allows besides reaches into the values.
    return _FIELD.sub(lambda field: str(payload[field[1]]), wanted)


@cache
def _renamed_parameters(model: type[BaseModel]) -> dict[str, str]:
    """Return the parameters whose field had to get another name (`schema`, `_private`), by that name."""
    fields = model.model_fields.items()
    return {name: info.alias for name, info in fields if info.alias is not None and info.alias != name}


class Tasks:
    """The tasks of an application, by kind. `default_tasks` is the one that the module's `task` adds to."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Task[..., Any]] = {}

    def __iter__(self) -> Iterator[Task[..., Any]]:
        return iter(self._by_kind.values())

    def __len__(self) -> int:
        return len(self._by_kind)

    def __contains__(self, kind: object) -> bool:
        return kind in self._by_kind

    def get(self, kind: str) -> Task[..., Any] | None:
        return self._by_kind.get(kind)

    @property
    def kinds(self) -> list[str]:
        return sorted(self._by_kind)

    def kinds_json(self) -> str:
        """Return all tasks as `store.register_kinds` takes them."""
        return encode_kinds([task.kind_row() for task in self])

    def add(self, task: Task[..., Any]) -> None:
        """Add a task. Raises ValueError when another function has its kind."""
        known = self._by_kind.get(task.kind)
        # The same function again is a reload of its module.
        if known is not None and _place(known.fn) != _place(task.fn):
            raise ValueError(
                f"kind {task.kind!r} belongs to {_place(known.fn)} already; give {_place(task.fn)} another"
            )
        self._by_kind[task.kind] = task

    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self,
        /,
        *,
        kind: str | None = None,
        queue: str = "default",
        priority: int = 0,
        max_attempts: int | None = None,
        timeout: timedelta | float | None = None,
        retry_base_seconds: float | None = None,
        retry_cap_seconds: float | None = None,
        run_in: RunIn = "thread",
        description: str | None = None,
        cron: str | None = None,
        every: timedelta | float | None = None,
        time_zone: str = "UTC",
        missed: Missed = "once",
        limit_key: LimitKey | None = None,
        cost: int = 1,
        cache: bool | None = None,
        cache_for: timedelta | float | None = None,
        cache_version: str | None = None,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(
        self,
        fn: Callable[P, R] | None = None,
        /,
        *,
        kind: str | None = None,
        queue: str = "default",
        priority: int = 0,
        max_attempts: int | None = None,
        timeout: timedelta | float | None = None,
        retry_base_seconds: float | None = None,
        retry_cap_seconds: float | None = None,
        run_in: RunIn = "thread",
        description: str | None = None,
        cron: str | None = None,
        every: timedelta | float | None = None,
        time_zone: str = "UTC",
        missed: Missed = "once",
        limit_key: LimitKey | None = None,
        cost: int = 1,
        cache: bool | None = None,
        cache_for: timedelta | float | None = None,
        cache_version: str | None = None,
    ) -> Task[P, R] | Callable[[Callable[P, R]], Task[P, R]]:
        """Make a task of a function. `kind` is its name unless given, `timeout` a timedelta or seconds.

        With `cron` (read in `time_zone`) or `every` (a timedelta or seconds) workers that have it schedule it under the
        name of its kind; it is called without arguments. `missed` is as of `Queue.schedule`.

        `limit_key` is a text with parameters in braces ("user:{user_id}") or a function of the payload; jobs that are
        submitted by the task count against the limit of that key with `cost` (docs/limits.md). With `cache`,
        `cache_for` or `cache_version` they may be answered by identical work (docs/caching.md).

        Raises TypeError for a signature that a JSON object cannot call: *args, **kwargs, positional-only parameters,
        and with a schedule parameters without a default.
        """

        def decorate(function: Callable[P, R]) -> Task[P, R]:
            if run_in == "process" and inspect.iscoroutinefunction(function):
                raise TypeError(f'{_place(function)} is async; run_in="process" is for plain functions')
            model = signatures.payload_model(function)
            _refuse_limit_key(function, model, limit_key)
            schedule = None
            if cron is not None or every is not None:
                _refuse_schedule(function, model, cron=cron, every=every)
                timing = Timing(cron=cron, every=every, time_zone=time_zone)
                schedule = TaskSchedule(
                    kind=kind or function.__name__,
                    queue=queue,
                    priority=priority,
                    timing=timing,
                    missed=missed,
                    limit_key=_default_limit_key(model, limit_key),
                    cost=cost,
                )
            made = Task(
                fn=function,
                kind=kind or function.__name__,
                queue=queue,
                payload_model=model,
                priority=priority,
                max_attempts=max_attempts,
                timeout=timedelta(seconds=timeout) if isinstance(timeout, int | float) else timeout,
                retry_base_seconds=retry_base_seconds,
                retry_cap_seconds=retry_cap_seconds,
                run_in=run_in,
                description=description or (inspect.getdoc(function) or "").partition("\n")[0] or None,
                schedule=schedule,
                limit_key=limit_key,
                cost=cost,
                cache=cache,
                cache_for=cache_for,
                cache_version=cache_version,
            )
            self.add(made)
            return made

        return decorate if fn is None else decorate(fn)


def _refuse_schedule(
    function: Callable[..., Any], model: type[BaseModel], *, cron: str | None, every: timedelta | float | None
) -> None:
    if cron is not None and every is not None:
        raise TypeError(f"{_place(function)}: give either cron or every")
    needed = [info.alias or name for name, info in model.model_fields.items() if info.is_required()]
    if needed:
        raise TypeError(f"{_place(function)}: a schedule calls it without arguments; give {needed[0]!r} a default")


def _refuse_limit_key(function: Callable[..., Any], model: type[BaseModel], limit_key: LimitKey | None) -> None:
    if not isinstance(limit_key, str):
        return
    names = {info.alias or name for name, info in model.model_fields.items()}
    for field_name in _FIELD.findall(limit_key):
        if field_name not in names:
            raise TypeError(f"{_place(function)}: limit_key names {field_name!r}, which is no parameter")


def _default_limit_key(model: type[BaseModel], limit_key: LimitKey | None) -> str | None:
    """Return the key of the jobs that a schedule makes: it calls the task without arguments."""
    return None if limit_key is None else _limit_key(limit_key, model().model_dump(mode="json", by_alias=True))


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


default_tasks: Final = Tasks()
task = default_tasks.task


# --- inside a running job ---------------------------------------------------------------------------------------------


class HandlerLink(Protocol):
    """A running handler's way to the database: statements on a connection that the handlers of a worker share.

    A statement is a function of an autocommit connection, such as those of `queue_pg.store`. What it raises comes
    out as an error of queue_pg. `events` takes in what handlers say.
    """

    @property
    def events(self) -> EventSink: ...

    async def run(self, statement: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Run a statement for a handler that is async."""
        ...

    def run_blocking(self, statement: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Run a statement for a handler in a thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext(SaysEvents):
    """The job that runs, as its handler sees it. `cancelled` is set when the job was cancelled or its lease lost.

    `link` is None where a handler has no way to the database: in a process of its own.
    """

    job_id: UUID
    kind: str
    queue: str
    org: str = "default"
    attempt: int
    max_attempts: int
    lease_token: int
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: Sequence[str] = ()
    traceparent: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    link: HandlerLink | None = field(default=None, repr=False, compare=False)
    step_log: StepLog = field(default_factory=StepLog, repr=False, compare=False)

    async def step(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return what `fn(*args, **kwargs)` returned in an earlier attempt; if there is none, call it and keep that.

        `fn` may be async. Its result is kept as JSON, 1 MiB at most, and always comes back as JSON has it: a tuple as a
        list. Raises InvalidStep, and LeaseLost when another worker may have the job.
        """
        return await self.step_log.step(self, name, fn, args, kwargs)

    def step_blocking(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do what `step` does, in a thread."""
        return self.step_log.step_blocking(self, name, fn, args, kwargs)

    async def sleep(
        self, duration: timedelta | float | None = None, *, until: datetime | None = None, name: str | None = None
    ) -> None:
        """Sleep for a timedelta or seconds, or until a moment, without holding the worker's slot.

        Unless that is over the handler is left here, by Suspended, and runs again from its start then. Without a name
        the sleeps of a handler are `sleep 1`, `sleep 2` in the order in which they are reached.
        """
        await self.step_log.sleep(self, duration, until, name)

    def sleep_blocking(
        self, duration: timedelta | float | None = None, *, until: datetime | None = None, name: str | None = None
    ) -> None:
        """Do what `sleep` does, in a thread."""
        self.step_log.sleep_blocking(self, duration, until, name)

    async def wait_for_event(self, name: str, timeout: timedelta | float | None = None) -> Any:
        """Return the payload of the signal `name` to this job (`queue.signal`), without holding the worker's slot.

        Unless it has come the handler is left here, by Suspended, and runs again from its start when it does. Raises
        EventTimeout when it has not come within `timeout` from when this was first reached.
        """
        return await self.step_log.wait_for_event(self, name, timeout)

    def wait_for_event_blocking(self, name: str, timeout: timedelta | float | None = None) -> Any:
        """Do what `wait_for_event` does, in a thread."""
        return self.step_log.wait_for_event_blocking(self, name, timeout)

    def linked(self) -> HandlerLink:
        """Return `link`. Raises RuntimeError where there is none."""
        if self.link is None:
            raise RuntimeError(f'the handler of {self.kind!r} has no link to the database: it has run_in="process"')
        return self.link

    async def artifact(self, name: str, content: Content, content_type: str | None = None) -> Artifact:
        """Leave a file with the job: a path, bytes, a binary file or a stream of bytes; the same name replaces.

        Raises LeaseLost when the job is no longer this worker's, InvalidArtifact, ArtifactTooLarge.
        """
        calls = AsyncLinkCalls(self)
        return await upload_async(calls, name, content, content_type=content_type)

    def artifact_blocking(self, name: str, content: BlockingContent, content_type: str | None = None) -> Artifact:
        """Do what `artifact` does, in a handler that runs in a thread."""
        calls = SyncLinkCalls(self)
        return upload_sync(calls, name, content, content_type=content_type)

    async def open_artifact(self, name: str) -> AsyncArtifactReader:
        """Return a reader of an artifact of this job: an input, or what an earlier attempt has left."""
        arguments.artifact_name(name)
        calls = AsyncLinkCalls(self)
        return AsyncArtifactReader(calls, await calls.find(name))

    def open_artifact_blocking(self, name: str) -> SyncArtifactReader:
        """Do what `open_artifact` does, in a handler that runs in a thread."""
        arguments.artifact_name(name)
        calls = SyncLinkCalls(self)
        return SyncArtifactReader(calls, calls.find(name))


# Those who run handlers give a function, so that the context of a handler that never asks for it is never made.
_current: ContextVar[Callable[[], JobContext]] = ContextVar("queue_pg_job")
set_current_job = _current.set


def current_job() -> JobContext:
    """Return the context of the running job. Raises RuntimeError outside of one."""
    try:
        found = _current.get()
    except LookupError:
        raise RuntimeError("current_job() was called outside of a job") from None
    return found()


def find_current_job() -> JobContext | None:
    """Return the context of the running job; None outside of one."""
    found = _current.get(None)
    return None if found is None else found()


@contextmanager
def job_context(context: JobContext) -> Generator[JobContext]:
    """Make `context` the current job; for those who run handlers."""
    token = _current.set(lambda: context)
    try:
        yield context
    finally:
        _current.reset(token)
