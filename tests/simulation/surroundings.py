"""The surroundings of one simulated process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from queue_pg.surroundings import Surroundings
from tests.simulation.backends import DEAD
from tests.simulation.connections import SimulatedAsyncConnection, SimulatedBell, SimulatedConnection, sever
from tests.simulation.network import Line, Network
from tests.simulation.scheduler import (
    Process,
    SimulatedEvent,
    SimulatedInbox,
    SimulatedThread,
    SimulatedTimer,
    wait_in,
    wake_all,
)


class Simulated(Surroundings):
    """Time, chance, threads and connections of a scheduler and its network."""

    def __init__(self, process: Process, network: Network) -> None:
        self.process = process
        self.scheduler = process.scheduler
        self.network = network

    def monotonic(self) -> float:
        return self.scheduler.now

    def uniform(self, low: float, high: float) -> float:
        return self.scheduler.random.uniform(low, high)

    def sleep(self, seconds: float) -> None:
        """Block the thread, or the whole event loop, as time.sleep does."""
        wait_in(self.scheduler, [], seconds)

    # --- threads ------------------------------------------------------------------------------------------------------

    def thread(self, target: Callable[[], object], *, name: str) -> SimulatedThread:
        return self.process.thread(target, name)

    def timer(self, seconds: float, function: Callable[[], object]) -> SimulatedTimer:
        return SimulatedTimer(self.process, seconds, function)

    def event(self) -> SimulatedEvent:
        return SimulatedEvent(self.scheduler)

    def inbox(self) -> SimulatedInbox[Any]:
        return SimulatedInbox(self.scheduler)

    def bell(self) -> Any:
        return SimulatedBell(self.process)

    # --- connections --------------------------------------------------------------------------------------------------

    def connect(self, dsn: str, *, application: str) -> Any:
        answers: list[Line | psycopg.Error] = []
        waiting: list[Any] = []

        def answer(line: Line | psycopg.Error) -> None:
            answers.append(line)
            wake_all(waiting)

        self.network.begin_connect(self.process, answer)
        while not answers:
            wait_in(self.scheduler, waiting, None)
        [line] = answers
        if not isinstance(line, Line):
            raise line
        return _dress(SimulatedConnection(line.backend), line)

    async def connect_async(self, dsn: str, *, application: str) -> Any:
        answer = self.process.loop.create_future()

        def answered(line: Line | psycopg.Error) -> None:
            if answer.done() or self.process.crashed:
                if isinstance(line, Line):
                    line.close()
            elif isinstance(line, Line):
                answer.set_result(line)
            else:
                answer.set_exception(line)

        self.network.begin_connect(self.process, answered)
        try:
            line: Line = await answer
        except BaseException:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().close()
            raise
        return _dress(SimulatedAsyncConnection(line.backend), line)

    def sever(self, connection: Any) -> None:
        sever(connection)


def _dress(connection: Any, line: Line) -> Any:
    connection.line = line
    connection.prepare_threshold = None
    connection._autocommit = True
    line.connection = connection
    if line.broken:
        # While it was handed over.
        connection.pgconn = DEAD
    return connection
