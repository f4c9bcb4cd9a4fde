"""One execution of one job: from the payload's text to an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Final
from uuid import UUID

from queue_pg.errors import InvalidJob
from queue_pg.models import Outcome
from queue_pg.outcomes import of_error, of_return
from queue_pg.payloads import UnreadableJson, decode_json
from queue_pg.surroundings import REAL, Surroundings
from queue_pg.tasks import JobContext, set_current_job
from queue_pg_workers.forks import ForkGuard
from queue_pg_workers.kinds import Handler, RunIn
from queue_pg_workers.leases import Held, Interruption
from queue_pg_workers.outcomes import (
    arguments_unpicklable,
    payload_invalid,
    payload_unreadable,
    released,
    timed_out,
    worker_error,
)
from queue_pg_workers.processes import HandlerProcesses, ProcessCall
from queue_pg_workers.signals import Signals
from queue_pg_workers.threads import HandlerThreads

log = logging.getLogger(__name__)

# How long a cancelled handler may take to clean up before its outcome is recorded without it.
CANCEL_PATIENCE_SECONDS: Final = 1.0


class Attempts:
    """Runs handlers on the loop, in threads and in processes.

    For each that was started, `on_outcome` is called once (no outcome: the lease is lost), and `on_ended` when its code
    has ended. The two moments differ for a handler that does not stop when its time is up: the outcome is recorded, but
    the slot is still taken.
    """

    def __init__(
        self,
        *,
        name: str,
        signals: Signals,
        on_outcome: Callable[[Held, Outcome | None], None],
        on_ended: Callable[[Held], None],
        surroundings: Surroundings = REAL,
    ) -> None:
        self._threads = HandlerThreads(name=f"{name}-handler", surroundings=surroundings)
        self._processes = HandlerProcesses()
        self._signals = signals
        self._on_outcome = on_outcome
        self._on_ended = on_ended
        self._guard = ForkGuard()
        self._monotonic = surroundings.monotonic
        self._loop = asyncio.get_running_loop()

    def start(self, held: Held, handler: Handler) -> None:
        """Start the handler of a job; it runs when the loop comes to it."""
        if handler.run_in is RunIn.LOOP:
            task = self._loop.create_task(self._on_loop(held, handler), name=held.job.id)
            held.stop = task.cancel
        else:
            self._loop.call_soon(self._start_elsewhere, held, handler)

    def interrupted(self, held: Held) -> None:
        """Stop a handler for the reason that `held` has; may be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker has ended
            self._loop.call_soon_threadsafe(self._stop, held)

    def close(self) -> None:
        self._threads.close()
        self._processes.close()

    # --- the three ways to run ----------------------------------------------------------------------------------------

    async def _on_loop(self, held: Held, handler: Handler) -> None:
        """Await a handler in a task of its own; whatever it raises fails the attempt only.

        SystemExit and KeyboardInterrupt out of a task would end the worker's loop. CancelledError too is an outcome:
        either we cancelled the handler, and `Held.interruption` says why, or it let one of its own escape.
        """
        job = held.job
        # Not in `start`: a task that is cancelled before its first step never gets here.
        held.running = True
        try:
            kwargs = self._arguments(held, handler)
            if self._signals.heard("handler_started"):
                self._signals.emit("handler_started", UUID(job.id))
            try:
                set_current_job(held.context)
                with self._guard:
                    value = await handler.fn(**kwargs)
                outcome = of_return(job.id, job.lease_token, value)
            except BaseException as error:
                outcome = of_error(job.id, job.lease_token, error)
        except _Refused as refused:
            outcome = refused.outcome
        except Exception as error:
            outcome = _own_error(held, error)
        self._ended(held, outcome)

    def _start_elsewhere(self, held: Held, handler: Handler) -> None:
        held.running = True
        try:
            if handler.run_in is RunIn.THREAD:
                running = self._start_in_thread(held, handler)
            else:
                running = self._start_in_process(held, handler)
        except _Refused as refused:
            self._ended(held, refused.outcome)
            return
        except Exception as error:
            self._ended(held, _own_error(held, error))
            return
        self._signals.emit("handler_started", UUID(held.job.id))
        running.add_done_callback(lambda done: self._ended_elsewhere(held, done.result()))

    def _start_in_thread(self, held: Held, handler: Handler) -> Future[Outcome]:
        kwargs = self._arguments(held, handler)
        # Threads start with an empty context; handlers expect the one that async code would have.
        carried = copy_context()
        return self._threads.submit(lambda: carried.run(_in_thread, handler, kwargs, held, self._guard))

    def _start_in_process(self, held: Held, handler: Handler) -> Future[Outcome]:
        kwargs, context = self._arguments(held, handler), held.context()
        try:
            call = ProcessCall.of(handler.fn, kwargs, context)
        except BaseException as error:
            # No retry can help: the same parameters make the same arguments.
            raise _Refused(arguments_unpicklable(held.job, error)) from None
        run, held.stop = self._processes.prepare(call)
        return self._threads.submit(lambda: _in_process(run, context))

    def _arguments(self, held: Held, handler: Handler) -> Mapping[str, Any]:
        """Return the handler's arguments. Raise _Refused for a job that it cannot take, or must not begin any more.

        That is one which was stopped already, or which somebody else may have: the answer to its claim came too late.
        """
        job = held.job
        late = self._monotonic() - held.trusted_until
        if held.interruption is None and late > 0:
            about = {"job_id": job.id, "kind": job.kind, "attempt": job.attempt}
            said = "job %s (%s): its lease was over %.1f s before it could begin; it goes back"
            log.warning(said, job.id, job.kind, late, extra=about)
        if held.interruption is not None or late > 0:
            raise _Refused(released(job))
        try:
            payload = decode_json(job.payload)
            if job.metadata is not None:
                held.metadata = decode_json(job.metadata)
        except UnreadableJson as error:
            raise _Refused(payload_unreadable(job, str(error))) from None
        try:
            return handler.validate(payload)
        except InvalidJob as invalid:
            raise _Refused(payload_invalid(job, invalid)) from None
        except BaseException as error:
            # Validators are the user's code too, and SystemExit would end the worker's loop.
            raise _Refused(of_error(job.id, job.lease_token, error)) from None

    # --- ending -------------------------------------------------------------------------------------------------------

    def _stop(self, held: Held) -> None:
        if not held.running:
            return
        self._signals.emit("handler_interrupted", (UUID(held.job.id), held.interruption))
        if held.stop is None:
            self._record(held, None)
        else:
            held.stop()
            self._loop.call_later(CANCEL_PATIENCE_SECONDS, self._record, held, None)

    def _ended_elsewhere(self, held: Held, outcome: Outcome) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ended, held, outcome)

    def _ended(self, held: Held, outcome: Outcome) -> None:
        held.running = False
        # Without it the task and the job would keep each other until the next garbage collection.
        held.stop = None
        self._record(held, outcome)
        self._on_ended(held)

    def _record(self, held: Held, outcome: Outcome | None) -> None:
        """Pass on how the attempt ended; `outcome` is None as long as the handler's code has not."""
        if held.outcome is None:
            held.outcome = outcome = _judged(held, outcome)
            self._on_outcome(held, None if held.lost else outcome)


class _Refused(Exception):
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


def _judged(held: Held, outcome: Outcome | None) -> Outcome:
    if held.interruption is None and outcome is not None:
        return outcome
    if held.interruption is Interruption.TIMEOUT:
        return timed_out(held.job)
    if outcome is None or outcome.outcome in ("fail", "discard"):
        # It failed because we stopped it, which is not its fault: hand the job back.
        return released(held.job)
    return outcome


def _own_error(held: Held, error: Exception) -> Outcome:
    """Return the outcome for an error of ours, not the handler's: the lease must not stay, or be renewed for ever."""
    about = {"job_id": held.job.id, "kind": held.job.kind, "attempt": held.job.attempt}
    log.exception("job %s (%s): the worker failed to run it", held.job.id, held.job.kind, extra=about)
    return worker_error(held.job, error)


def _in_thread(handler: Handler, kwargs: Mapping[str, Any], held: Held, guard: ForkGuard) -> Outcome:
    job = held.job
    try:
        set_current_job(held.context)
        with guard:
            value = handler.fn(**kwargs)
        return of_return(job.id, job.lease_token, value)
    except BaseException as error:
        return of_error(job.id, job.lease_token, error)


def _in_process(run: Callable[[], Outcome], context: JobContext) -> Outcome:
    try:
        return run()
    except BaseException as error:
        return of_error(context.job_id, context.lease_token, error)
