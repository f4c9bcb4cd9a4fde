"""Lines to the server that lose what passes through them."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Line:
    """A TCP line to the server that loses what it is told to: after a COMMIT, the answer."""

    def __init__(self, port: int, randomness: random.Random, *, one_in: int) -> None:
        self.cuts = 0
        self.cutting = True
        self._target = port
        self._random = randomness
        self._one_in = one_in
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._serve)

    @property
    def port(self) -> int:
        """Where it takes connections."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Take no more connections and break those there are."""
        for end in (self._listener, *self._ends):
            _shut(end)
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self._ends += [client, server]
                self._run(self._pump, client, server, None)
                self._run(self._pump, server, client, self._loses)

    def _pump(self, source: socket.socket, sink: socket.socket, loses: Callable[[bytes], bool] | None) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if loses is not None and loses(data):
                    break
                sink.sendall(data)
        # Each thread closes what it reads from: the other may still be about to write there.
        _shut(sink)
        _shut(source)
        source.close()

    def _loses(self, data: bytes) -> bool:
        # CommandComplete, then ReadyForQuery "idle": the transaction is committed, and the client will never know.
        if (
            not self.cutting
            or not data.endswith(b"Z\0\0\0\x05I")
            or not (b"INSERT 0 1\0" in data or b"SELECT " in data)
        ):
            return False
        with self._lock:
            if self._random.randrange(self._one_in):
                return False
            self.cuts += 1
            return True


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
