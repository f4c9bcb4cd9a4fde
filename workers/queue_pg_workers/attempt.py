"""One execution of one job: from the payload's text to an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from queue_pg.errors import InvalidJob
from queue_pg.models import Outcome
from queue_pg.outcomes import of_error, of_return
from queue_pg.payloads import UnreadableJson, decode_json
from queue_pg.tasks import JobContext, job_context
from queue_pg_workers.forks import ForkGuard
from queue_pg_workers.kinds import Handler, RunIn
from queue_pg_workers.leases import Held, Interruption
from queue_pg_workers.outcomes import (
    arguments_unpicklable,
    payload_invalid,
    payload_unreadable,
    released,
    timed_out,
)
from queue_pg_workers.processes import HandlerProcesses, ProcessCall
from queue_pg_workers.signals import Signals
from queue_pg_workers.threads import HandlerThreads

# How long a cancelled handler may take to clean up before its outcome is recorded without it.
CANCEL_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Execution:
    """A handler at work. `ended` yields an outcome, whatever happens; `stop` asks it to end.

    `stoppable` is false for threads, which cannot be made to end.
    """

    ended: asyncio.Future[Outcome]
    stop: Callable[[], object]
    stoppable: bool


class Attempts:
    """Runs handlers on the loop, in threads and in processes."""

    def __init__(self, *, name: str, signals: Signals) -> None:
        self._threads = HandlerThreads(name=f"{name}-handler")
        self._processes = HandlerProcesses()
        self._signals = signals

    async def run(self, held: Held, handler: Handler, record: Callable[[Outcome | None], None]) -> None:
        """Run the handler; call `record` once, with None for a lease that is lost. Return when its code has ended.

        The two moments differ for a thread past its timeout: the outcome is recorded, but the slot is still taken.
        """
        try:
            kwargs, context = self._prepare(held, handler)
            execution = self._start(held, handler, kwargs, context)
        except _Refused as refused:
            record(refused.outcome)
            return
        self._signals.emit("handler_started", held.job.id)
        interrupted = asyncio.create_task(held.interrupted())
        either: set[asyncio.Future[Any]] = {execution.ended, interrupted}
        try:
            await asyncio.wait(either, timeout=held.job.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not execution.ended.done():
                await self._stop(held, execution)
            record(_outcome(held, execution))
        finally:
            interrupted.cancel()
        if not execution.ended.done():
            await asyncio.wait({execution.ended})

    def close(self) -> None:
        self._threads.close()
        self._processes.close()

    def _prepare(self, held: Held, handler: Handler) -> tuple[Mapping[str, Any], JobContext]:
        """Return the handler's arguments and its `current_job()`. Raise _Refused for a payload that it cannot take."""
        job = held.job
        try:
            payload = decode_json(job.payload)
            metadata = decode_json(job.metadata)
        except UnreadableJson as error:
            raise _Refused(payload_unreadable(job, str(error))) from None
        try:
            kwargs = handler.validate(payload)
        except InvalidJob as invalid:
            raise _Refused(payload_invalid(job, invalid)) from None
        except BaseException as error:
            # Validators are the user's code too, and SystemExit would end the worker's loop.
            raise _Refused(of_error(job.id, job.lease_token, error)) from None
        context = JobContext(
            job_id=job.id,
            kind=job.kind,
            queue=job.queue,
            org=job.org,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            lease_token=job.lease_token,
            metadata=metadata,
            tags=job.tags,
            traceparent=job.traceparent,
            cancelled=held.cancelled,
        )
        return kwargs, context

    async def _stop(self, held: Held, execution: Execution) -> None:
        # When nothing has interrupted it, its time is up.
        held.interrupt(Interruption.TIMEOUT)
        self._signals.emit("handler_interrupted", (held.job.id, held.interruption))
        execution.stop()
        if execution.stoppable:
            await asyncio.wait({execution.ended}, timeout=CANCEL_PATIENCE_SECONDS)

    def _start(self, held: Held, handler: Handler, kwargs: Mapping[str, Any], context: JobContext) -> Execution:
        if handler.run_in is RunIn.LOOP:
            task = asyncio.create_task(_on_loop(handler.fn, kwargs, context), name=f"handler of {held.job.id}")
            return Execution(task, task.cancel, stoppable=True)
        if handler.run_in is RunIn.THREAD:
            # Threads start with an empty context; handlers expect the one that async code would have.
            carried = copy_context()
            thread = self._threads.submit(lambda: carried.run(_in_thread, handler.fn, kwargs, context))
            return Execution(asyncio.wrap_future(thread), lambda: None, stoppable=False)
        try:
            call = ProcessCall.of(handler.fn, kwargs, context)
        except BaseException as error:
            # No retry can help: the same parameters make the same arguments.
            raise _Refused(arguments_unpicklable(held.job, error)) from None
        run, kill = self._processes.prepare(call)
        waiter = self._threads.submit(lambda: _in_process(run, context))
        return Execution(asyncio.wrap_future(waiter), kill, stoppable=True)


class _Refused(Exception):
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


def _outcome(held: Held, execution: Execution) -> Outcome | None:
    if held.lost:
        return None
    if held.interruption is Interruption.TIMEOUT:
        return timed_out(held.job)
    # A task cancelled before its first step has no result.
    ended = execution.ended.done() and not execution.ended.cancelled()
    outcome = execution.ended.result() if ended else released(held.job)
    if held.interruption is not None and outcome.outcome in ("fail", "discard"):
        # It failed because we stopped it, which is not its fault: hand the job back.
        return released(held.job)
    return outcome


async def _on_loop(fn: Callable[..., Awaitable[Any]], kwargs: Mapping[str, Any], context: JobContext) -> Outcome:
    """Await a handler; whatever it raises fails the attempt only.

    SystemExit and KeyboardInterrupt out of a task would end the worker's loop. CancelledError too is an outcome:
    either we cancelled the handler, and `Held.interruption` says why, or it let one of its own escape.
    """
    try:
        with ForkGuard(), job_context(context):
            return of_return(context.job_id, context.lease_token, await fn(**kwargs))
    except BaseException as error:
        return of_error(context.job_id, context.lease_token, error)


def _in_thread(fn: Callable[..., Any], kwargs: Mapping[str, Any], context: JobContext) -> Outcome:
    try:
        with ForkGuard(), job_context(context):
            return of_return(context.job_id, context.lease_token, fn(**kwargs))
    except BaseException as error:
        return of_error(context.job_id, context.lease_token, error)


def _in_process(run: Callable[[], Outcome], context: JobContext) -> Outcome:
    try:
        return run()
    except BaseException as error:
        return of_error(context.job_id, context.lease_token, error)
