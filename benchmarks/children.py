"""The processes that the harness starts: each with its own log, all ended when their block is left."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import proc

STOP_SECONDS = 10.0
KEPT_LINES = 15


class Failed(Exception):
    """What was to be measured did not happen."""


class ChildFailed(Failed):
    """A process ended early, or was not ready in time. The message holds the end of its output."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. The environment comes on top of the harness's own."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    folder: Path | None = None


@dataclass(slots=True)
class Child:
    """A running process."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process's number; its own children are below it."""
        return self.process.pid

    def cpu_seconds(self) -> float:
        """Return what the process and all below it have used so far."""
        return proc.cpu_seconds(self.pid)

    def wait_for(self, ready: Callable[[], bool], *, seconds: float, what: str, pause: float = 0.005) -> None:
        """Wait until something is so. Raise ChildFailed when the process ends first, or the time is up."""
        deadline = time.monotonic() + seconds
        while not ready():
            if (code := self.process.poll()) is not None:
                raise ChildFailed(f"ended with code {code} before {what}: {self.tail()}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"{what} did not come within {seconds:g} s: {self.tail()}")
            time.sleep(pause)

    def tail(self) -> str:
        """Return the last lines the process wrote, in one line."""
        return " / ".join(self.log.read_text(errors="replace").split("\n")[-KEPT_LINES:]).strip(" /") or "no output"

    def stop(self) -> None:
        """Ask the process to end, then make it and all below it."""
        family = [one.pid for one in proc.tree(self.pid)]
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in family[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def started(command: Command) -> Generator[Child]:
    """Run a process as long as the block lasts."""
    with tempfile.NamedTemporaryFile(prefix="queue-pg-bench-", suffix=".log") as log:
        process = subprocess.Popen(
            list(command.arguments),
            env={**os.environ, **command.environment},
            cwd=command.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the harness, which then ends its children
        )
        child = Child(process, Path(log.name))
        try:
            yield child
        finally:
            child.stop()


def run(command: Command, *, seconds: float = 300.0) -> str:
    """Run a process to its end and return its output. Raise ChildFailed when that is no success."""
    try:
        done = subprocess.run(
            list(command.arguments),
            env={**os.environ, **command.environment},
            cwd=command.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"{command.arguments[0]} did not end within {seconds:g} s") from None
    if done.returncode != 0:
        lines = " / ".join(done.stdout.strip().splitlines()[-KEPT_LINES:])
        raise ChildFailed(f"{Path(command.arguments[0]).name} ended with code {done.returncode}: {lines}")
    return done.stdout
