"""Steps of a running job: what its handler has done already, and what it waits for. `JobContext` has the methods.

A step's result is stored under the job's lease before the handler goes on, so a later attempt finds it. A sleep or a
wait for an event that is not over leaves the handler by `Suspended`; the worker ends the attempt without burning it,
and the handler runs again from its start when the wait is over.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from psycopg import AsyncConnection

from queue_pg import arguments, step_store
from queue_pg.errors import EventTimeout, InvalidJob, InvalidStep
from queue_pg.handler_patience import run_patiently, run_patiently_blocking
from queue_pg.models import Step
from queue_pg.outcomes import encode_result
from queue_pg.payloads import Unreadable, decode_json, encode_json, sanitise_text
from queue_pg.suspension import Suspended

if TYPE_CHECKING:
    from queue_pg.tasks import JobContext

MAX_NAME_CHARS: Final = 200
MAX_STEP_BYTES: Final = 1024 * 1024

Connection = AsyncConnection[Any]


class StepLog:
    """The steps of one attempt. Those that are done are read from the database when the first one is asked for."""

    __slots__ = ("_done", "_loading", "_loading_blocking", "_reached", "_sleeps")

    def __init__(self) -> None:
        self._done: dict[str, Step] | None = None
        self._reached: set[str] = set()
        self._sleeps = 0
        # A handler may do several things at once, on the loop or in threads of its own.
        self._loading: asyncio.Lock | None = None
        self._loading_blocking = threading.Lock()

    # --- on the loop --------------------------------------------------------------------------------------------------

    async def step(
        self, job: JobContext, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with self._reaching(name):
            found = await self._find(job, name)
            if found is not None:
                return _result(found, "step").result
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
            text = _encoded(name, value)
            with _refusals(name):
                await run_patiently(job, _saving(job, name, text))
            return decode_json(text)

    async def sleep(
        self, job: JobContext, duration: timedelta | float | None, until: datetime | None, name: str | None
    ) -> None:
        name = self._sleep_name(name)
        statement = _sleeping(job, name, duration, until)
        with self._reaching(name):
            found = await self._find(job, name)
            if found is None:
                with _refusals(name):
                    found = await run_patiently(job, statement)
            _result(found, "sleep")

    async def wait_for_event(self, job: JobContext, name: str, timeout: timedelta | float | None) -> Any:
        statement = _waiting(job, name, timeout)
        with self._reaching(name):
            found = await self._find(job, name)
            if found is None:
                with _refusals(name):
                    found = await run_patiently(job, statement)
            return _event(job, found)

    async def _find(self, job: JobContext, name: str) -> Step | None:
        if self._done is None:
            if self._loading is None:
                self._loading = asyncio.Lock()
            async with self._loading:
                if self._done is None:
                    self._done = await run_patiently(job, _reading(job))
        return self._done.get(name)

    # --- in a thread --------------------------------------------------------------------------------------------------

    def step_blocking(
        self, job: JobContext, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with self._reaching(name):
            found = self._find_blocking(job, name)
            if found is not None:
                return _result(found, "step").result
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                if inspect.iscoroutine(value):
                    value.close()
                raise InvalidStep(name, "its function is async; that takes an async handler, and `await job.step(...)`")
            text = _encoded(name, value)
            with _refusals(name):
                run_patiently_blocking(job, _saving(job, name, text))
            return decode_json(text)

    def sleep_blocking(
        self, job: JobContext, duration: timedelta | float | None, until: datetime | None, name: str | None
    ) -> None:
        name = self._sleep_name(name)
        statement = _sleeping(job, name, duration, until)
        with self._reaching(name):
            found = self._find_blocking(job, name)
            if found is None:
                with _refusals(name):
                    found = run_patiently_blocking(job, statement)
            _result(found, "sleep")

    def wait_for_event_blocking(self, job: JobContext, name: str, timeout: timedelta | float | None) -> Any:
        statement = _waiting(job, name, timeout)
        with self._reaching(name):
            found = self._find_blocking(job, name)
            if found is None:
                with _refusals(name):
                    found = run_patiently_blocking(job, statement)
            return _event(job, found)

    def _find_blocking(self, job: JobContext, name: str) -> Step | None:
        if self._done is None:
            with self._loading_blocking:
                if self._done is None:
                    self._done = run_patiently_blocking(job, _reading(job))
        return self._done.get(name)

    # --- names --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _reaching(self, name: str) -> Generator[None]:
        """Take a name, which stands for one thing in an attempt; one whose work failed may be tried again."""
        _check_name(name)
        if name in self._reached:
            raise InvalidStep(name, "was reached already in this attempt; give each step a name of its own")
        self._reached.add(name)
        try:
            yield
        except Exception:
            self._reached.discard(name)
            raise

    def _sleep_name(self, given: str | None) -> str:
        if given is not None:
            return given
        self._sleeps += 1
        return f"sleep {self._sleeps}"


# --- statements -------------------------------------------------------------------------------------------------------


def _reading(job: JobContext) -> Callable[[Connection], Awaitable[dict[str, Step]]]:
    async def read(conn: Connection) -> dict[str, Step]:
        found = await step_store.steps(conn, job.job_id)
        return {step.name: step for step in found if step.finished_at is not None}

    return read


def _saving(job: JobContext, name: str, text: str) -> Callable[[Connection], Awaitable[None]]:
    return lambda conn: step_store.save_step(conn, job.job_id, job.lease_token, name, text)


def _sleeping(
    job: JobContext, name: str, duration: timedelta | float | None, until: datetime | None
) -> Callable[[Connection], Awaitable[Step]]:
    with _refusals(name):
        if (duration is None) == (until is None):
            raise InvalidJob("duration", "give either a duration or until")
        delay = arguments.wait("duration", duration)
        arguments.aware("until", until)
    return lambda conn: step_store.sleep(conn, job.job_id, job.lease_token, name, delay=delay, until=until)


def _waiting(job: JobContext, name: str, timeout: timedelta | float | None) -> Callable[[Connection], Awaitable[Step]]:
    with _refusals(name):
        limit = arguments.wait("timeout", timeout)
    return lambda conn: step_store.wait_for_event(conn, job.job_id, job.lease_token, name, timeout=limit)


# --- what was found ---------------------------------------------------------------------------------------------------


def _result(found: Step, kind: str) -> Step:
    """Return a step that is over; leave the handler when it is not."""
    if found.type != kind:
        raise InvalidStep(found.name, f"is the name of another step of this job, of type {found.type}")
    if found.finished_at is None:
        raise Suspended(found.name)
    if isinstance(found.result, Unreadable):
        raise InvalidStep(found.name, f"its stored result cannot be read: {found.result.reason}")
    return found


def _event(job: JobContext, found: Step) -> Any:
    if _result(found, "event").timed_out:
        raise EventTimeout(job.job_id, found.name)
    return found.result


def _encoded(name: str, value: Any) -> str:
    with _refusals(name):
        return encode_result(value, max_bytes=MAX_STEP_BYTES)


def _check_name(name: str) -> None:
    if not isinstance(cast(Any, name), str) or not 1 <= len(name) <= MAX_NAME_CHARS:
        raise InvalidStep(sanitise_text(name, 100), f"its name must be a string of 1 to {MAX_NAME_CHARS} characters")
    with _refusals(sanitise_text(name)):
        encode_json(name, field="name")


@contextmanager
def _refusals(name: str) -> Generator[None]:
    """Turn refusals of a step's parts into those of the step."""
    try:
        yield
    except InvalidJob as refused:
        raise InvalidStep(name, f"{refused.field}: {refused.reason}") from None
