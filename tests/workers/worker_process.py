"""Real worker processes, as `queue-pg worker` starts them, and a line to Postgres that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

HERE = Path(__file__).parent
PATIENCE_SECONDS = 30.0


class WorkerProcess:
    """A running `queue-pg worker`, with the lines of its log and of its handlers' pipe."""

    def __init__(self, process: asyncio.subprocess.Process, told: asyncio.Queue[list[str]]) -> None:
        self.process = process
        self.log: list[str] = []
        self._told = told
        self._logged = asyncio.Condition()
        self._reading = asyncio.create_task(self._read_log())

    async def told(self, *expected: object) -> list[str]:
        """Wait for the next line of a handler that begins with these words."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                words = await self._told.get()
                if words[: len(expected)] == [str(word) for word in expected]:
                    return words

    async def logged(self, text: str) -> str:
        """Wait for a log line that contains `text`; earlier ones count."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._logged:
            while True:
                for line in self.log:
                    if text in line:
                        return line
                await self._logged.wait()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end of the process; return its exit code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            code = await self.process.wait()
            await self._reading
        return code

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._logged:
                self.log.append(line.decode().rstrip())
                self._logged.notify_all()


class Pipe:
    """The named pipe that handlers write to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: asyncio.Queue[list[str]] = asyncio.Queue()
        self._rest = b""

    def read(self, descriptor: int) -> None:
        *lines, self._rest = (self._rest + os.read(descriptor, 65536)).split(b"\n")
        for line in lines:
            self.lines.put_nowait(line.decode().split(" "))


@asynccontextmanager
async def told_pipe(folder: Path) -> AsyncGenerator[Pipe]:
    """Make the pipe and read it while the block lasts."""
    path = folder / "told"
    os.mkfifo(path)
    # For writing too, so that it does not end when a handler closes it.
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    pipe = Pipe(path)
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, pipe.read, descriptor)
    try:
        yield pipe
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@asynccontextmanager
async def worker_process(
    dsn: str,
    *arguments: str,
    pipe: Pipe | None = None,
    cwd: Path = HERE,
    env: dict[str, str] | None = None,
) -> AsyncGenerator[WorkerProcess]:
    """Run `queue-pg worker` while the block lasts; killed at its end unless it has ended."""
    environment = {**os.environ, "DATABASE_URL": dsn, "PYTHONUNBUFFERED": "1", **(env or {})}
    if pipe is not None:
        environment["QUEUE_PG_TEST_PIPE"] = str(pipe.path)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "queue_pg.cli",
        "worker",
        *arguments,
        cwd=cwd,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    worker = WorkerProcess(process, pipe.lines if pipe is not None else asyncio.Queue())
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await worker.ended()
        # Shown by pytest when the test fails.
        sys.stdout.write("\n".join([f"log of worker process {process.pid}:", *worker.log, ""]))


class CuttableLine:
    """A TCP proxy in front of Postgres."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def refuse(self) -> None:
        """Cut all connections and accept no new ones."""
        self._refusing = True
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Pass nothing on any more, in either direction, and keep quiet about it."""
        self._flowing.clear()

    def heal(self) -> None:
        self._refusing = False
        self._flowing.set()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        host, port = self._target
        if host.startswith("/"):
            up_reader, up_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            up_reader, up_writer = await asyncio.open_connection(host, port)
        writers = {writer, up_writer}
        self._writers |= writers
        try:
            directions = [asyncio.create_task(self._pass(*pair)) for pair in ((reader, up_writer), (up_reader, writer))]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        finally:
            self._writers -= writers
            for one in writers:
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def cuttable(dsn: str) -> AsyncGenerator[tuple[CuttableLine, str]]:
    """Give a line and the DSN that goes through it."""
    given: dict[str, Any] = conninfo_to_dict(dsn)
    line = CuttableLine(given.get("host") or "/var/run/postgresql", int(given.get("port") or 5432))
    listener = await asyncio.start_server(line.connected, "127.0.0.1", 0)
    try:
        yield line, make_conninfo(dsn, host="127.0.0.1", port=listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        await line.close()
