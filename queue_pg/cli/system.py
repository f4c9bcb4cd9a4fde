"""A whole queue-pg on this machine: Postgres, schema, API, workers; the base of `queue-pg demo` and `queue-pg dev`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from queue_pg.cli.process_tree import ProcessFailed, ProcessTree, Program
from queue_pg.errors import ConfigError, QueuePgError

if TYPE_CHECKING:
    from queue_pg.client import Queue

HOST = "127.0.0.1"
READY_SECONDS = 60.0
DRAIN_SECONDS = 10.0
API_STOP_SECONDS = 5.0
POLL_SECONDS = 0.05


class NotReady(QueuePgError):
    """The system did not get ready in time."""

    code = "not_ready"


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came before the work was done; everything was stopped in order. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `database_url` None = the embedded server of `data_dir`.

    With `patient_workers` the system counts as ready before its workers: their code may need mending first.
    """

    database_url: str | None
    data_dir: Path
    port: int
    api: Sequence[str]
    workers: Sequence[Sequence[str]]
    patient_workers: bool = False
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class System:
    """A running system."""

    dsn: str
    url: str
    queue: Queue


class Signals:
    """Ctrl-C and SIGTERM: the first asks for an orderly end, the second for an end at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        self._first: int | None = None

    def _received(self, number: int) -> None:
        self._first = self._first or number
        (self.at_once if self.stop.is_set() else self.stop).set()

    def raise_if_stopped(self) -> None:
        """Raise Interrupted when a signal has come."""
        if self._first is not None:
            raise Interrupted(self._first)

    @contextlib.contextmanager
    def caught(self) -> Generator[None]:
        """Catch the signals inside the block."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._received, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def require_free_port(port: int, *, command: str) -> None:
    """Raise ConfigError when the API's port is taken; better now than after Postgres was started."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                message, hint = f"Port {port} needs root.", "Choose one above 1023"
            else:
                message, hint = f"Port {port} is in use.", "Stop what uses it, or choose another one"
            raise ConfigError(message, setting="API_PORT", hint=f"{hint}: {command} --port {_other(port)}") from None


def _other(port: int) -> int:
    return port + 1 if 1023 < port < 65535 else 8000


async def run_system(
    plan: Plan,
    work: Callable[[System, Signals], Coroutine[Any, Any, int]],
    *,
    say: Callable[[str], None],
    show: Callable[[str, str], None],
) -> int:
    """Start the system, do `work` with it, stop it in order (workers, API, Postgres); return the exit code of `work`.

    `say` gets status lines, `show(name, line)` what the processes log. Raises Interrupted, after the orderly stop,
    when a signal comes first; `work` itself decides what a signal means once it runs.
    """
    from queue_pg.client import Queue

    signals = Signals()
    with signals.caught():
        async with _database(plan, say=say, signals=signals) as dsn, ProcessTree(show=show) as tree:
            await _migrate(dsn, say=say)
            signals.raise_if_stopped()
            environment = {**plan.environment, "DATABASE_URL": dsn}
            workers = {f"worker-{number}": words for number, words in enumerate(plan.workers, start=1)}
            # Known in advance, to find the rows by which the workers report that they are ready.
            worker_ids = {name: f"{socket.gethostname()}-{secrets.token_hex(3)}-{name}" for name in workers}
            try:
                async with Queue(dsn) as queue:
                    tree.start(Program("api", plan.api, environment))
                    for name, words in workers.items():
                        tree.start(Program(name, words, {**environment, "WORKER_ID": worker_ids[name]}))
                    awaited = [] if plan.patient_workers else list(worker_ids.values())
                    starting = _ready(queue, plan.port, awaited)
                    if not await _first(starting, failed=tree.failed, stop=signals.stop):
                        signals.raise_if_stopped()
                    system = System(dsn, f"http://{HOST}:{plan.port}", queue)
                    code: list[int] = []
                    await _first(_kept(work(system, signals), code), failed=tree.failed, stop=asyncio.Event())
                    return code[0]
            finally:
                # Workers first, so that what they finish is still recorded; Postgres last.
                if signals.stop.is_set():
                    say("Stopping: workers, API, Postgres. Ctrl-C again stops at once.")
                await tree.stop(list(workers), grace_seconds=DRAIN_SECONDS, at_once=signals.at_once)
                await tree.stop(["api"], grace_seconds=API_STOP_SECONDS, at_once=signals.at_once)


async def _kept(work: Coroutine[Any, Any, int], code: list[int]) -> None:
    code.append(await work)


async def _first(
    work: Coroutine[Any, Any, None], *, failed: asyncio.Future[ProcessFailed], stop: asyncio.Event
) -> bool:
    """Do `work` until it is done (True) or `stop` is set (False); raise what `failed` holds when that comes first."""
    doing, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        racing: list[asyncio.Future[Any]] = [doing, stopping, failed]
        await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise failed.result()
        if doing.done():
            doing.result()
        return doing.done()
    finally:
        for task in (doing, stopping):
            task.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)


@contextlib.asynccontextmanager
async def _database(plan: Plan, *, say: Callable[[str], None], signals: Signals) -> AsyncGenerator[str]:
    if plan.database_url is not None:
        yield plan.database_url
        return
    from queue_pg.embedded import EmbeddedPostgres

    # Its guard, not this process, starts it again after a crash and stops it when its last user is gone.
    server = EmbeddedPostgres(plan.data_dir)
    first = "" if server.cluster.exists() else " (the first start takes a few seconds)"
    say(f"Starting Postgres with its data in {server.data_dir}{first}")
    try:
        dsn = await asyncio.to_thread(server.start)
    except QueuePgError:
        # Ctrl-C in a terminal also reaches initdb, whose failure is then no news.
        signals.raise_if_stopped()
        raise
    try:
        for notice in server.notices:
            say(notice)
        signals.raise_if_stopped()
        yield dsn
    finally:
        await asyncio.to_thread(server.stop)


async def _migrate(dsn: str, *, say: Callable[[str], None]) -> None:
    from queue_pg import schema

    applied = await asyncio.to_thread(schema.migrate, dsn)
    if applied:
        say(f"Applied {len(applied)} migrations")


async def _ready(queue: Queue, port: int, worker_ids: Sequence[str]) -> None:
    """Return when the API answers and every worker has its row."""
    waiting_for = "the API"
    try:
        async with asyncio.timeout(READY_SECONDS):
            await _until(lambda: _answers(port))
            waiting_for = "the workers"
            await _until(lambda: _registered(queue, worker_ids))
    except TimeoutError:
        raise NotReady(f"After {READY_SECONDS:g} s {waiting_for} had not started.", hint="See the log above.") from None


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    # Other processes get ready, which no event of this one tells.
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)


async def _registered(queue: Queue, worker_ids: Sequence[str]) -> bool:
    found = [worker.id for worker in await queue.workers()]
    return all(any(worker.startswith(name) for worker in found) for name in worker_ids)


async def _answers(port: int) -> bool:
    """Tell whether the API says that it is ready. By hand, because HTTP clients obey proxy settings."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        writer.write(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()
