"""A light HTTP client: `python -m benchmarks.http_client PORT CONNECTIONS SECONDS` posts jobs and prints the figures.

Every connection sends the next request when it has the answer to the last, as wrk does. Written on asyncio's protocols,
because any HTTP library would take more of the machine than the server it measures.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from functools import partial

from benchmarks.stats import percentile

BODY = json.dumps({"kind": "noop", "payload": {"n": 1}}).encode()
REQUEST = (
    b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    + f"Content-Length: {len(BODY)}\r\n\r\n".encode()
    + BODY
)
WARM_UP_SECONDS = 0.5


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, until: float, times: list[tuple[float, float]], ended: asyncio.Future[None]) -> None:
        self._until = until
        self._times = times
        self._ended = ended
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        if not head.startswith((b"HTTP/1.1 201", b"HTTP/1.1 200")):
            self._ended.set_exception(RuntimeError(f"the API answered {self._received[:300]!r}"))
            self._transport.close()
            return
        self._received = b""
        now = time.monotonic()
        self._times.append((now, now - self._sent_at))
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _send(self) -> None:
        self._sent_at = time.monotonic()
        self._transport.write(REQUEST)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


async def measure(port: int, connections: int, seconds: float) -> dict[str, float]:
    """Return requests a second and milliseconds a request, after a warm-up."""
    loop = asyncio.get_running_loop()
    begin = time.monotonic() + WARM_UP_SECONDS
    times: list[tuple[float, float]] = []
    ends = [loop.create_future() for _ in range(connections)]
    for end in ends:
        await loop.create_connection(partial(Client, begin + seconds, times, end), "127.0.0.1", port)
    await asyncio.gather(*ends)
    took = [duration * 1e3 for moment, duration in times if begin <= moment <= begin + seconds]
    return {
        "rate": len(took) / seconds,
        "p50": statistics.median(took),
        "p99": percentile(took, 99),
        "max": max(took),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))))
