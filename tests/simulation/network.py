"""Simulated lines to a real server.

What a connection is asked to send arrives a while later and is then executed at once, by a real connection that is
kept for the next; the answer comes a while after that. In between others go on, and anything may get lost.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, Connection, waiting
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

from queue_pg.connections import KEEPALIVES
from tests.simulation.backends import DEAD, EPOCH_SECONDS, Backends
from tests.simulation.scheduler import Process, Scheduler, wake_all

# What the kernel gives up after, on a line that passes nothing.
GIVE_UP_SECONDS: Final = int(KEEPALIVES["tcp_user_timeout"]) / 1_000
CONNECT_TIMEOUT_SECONDS: Final = 10.0
# Outside a transaction psycopg sends nothing for these.
NOTHING_TO_SEND: Final = ("_commit_gen", "_rollback_gen")
# Most statements by far, and they notify nobody. Should one do so, it is heard of after the next.
QUIET: Final = ("worker_heartbeat", "heartbeat", "held", "leases_of", "claim_for_worker", "dead_rows", "backend_pid")
_NAME: Final = re.compile(rb"/\* queue_pg:(\w+) \*/")


@dataclass(slots=True)
class Weather:
    """What lines do by themselves: one in so many statements, connects or notifications meets it, 0: none does."""

    slow: int = 20
    # The statement never arrives, and the connection is lost.
    swallowed: int = 0
    # It is done, its answer is lost, and the connection with it.
    unanswered: int = 0
    # The server ends the connection; who is idle hears of it when he sends something.
    terminated: int = 0
    # Nothing passes any more, and nobody is told.
    silent: int = 0
    refused: int = 0
    unheard: int = 0

    def clear(self) -> None:
        """Peace."""
        self.swallowed = self.unanswered = self.terminated = self.silent = self.refused = self.unheard = 0


class Network:
    """All lines of a run, and their weather."""

    def __init__(self, scheduler: Scheduler, backends: Backends, weather: Weather) -> None:
        self.scheduler = scheduler
        self.weather = weather
        self.hits: Counter[str] = Counter()
        self.statements = 0
        self.down = False
        # The processes whose lines pass nothing.
        self.cut_off: set[str] = set()
        self._backends = backends
        self._lines: list[Line] = []
        # A file that poll() finds readable.
        self.readable, other = os.pipe()
        os.close(other)

    def close(self) -> None:
        """Give all back."""
        for line in list(self._lines):
            line.break_("the end")
            line.release(at_once=True)
        os.close(self.readable)

    def hits_one_in(self, count: int, what: str) -> bool:
        if count and self.scheduler.random.randrange(count) == 0:
            self.hits[what] += 1
            return True
        return False

    def latency(self) -> float:
        chance = self.scheduler.random
        if self.weather.slow and chance.randrange(self.weather.slow) == 0:
            return chance.uniform(0.01, 1.0)
        return chance.uniform(0.0001, 0.003)

    def lines_of(self, process: Process) -> list[Line]:
        return [line for line in self._lines if line.process is process]

    def terminate_all(self) -> None:
        """The server ends every connection."""
        for line in list(self._lines):
            line.terminate()

    # --- connecting ---------------------------------------------------------------------------------------------------

    def begin_connect(self, process: Process, answer: Callable[[Line | psycopg.Error], object]) -> None:
        """Have `answer` called with a line, or why there is none."""

        def arrive() -> None:
            if self.down or self.hits_one_in(self.weather.refused, "refused"):
                answer(psycopg.OperationalError("connection refused, says the simulation"))
            elif silent or process.name in self.cut_off:
                self.scheduler.call_in(CONNECT_TIMEOUT_SECONDS, lambda: answer(_timeout()))
            else:
                line = Line(self, process, self._backends.take())
                self._lines.append(line)
                self.scheduler.tell(process.name, "connects")
                answer(line)

        silent = self.hits_one_in(self.weather.silent, "silent connect")
        self.scheduler.call_in(2 * self.latency(), arrive)

    def mend(self, name: str) -> None:
        """Let a process's lines pass again, with what was on its way."""
        self.cut_off.discard(name)
        for line in list(self._lines):
            if line.process.name == name and line.sent is not None:
                line.sent.go_on()

    # --- notifications ------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Take what the statement just done has notified of to those who listen now."""
        ear = self._backends.ear
        ear.exec_(b"")
        while heard := ear.notifies():
            channel, payload = heard.relname.decode(), heard.extra.decode()
            self.scheduler.tell("server notifies", channel, payload)
            for line in self._lines:
                if channel in line.channels and not self.hits_one_in(self.weather.unheard, "unheard"):
                    self.scheduler.call_in(self.latency(), partial(line.hear, (channel, payload)))

    def forget(self, line: Line) -> None:
        if line in self._lines:
            self._lines.remove(line)

    def release(self, backend: PGconn) -> None:
        self._backends.give_back(backend)


def _timeout() -> psycopg.Error:
    return psycopg.errors.ConnectionTimeout("connection timeout expired, says the simulation")


class Sent:
    """A statement on its way to the server, or its answer on the way back."""

    def __init__(self, line: Line, generator: Any, done: Callable[[Any, BaseException | None], object]) -> None:
        self.line = line
        self.generator = generator
        self.name = _name(generator)
        self._done: Callable[[Any, BaseException | None], object] | None = done
        self._result: Any = None
        self._error: BaseException | None = None
        # Whether it has not been done, nor will be for sure.
        self.pending = True
        self._held: Callable[[], object] | None = None

    def start(self) -> None:
        network = self.line.network
        weather, scheduler = network.weather, network.scheduler
        fate = "fine"
        for word in ("swallowed", "unanswered", "terminated", "silent"):
            if network.hits_one_in(getattr(weather, word), word):
                fate = word
                break
        latency = network.latency()
        match fate:
            case "swallowed" | "terminated":
                scheduler.call_in(latency, lambda: self.lose(fate))
            case "unanswered":
                scheduler.call_in(latency, self._arrive_unanswered)
            case "silent":
                patience: float | None = getattr(self.line.connection, "answer_seconds", None)
                scheduler.call_in(min(GIVE_UP_SECONDS, patience or GIVE_UP_SECONDS), self._drop)
                match scheduler.random.randrange(3):
                    case 0:
                        scheduler.call_in(latency, self.arrive)
                    case 1:
                        # Late: after the client has given it up, perhaps.
                        scheduler.call_in(scheduler.random.uniform(0.5, 20.0), lambda: self._deliver(network.latency()))
                    case _:
                        pass
            case _:
                scheduler.call_in(latency, lambda: self._deliver(network.latency()))

    def _deliver(self, back: float) -> None:
        if self._is_cut(lambda: self._deliver(back)):
            return
        self.arrive()
        self.line.network.scheduler.call_in(back, self._answer)

    def _arrive_unanswered(self) -> None:
        self.arrive()
        self.line.network.scheduler.call_in(self.line.network.latency(), self._drop)

    def _is_cut(self, again: Callable[[], object]) -> bool:
        """Keep it back while the line passes nothing."""
        if self.line.process.name not in self.line.network.cut_off:
            return False
        if self._held is None:
            self.line.network.scheduler.call_in(GIVE_UP_SECONDS, self._drop)
        self._held = again
        return True

    def go_on(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self.line.network.scheduler.call_in(self.line.network.latency(), held)

    def arrive(self) -> None:
        """The server does it, whoever waits for that."""
        if not self.pending:
            return
        self.pending = False
        try:
            self._result = self.line.execute(self.generator, self.name)
        except psycopg.Error as error:
            self._error = error
        self.line.has_arrived(self)

    def never(self) -> None:
        """It got lost on the way there."""
        if self.pending:
            self.pending = False
            self.generator.close()
            self.line.has_arrived(self)

    def lose(self, why: str) -> None:
        self.never()
        self.line.terminated = self.line.terminated or why == "terminated"
        self.line.break_(why)

    def _drop(self) -> None:
        if self._done is not None:
            self.line.break_("the line was lost")

    def _answer(self) -> None:
        if self._done is None or self._is_cut(self._answer):
            return
        self.finish(self._result, self._error)

    def fail(self, error: BaseException) -> None:
        """Tell the client that it will not hear of it."""
        done = self._done
        self.abandon()
        if done is not None:
            done(None, error)

    def come_back(self) -> None:
        """Have the client know at once."""
        self.finish(self._result, self._error)

    def finish(self, result: Any, error: BaseException | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            if self.line.sent is self:
                self.line.sent = None
            done(result, error)

    def abandon(self, *, late: bool = True) -> None:
        """Nobody waits for it any more; it may be done all the same, and late."""
        self._done = None
        if self.pending:
            match self.line.network.scheduler.random.randrange(3 if late else 2):
                case 0:
                    self.never()
                case 1:
                    self.arrive()
                case _:
                    seconds = self.line.network.scheduler.random.uniform(0.0, 5.0)
                    self.line.network.scheduler.call_in(seconds, self.arrive)


def _name(generator: Any) -> str:
    frame = getattr(generator, "gi_frame", None)
    query = None if frame is None else frame.f_locals.get("query", frame.f_locals.get("command"))
    if isinstance(query, bytes) and (found := _NAME.search(query)):
        return found[1].decode()
    return getattr(generator, "__name__", "?")


class Line:
    """One connection: its simulated side, and the real one that does what arrives."""

    def __init__(self, network: Network, process: Process, backend: PGconn) -> None:
        self.network = network
        self.process = process
        self.backend = backend
        self.broken = self.terminated = False
        self.sent: Sent | None = None
        self.channels: set[str] = set()
        # What it listens to once the statement under way is done.
        self.will_listen: str | None = None
        self.heard: list[tuple[str, str]] = []
        self.bells: list[Any] = []
        self.connection: AsyncConnection[Any] | Connection[Any] | None = None
        self._underway = 0
        self._released = False

    # --- what the server does -----------------------------------------------------------------------------------------

    def execute(self, generator: Any, name: str) -> Any:
        """Do it now, at the time that it is in the simulation."""
        network = self.network
        scheduler = network.scheduler
        network.statements += 1
        scheduler.tell(self.process.name, name)
        moment = EPOCH_SECONDS * 1_000_000 + round(scheduler.now * 1e6)
        seed = scheduler.random.uniform(-1, 1)
        self.backend.exec_(f"set sim.now = {moment}; select setseed({seed})".encode())
        try:
            result = waiting.wait(generator, self.backend.socket, interval=0.1)
            if self.will_listen and not self.broken:
                self.channels.add(self.will_listen)
            return result
        except psycopg.errors.LockNotAvailable as error:
            raise AssertionError(f"{self.process.name} {name}: a lock is held across statements") from error
        finally:
            if name not in QUIET:
                network.collect()

    def send(self, generator: Any, done: Callable[[Any, BaseException | None], object]) -> Sent | None:
        """Send a statement; `done` is called with its result or error. None: it is done already."""
        if self.broken or self.terminated:
            self.break_("terminated")
            generator.close()
            done(None, self.error())
            return None
        self.sent = Sent(self, generator, done)
        self._underway += 1
        idle = self.backend.transaction_status == TransactionStatus.IDLE
        if idle and self.sent.name in NOTHING_TO_SEND:
            self.sent.arrive()
            self.sent.come_back()
            return None
        if idle:
            self.sent.start()
            return self.sent
        # Others must not meet its locks, so no time passes.
        sent = self.sent
        weather = self.network.weather
        if self.network.hits_one_in(weather.swallowed, "swallowed in a transaction"):
            sent.lose("swallowed")
        else:
            sent.arrive()
            if self.network.hits_one_in(weather.unanswered, "unanswered in a transaction"):
                self.break_("unanswered")
            else:
                sent.come_back()
        return None

    def has_arrived(self, sent: Sent) -> None:
        self._underway -= 1
        if self.broken:
            self.release()

    def hear(self, heard: tuple[str, str]) -> None:
        if not self.broken and not self.terminated and self.process.name not in self.network.cut_off:
            self.heard.append(heard)
            wake_all(self.bells)

    # --- how it ends --------------------------------------------------------------------------------------------------

    def error(self) -> psycopg.OperationalError:
        if self.terminated:
            return psycopg.errors.AdminShutdown("terminating connection, says the simulation")
        return psycopg.OperationalError("the connection is lost, says the simulation")

    def terminate(self) -> None:
        """The server ends it. A client that waits hears of that, one that is idle when it does something."""
        if not self.broken:
            self.terminated = True
            if self.sent is not None or self.bells:
                self.break_("terminated")

    def break_(self, why: str) -> None:
        """The client's side learns that it is over."""
        if self.broken:
            return
        self.broken = True
        self.network.scheduler.tell(self.process.name, "loses a connection:", why)
        if self.connection is not None:
            self.connection.pgconn = DEAD
        sent = self.sent
        if sent is not None:
            self.sent = None
            sent.fail(self.error())
        wake_all(self.bells)
        self.release()

    def close(self) -> None:
        """The client closes it."""
        if not self.broken:
            self.broken = True
            if self.sent is not None:
                self.sent.abandon()
                self.sent = None
            if self.connection is not None:
                self.connection.pgconn = DEAD
            self.release()

    def release(self, *, at_once: bool = False) -> None:
        """Let the real connection go, unless something is still to arrive on it."""
        self.channels.clear()
        if not self._released and (at_once or self._underway == 0):
            self._released = True
            self.network.forget(self)
            self.network.release(self.backend)
