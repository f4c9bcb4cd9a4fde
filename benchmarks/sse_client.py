"""Many readers of server-sent events in one light process: `python -m benchmarks.sse_client PORT FILE`.

FILE holds the ids of the jobs, one a line; each is followed by a connection of its own. The client says `ready` when
all of them have had their first event, and when the last stream has ended it prints the figures: how old the events of
type `tick` were, which hold the time at which they were said on the machine's monotonic clock. Written on asyncio's
protocols: a library for HTTP would take more of the machine than what it measures.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.stats import percentile

TICK = re.compile(rb'"t": ?(\d+)')
# Ticks of the first second find caches cold and statements unplanned.
WARM_UP_NS = 1_000_000_000


class Reader(asyncio.Protocol):
    """One stream, and the ticks of all: when each was said and when it came."""

    def __init__(self, job_id: str, ticks: list[tuple[int, int]]) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._job_id = job_id
        self._ticks = ticks
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(f"GET /jobs/{self._job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._received += data
        # Events are sent whole, so the lengths of HTTP's chunks stand between them.
        whole, found, rest = self._received.rpartition(b"\n\n")
        if not found:
            return
        self._received = rest
        if not self.begun.done():
            if b"200 OK" not in whole[:32] or b"event: submitted" not in whole:
                self._fail(f"the API answered {whole[:300]!r}")
                return
            self.begun.set_result(None)
        self._ticks += [(int(said), now) for said in TICK.findall(whole)]
        if b"event: end" in whole:
            self.ended.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("a stream was cut off")

    def _fail(self, why: str) -> None:
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_exception(RuntimeError(why))
        self._transport.close()


async def follow(port: int, job_ids: list[str]) -> dict[str, float]:
    """Follow all jobs to their ends; return how many ticks came, and how late in milliseconds."""
    loop = asyncio.get_running_loop()
    ticks: list[tuple[int, int]] = []
    readers: list[Reader] = []
    for job_id in job_ids:
        _, reader = await loop.create_connection(partial(Reader, job_id, ticks), "127.0.0.1", port)
        readers.append(reader)
    await asyncio.gather(*(reader.begun for reader in readers))
    print("ready", flush=True)
    ends = [loop.create_task(_end_of(reader)) for reader in readers]
    ended = await asyncio.gather(*ends)
    first = min((said for said, _ in ticks), default=0)
    waits = [(came - said) / 1e6 for said, came in ticks if said >= first + WARM_UP_NS]
    figures: dict[str, float] = {"events": len(ticks), "ends_ms": (max(ended) - min(ended)) * 1e3}
    if waits:
        figures |= {"p50": statistics.median(waits), "p99": percentile(waits, 99), "max": max(waits)}
    return figures


async def _end_of(reader: Reader) -> float:
    await reader.ended
    return time.monotonic()


def main() -> None:
    """Run the client in a process of its own."""
    port, file = sys.argv[1:]
    print(json.dumps(asyncio.run(follow(int(port), Path(file).read_text().split()))), flush=True)


if __name__ == "__main__":
    main()
