"""Lines to the server that do to what passes through them what networks do."""

from __future__ import annotations

import math
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

UP, DOWN = "up", "down"
BOTH: Final = (UP, DOWN)
PIECE: Final = 65_536
# How late a lost packet comes: the sender waits, at least 200 ms on Linux, and sends it again.
RETRANSMISSION_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Weather:
    """What a line does by itself; nothing unless said.

    lose_answer: the answer to one committed statement in so many is lost, and the connection with it
    reset: one piece in so many resets its connection instead
    lose_packet: one piece in so many comes as late as a packet that was lost and sent again
    seconds: the way takes so long, by half more or less
    bytes_per_second: what passes
    """

    lose_answer: int = 0
    reset: int = 0
    lose_packet: int = 0
    seconds: float = 0.0
    bytes_per_second: float = math.inf


@dataclass(eq=False, slots=True)
class _Pair:
    client: socket.socket
    server: socket.socket
    # Half-open for good: what either side says is lost, and neither is told.
    lost: bool = False
    was_reset: bool = False


class Line:
    """A TCP line to the server on a port of this machine; `target` may be changed for connections to come.

    `hold` stops what goes up (to the server), down or both, and keeps quiet about it until `flow`.
    """

    def __init__(
        self, target: int, randomness: random.Random, weather: Weather | None = None, *, host: str = "127.0.0.1"
    ) -> None:
        self.target = target
        self.calm = False
        self.cuts = self.resets = self.delays = self.bytes = 0
        # When each connection was asked for, whether or not there was a server.
        self.asked: list[float] = []
        self._weather = weather or Weather()
        self._random = randomness
        self._listener = socket.create_server((host, 0))
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._threads: list[threading.Thread] = []
        self._open = {UP: threading.Event(), DOWN: threading.Event()}
        self.flow()
        self._run(self._serve)

    @property
    def host(self) -> str:
        """Where it takes connections, and at which port."""
        return str(self._listener.getsockname()[0])

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def hold(self, *ways: str) -> None:
        """Keep back what goes these ways, of connections to come too."""
        for way in ways:
            self._open[way].clear()

    def flow(self) -> None:
        """Pass on what was kept back, and all that comes."""
        for event in self._open.values():
            event.set()

    def lose(self) -> int:
        """Make the connections there are half-open for good, and return how many; new ones work."""
        with self._lock:
            # Those that were lost before stay among the pairs: nobody tells them of an end.
            found = [pair for pair in self._pairs if not pair.lost]
            for pair in found:
                pair.lost = True
            return len(found)

    def cut(self) -> None:
        """Break the connections there are, and tell both sides."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            _shut(pair.client)
            _shut(pair.server)

    def close(self) -> None:
        """Take no more connections and break those there are."""
        _shut(self._listener)
        for pair in list(self._pairs):
            _shut(pair.client)
            _shut(pair.server)
        self.flow()
        for thread in list(self._threads):
            thread.join()
        for end in (self._listener, *(end for pair in self._pairs for end in (pair.client, pair.server))):
            end.close()

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.asked.append(time.monotonic())
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pair = _Pair(client, server)
                with self._lock:
                    self._pairs.append(pair)
                self._run(self._pump, pair, UP, client, server)
                self._run(self._pump, pair, DOWN, server, client)

    def _pump(self, pair: _Pair, way: str, source: socket.socket, sink: socket.socket) -> None:
        # Small pieces on a narrow line, so that it is slow all the time and not now and then.
        piece = int(min(PIECE, max(256.0, self._weather.bytes_per_second / 10)))
        with suppress(OSError):
            while data := source.recv(piece):
                if pair.lost:
                    continue
                self._open[way].wait()
                if pair.lost:
                    continue
                if not self.calm and self._suffers(pair, way, data):
                    break
                sink.sendall(data)
                self.bytes += len(data)
        if pair.lost:
            # The other side is not told that this one has gone: that is what half-open means. It ends by itself.
            with suppress(OSError):
                source.shutdown(socket.SHUT_RD)
            return
        # Each thread closes what it reads from: the other may still be about to write there.
        if not pair.was_reset:
            _shut(sink)
            _shut(source)
        source.close()
        with self._lock, suppress(ValueError):
            self._pairs.remove(pair)

    def _suffers(self, pair: _Pair, way: str, data: bytes) -> bool:
        """Have it be late; return whether it never comes, and the connection is over."""
        weather = self._weather
        if weather.seconds:
            time.sleep(weather.seconds * self._random.uniform(0.5, 1.5))
        if self._hits(weather.lose_packet):
            self.delays += 1
            time.sleep(RETRANSMISSION_SECONDS)
        if weather.bytes_per_second < math.inf:
            time.sleep(len(data) / weather.bytes_per_second)
        if self._hits(weather.reset):
            self.resets += 1
            pair.was_reset = True
            for end in (pair.client, pair.server):
                # Closing then sends a RST; shutting down for reading sends nothing and wakes the other thread.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RD)
            return True
        if way == DOWN and _commits(data) and self._hits(weather.lose_answer):
            self.cuts += 1
            return True
        return False

    def _hits(self, one_in: int) -> bool:
        with self._lock:
            return one_in > 0 and self._random.randrange(one_in) == 0


def _commits(data: bytes) -> bool:
    # CommandComplete, then ReadyForQuery "idle": the transaction is committed, and the client will never know.
    return data.endswith(b"Z\0\0\0\x05I") and (b"INSERT 0 1\0" in data or b"SELECT " in data)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
