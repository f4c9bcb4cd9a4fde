"""The processes below `queue-pg demo` and `queue-pg dev`: started, watched, restarted, stopped in order.

Each child leads a process group of its own, so Ctrl-C in a terminal reaches only the parent, which then stops them in
the right order; and each ends by itself when the parent dies (child.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from queue_pg.cli.child import LIFELINE_VARIABLE
from queue_pg.errors import QueuePgError

RESTART_PAUSE_SECONDS = 1.0
STEADY_SECONDS = 10.0
MAX_QUICK_DEATHS = 3
KEPT_LINES = 40
MAX_LINE_BYTES = 16_384

# Restarting cannot help against bad settings (2) or a schema that does not fit (3).
HOPELESS_EXIT_CODES = frozenset({2, 3})


class ProcessFailed(QueuePgError):
    """A process of the tree ended and was not worth another start. `lines` are the last ones it wrote."""

    code = "process_failed"

    def __init__(self, message: str, *, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines)


@dataclass(frozen=True, slots=True)
class Program:
    """A queue-pg command to keep running. `name` is the prefix of its log lines."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class Child:
    """A program and the process that runs it now."""

    program: Program
    process: asyncio.subprocess.Process | None = None
    keeper: asyncio.Task[None] | None = None
    stopping: bool = False
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.returncode is None else None


class ProcessTree:
    """A set of children. `failed` completes with the reason when one of them cannot be kept running."""

    def __init__(self, *, show: Callable[[str, str], None]) -> None:
        """`show(name, line)` gets each line a child writes."""
        self._show = show
        self._children: dict[str, Child] = {}
        self._lifeline: tuple[int, int] | None = None
        self.failed: asyncio.Future[ProcessFailed] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        self._lifeline = os.pipe()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(list(self._children), grace_seconds=0)
        if self._lifeline is not None:
            for descriptor in self._lifeline:
                os.close(descriptor)
        self.failed.cancel()

    def start(self, program: Program) -> Child:
        """Start `program` and keep it running until it is stopped."""
        child = Child(program)
        self._children[program.name] = child
        child.keeper = asyncio.create_task(self._keep(child), name=f"keep {program.name}")
        return child

    async def stop(self, names: Sequence[str], *, grace_seconds: float, at_once: asyncio.Event | None = None) -> None:
        """Ask the named children to end; kill what is left after the grace, or when `at_once` is set."""
        children = [self._children[name] for name in names if name in self._children]
        keepers = [child.keeper for child in children if child.keeper is not None]
        for child in children:
            child.stopping = True
            if child.process is None and child.keeper is not None:
                child.keeper.cancel()  # between two starts
            elif grace_seconds > 0:
                _signal(child, signal.SIGTERM)
        if not keepers:
            return
        hurry = asyncio.create_task(_set_or_timeout(at_once, grace_seconds))
        ended = asyncio.create_task(_all(keepers))
        await asyncio.wait([hurry, ended], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        for child in children:
            _signal(child, signal.SIGKILL)
        await ended

    async def _keep(self, child: Child) -> None:
        name = child.program.name
        quick_deaths = 0
        while not child.stopping:
            started = time.monotonic()
            status = await self._run_once(child)
            if child.stopping:
                return
            what = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
            quick_deaths = quick_deaths + 1 if time.monotonic() - started < STEADY_SECONDS else 1
            if status in HOPELESS_EXIT_CODES or quick_deaths >= MAX_QUICK_DEATHS:
                self._give_up(child, what)
                return
            self._show(name, f"ended with {what}; starting it again")
            await asyncio.sleep(RESTART_PAUSE_SECONDS)

    def _give_up(self, child: Child, what: str) -> None:
        if self.failed.done():
            return
        last = next((line for line in reversed(child.last_lines) if line.strip()), "")
        message = f"{child.program.name} ended with {what}" + (f": {last.removeprefix('error: ')}" if last else ".")
        reason = ProcessFailed(message, lines=list(child.last_lines))
        self.failed.set_result(reason)

    async def _run_once(self, child: Child) -> int:
        assert self._lifeline is not None  # noqa: S101  (set by __aenter__)
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "queue_pg.cli.child",
                *child.program.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    **child.program.environment,
                    LIFELINE_VARIABLE: str(self._lifeline[0]),
                },
                pass_fds=[self._lifeline[0]],
                process_group=0,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        child.process = process
        if child.stopping:
            _signal(child, signal.SIGTERM)  # stop() came while the process was being made
        pump = asyncio.create_task(self._pump(child, reading), name=f"log {child.program.name}")
        status = await process.wait()
        # What the child started itself must not outlive it: a killed supervisor leaves its own children behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await pump
        child.process = None
        return status

    async def _pump(self, child: Child, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        with os.fdopen(descriptor, "rb") as pipe:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            rest = b""
            while chunk := await reader.read(65_536):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._take(child, line)
            if rest:
                self._take(child, rest)
            transport.close()

    def _take(self, child: Child, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode(errors="replace").rstrip()
        child.last_lines.append(text)
        self._show(child.program.name, text)


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


async def _set_or_timeout(event: asyncio.Event | None, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await (event or asyncio.Event()).wait()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(child.pid, number)
        else:
            os.kill(child.pid, number)
