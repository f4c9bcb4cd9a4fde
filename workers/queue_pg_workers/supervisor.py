"""Several worker processes, or one that restarts when the code changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import watchfiles

from queue_pg import logs
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.main import CONFIG_VARIABLE, config_to_json

log = logging.getLogger(__name__)

FIRST_RESTART_SECONDS = 0.5
MAX_RESTART_SECONDS = 30.0
# A process that lived this long has not died of starting.
HEALTHY_SECONDS = 60.0
# The codes of errors that a restart cannot cure: bad configuration, a schema that does not fit.
FATAL_CODES = (2, 3)


def supervise(configs: list[WorkerConfig], *, reload: bool) -> int:
    """Run a process for each config until signalled; return the exit code."""
    logs.configure(configs[0].log_format, configs[0].log_level)
    return asyncio.run(Supervisor(configs, reload=reload).run())


class Supervisor:
    """Restarts processes that die, and passes on the signals it gets."""

    def __init__(self, configs: list[WorkerConfig], *, reload: bool) -> None:
        self._configs = configs
        self._reload = reload
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        # Those that are ending already, to start anew with the changed code. Told again, they would end at once.
        self._reloading: set[asyncio.subprocess.Process] = set()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._pass_on)
        watching = asyncio.create_task(self._watch_code()) if self._reload else None
        async with asyncio.TaskGroup() as group:
            for slot, config in enumerate(self._configs):
                group.create_task(self._keep(slot, config))
        if watching is not None:
            watching.cancel()
        return self._exit_code

    async def _keep(self, slot: int, config: WorkerConfig) -> None:
        """Keep one process running until all are to stop."""
        pause = FIRST_RESTART_SECONDS
        while not self._stop.is_set():
            started_at = time.monotonic()
            self._changed.clear()
            code, reloading = await self._run_once(slot, config)
            if self._stop.is_set():
                self._exit_code = self._exit_code or max(code, 0)
                return
            if reloading:
                continue
            if self._reload and code in FATAL_CODES:
                log.info("waiting for a change of the code")
                await self._until(self._changed)
                continue
            if code in FATAL_CODES:
                self._exit_code = code
                self._pass_on()
                return
            if time.monotonic() - started_at > HEALTHY_SECONDS:
                pause = FIRST_RESTART_SECONDS
            log.error("worker process %d ended with code %d, starting another", slot, code)
            await self._until(self._changed, pause * random.uniform(0.5, 1))
            pause = min(pause * 2, MAX_RESTART_SECONDS)

    async def _run_once(self, slot: int, config: WorkerConfig) -> tuple[int, bool]:
        """Run one process to its end; return its exit code, and whether it was ended to load changed code."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "queue_pg_workers.main",
            # Held open by us: its end tells the process that we are gone, whatever ended us.
            stdin=asyncio.subprocess.PIPE,
            # Ctrl-C goes to the whole group of the terminal; passed on as well it would count as a second signal.
            start_new_session=True,
            env={**os.environ, CONFIG_VARIABLE: config_to_json(config)},
        )
        self._processes[slot] = process
        if self._stop.is_set():
            _end(process)
        try:
            code = await process.wait()
            return code, process in self._reloading
        finally:
            del self._processes[slot]
            self._reloading.discard(process)

    def _pass_on(self) -> None:
        """Pass the order to stop on; what is ending already is told by the second one only."""
        spared = set[asyncio.subprocess.Process]() if self._stop.is_set() else self._reloading
        self._stop.set()
        for process in self._processes.values():
            if process not in spared:
                _end(process)

    async def _watch_code(self) -> None:
        # The stub names an optional dependency (trio), which leaves the type partly unknown.
        watch = cast("Callable[..., AsyncIterator[set[tuple[Any, str]]]]", watchfiles.awatch)  # pyright: ignore[reportUnknownMemberType]
        log.info("watching the Python files of %s", Path.cwd())
        async for changes in watch(Path.cwd(), watch_filter=watchfiles.PythonFilter()):
            names = sorted({Path(path).name for _, path in changes})
            log.info("changed: %s; restarting when the running jobs have ended", ", ".join(names[:3]))
            self._changed.set()
            for process in self._processes.values():
                if process not in self._reloading:
                    self._reloading.add(process)
                    _end(process)

    async def _until(self, event: asyncio.Event, seconds: float | None = None) -> None:
        """Wait for an event, for the order to stop, or for so many seconds."""
        waiting = [asyncio.create_task(one.wait()) for one in (self._stop, event)]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()


def _end(process: asyncio.subprocess.Process) -> None:
    # It may have ended and been reaped already, before `_run_once` has heard of it.
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
