"""Processes for handlers that compute (`run_in="process"`)."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from typing import Any, Final

from queue_pg.models import Outcome
from queue_pg.outcomes import of_error, of_return
from queue_pg.tasks import JobContext, Task, job_context
from queue_pg_workers.forks import ForkGuard


class ProcessDied(Exception):
    """The process that ran the handler ended before the handler did."""

    def __init__(self, exit_code: int | None) -> None:
        how = f"exit code {exit_code}" if exit_code is None or exit_code >= 0 else _signal_name(-exit_code)
        super().__init__(f"the process that ran the handler died ({how})")
        self.exit_code = exit_code


_STAYS_HERE: Final = ("cancelled", "link", "step_log")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCall:
    """What a child is told to run.

    `function` is `module:qualified.name`: pickle would refuse it, because the module has the Task under that name.
    `arguments` is pickled apart, so that arguments that cannot be read fail the attempt and not the connection.
    `context` holds the fields of a JobContext but those that stay here: a child is killed, not asked.
    """

    function: str
    arguments: bytes
    context: Mapping[str, Any]

    @classmethod
    def of(cls, fn: Callable[..., Any], kwargs: Mapping[str, Any], context: JobContext) -> ProcessCall:
        """Raise whatever pickle or the arguments' own `__reduce__` raises."""
        names = [field.name for field in fields(context) if field.name not in _STAYS_HERE]
        passed = {name: getattr(context, name) for name in names}
        return cls(function=f"{fn.__module__}:{fn.__qualname__}", arguments=pickle.dumps(dict(kwargs)), context=passed)

    def run(self) -> Outcome:
        """Run it here; whatever it raises is its outcome."""
        context = JobContext(**self.context)
        try:
            module, _, path = self.function.partition(":")
            found: Any = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
            fn = found.fn if isinstance(found, Task) else found
            with ForkGuard(), job_context(context):
                return of_return(context.job_id, context.lease_token, fn(**pickle.loads(self.arguments)))  # noqa: S301
        except BaseException as error:
            return of_error(context.job_id, context.lease_token, error)


class _Child:
    """One interpreter that runs one call at a time. Started with `spawn` semantics: nothing of ours is forked, so
    neither locks nor database connections are shared."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "queue_pg_workers.process_child", str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self.connection = Connection(ours.detach())

    def call(self, call: ProcessCall) -> Outcome:
        """Run a call to its end; raise `ProcessDied` when the child is gone."""
        try:
            self.connection.send(call)
            outcome: Outcome = self.connection.recv()
            return outcome
        except (EOFError, OSError):
            raise ProcessDied(self._exit_code()) from None

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def _exit_code(self) -> int | None:
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            # It closed its end and lives on; it is of no use any more.
            self.process.kill()
            return self.process.wait()


class HandlerProcesses:
    """Children kept for the next job; one that died or was killed is replaced by a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._closed = False

    def prepare(self, call: ProcessCall) -> tuple[Callable[[], Outcome], Callable[[], None]]:
        """Return (run, kill). `run` blocks, so it belongs in a thread; `kill` may be called from any thread."""
        lock = threading.Lock()
        child: _Child | None = None
        killed = False

        def run() -> Outcome:
            nonlocal child
            mine = self._take()
            with lock:
                # Killed while it waited for a thread or a child: never start.
                if killed:
                    self._give_back(mine)
                    raise ProcessDied(None)
                child = mine
            try:
                outcome = mine.call(call)
            except BaseException:
                # Includes arguments that cannot be sent: who knows whether the stream between us is still in step.
                mine.close()
                raise
            release(mine)
            return outcome

        def release(mine: _Child) -> None:
            nonlocal child
            with lock:
                # A kill that came with the reply has hit it.
                child = None
                if killed:
                    mine.close()
                    return
            self._give_back(mine)

        def kill() -> None:
            nonlocal killed
            with lock:
                killed = True
                if child is not None:
                    child.kill()

        return run, kill

    def close(self) -> None:
        """Kill the idle children; one that still runs a job ends when this process does."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    def _take(self) -> _Child:
        while True:
            with self._lock:
                if not self._idle:
                    break
                child = self._idle.pop()
            # It may have been killed while idle, by the kernel for memory for one.
            if child.process.poll() is None:
                return child
            child.close()
        return _Child()

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        child.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
