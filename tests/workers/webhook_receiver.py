"""A receiver of webhooks on a socket of its own, which answers, stalls and misbehaves as told, and keeps what came."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What to do with one request. `endless`: the body never ends; `hang`: no answer; `cut`: the connection breaks."""

    status: int = 200
    body: bytes = b"ok"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    endless: bool = False
    hang: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    server_name: str | None

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Receiver:
    """Replies in the order scripted, 200 after that."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.received: asyncio.Queue[Received] = asyncio.Queue()
        self.disconnects: asyncio.Queue[None] = asyncio.Queue()
        self.port = 0
        self.server_names: list[str | None] = []
        self._replies: deque[Reply] = deque()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=1"

    def script(self, *replies: Reply) -> None:
        self._replies.extend(replies)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await self._read(reader)
                self.requests.append(request)
                self.received.put_nowait(request)
                if not await self._reply(self._replies.popleft() if self._replies else Reply(), reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> Received:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        raw = await reader.readexactly(int(headers["content-length"]))
        method, path, _ = first.split(" ")
        name = self.server_names[-1] if self.server_names else None
        return Received(method=method, path=path, headers=headers, raw=raw, server_name=name)

    async def _reply(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if reply.hang:
            await reader.read(1)
            self.disconnects.put_nowait(None)
            return False
        if reply.cut:
            writer.transport.abort()
            return False
        lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{name}: {value}" for name, value in reply.headers.items())]
        if not reply.endless:
            lines.append(f"content-length: {len(reply.body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body)
        await writer.drain()
        while reply.endless:
            writer.write(b"x" * 65_536)
            await writer.drain()
        return True


@contextlib.asynccontextmanager
async def receiver(context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Run a receiver on a free port while the block lasts."""
    made = Receiver()
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(made.handle(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    if context is not None:
        context.sni_callback = lambda _socket, name, _context: made.server_names.append(name)
    listener = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listener.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
