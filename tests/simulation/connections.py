"""psycopg's connections on simulated lines.

Its own cursors and connections work on top: of a connection only `wait`, through which all that it sends and receives
goes, and its beginning and end are others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from psycopg import AsyncConnection, Connection

from tests.simulation.network import Line
from tests.simulation.scheduler import Process, wait_in, wake_all


class SimulatedAsyncConnection(AsyncConnection[Any]):
    """psycopg's connection on a simulated line."""

    line: Line
    answer_seconds: float | None = None

    async def wait(self, gen: Any, interval: float = 0.0, timeout: float | None = None) -> Any:
        loop = self.line.process.loop
        answer = loop.create_future()
        sent = self.line.send(gen, partial(_settle, answer))
        if sent is None:
            return answer.result()
        try:
            return await answer
        except BaseException:
            if answer.cancelled() or not answer.done():
                # It asks the server to stop, which may come too late, and may come after it.
                sent.abandon(late=False)
                self.line.sent = None
            raise

    async def close(self) -> None:
        self._closed = True
        self.line.close()

    def fileno(self) -> int:
        return _fileno(self)


class SimulatedConnection(Connection[Any]):
    """psycopg's blocking connection on a simulated line, for simulated threads."""

    line: Line
    answer_seconds: float | None = None

    def wait(self, gen: Any, interval: float = 0.0, timeout: float | None = None) -> Any:
        scheduler = self.line.network.scheduler
        answers: list[tuple[Any, BaseException | None]] = []
        waiting_here: list[Any] = []

        def done(result: Any, error: BaseException | None) -> None:
            answers.append((result, error))
            wake_all(waiting_here)

        self.line.send(gen, done)
        while not answers:
            wait_in(scheduler, waiting_here, None)
        result, error = answers[0]
        if error is not None:
            raise error
        return result

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        """LISTEN is noted, not sent: one real ear hears for all."""
        self.line.will_listen = _listened(query)
        return super().execute(b"select 1" if self.line.will_listen else query, *arguments, **options)

    def close(self) -> None:
        self._closed = True
        self.line.close()

    def fileno(self) -> int:
        return _fileno(self)


class SimulatedBell:
    """What hearing.Bell is."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._rung = False
        self._line: Line | None = None

    def wait(self, conn: SimulatedConnection, seconds: float) -> None:
        line = self._line = conn.line
        if not self._rung and not line.heard and not line.broken:
            if line.terminated:
                line.break_("terminated")
            else:
                wait_in(self._process.scheduler, line.bells, seconds)
        if line.broken:
            raise line.error()

    def heard(self, conn: SimulatedConnection) -> Iterator[tuple[str, str]]:
        heard, conn.line.heard = conn.line.heard, []
        yield from heard

    def ring(self) -> None:
        self._rung = True
        if self._line is not None:
            wake_all(self._line.bells)

    def close(self) -> None:
        pass


def _settle(answer: Any, result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)


def _listened(query: Any) -> str | None:
    text = query.decode() if isinstance(query, bytes) else str(query)
    found = re.search(r"^\s*listen (\w+)", text, re.IGNORECASE | re.MULTILINE)
    return found[1] if found else None


def _fileno(connection: SimulatedAsyncConnection | SimulatedConnection) -> int:
    line = connection.line
    if line.terminated:
        # Whoever looks at the socket sees the server's goodbye.
        line.break_("terminated")
    if line.broken:
        return line.network.readable
    return line.backend.socket


def sever(connection: Any) -> None:
    """What patience.sever does."""
    connection.line.break_("severed")
