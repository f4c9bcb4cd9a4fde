"""A scripted OpenAI-compatible model server: it answers, stalls, breaks off and lies as told, and keeps a record."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Behaviour = Literal[
    "answer", "whole", "truncate", "cut", "hang", "garbage", "error_in_stream", "error_in_200", "status"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do with one request.

    `answer` streams `words`; `whole` answers in one JSON document; `truncate` ends the stream properly but without a
    finish reason; `cut` breaks the connection off after the first words; `hang` does so much and then nothing;
    `garbage` sends what is no JSON; `error_in_stream` and `error_in_200` put `error` into a 200; `status` answers
    `status` with `headers` and `error`.
    """

    behaviour: Behaviour = "answer"
    words: Sequence[str] = ("Hello", " there", ".")
    finish_reason: str = "stop"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    error: Any = None
    deltas: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as received."""

    path: str
    headers: dict[str, str]
    body: Any


class ModelServer:
    """Serves steps in the order scripted, plain answers after that."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.received: asyncio.Queue[Request] = asyncio.Queue()
        self.disconnects: asyncio.Queue[Request] = asyncio.Queue()
        self.base_url = ""
        self._steps: deque[Step] = deque()

    def script(self, *steps: Step) -> None:
        self._steps.extend(steps)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                self.received.put_nowait(request)
                step = self._steps.popleft() if self._steps else Step()
                if not await self._serve(step, request, reader, writer):
                    break
        except ConnectionError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(
        self, step: Step, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Do a step; return whether the connection may serve another request."""
        if step.behaviour == "status":
            await _send_json(writer, step.status, {"error": step.error} if step.error is not None else {}, step.headers)
            return True
        if step.behaviour == "error_in_200":
            await _send_json(writer, 200, {"error": step.error}, step.headers)
            return True
        if step.behaviour == "whole":
            await _send_json(writer, 200, _completion(step, request), step.headers)
            return True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if step.behaviour == "garbage":
            await _send_chunk(writer, b"data: {not json\n\n")
        else:
            for delta in step.deltas or [{"role": "assistant", "content": word} for word in step.words]:
                await _send_event(writer, _chunk(request, delta, None))
        if step.behaviour == "hang":
            await writer.drain()
            # Nothing more comes from the client but the end of the connection.
            with contextlib.suppress(ConnectionError):
                await reader.read(1)
            self.disconnects.put_nowait(request)
            return False
        if step.behaviour == "cut":
            await writer.drain()
            writer.transport.abort()
            return False
        if step.behaviour == "error_in_stream":
            await _send_event(writer, {"error": step.error})
        elif step.behaviour == "answer":
            await _send_event(writer, _chunk(request, {}, step.finish_reason))
            usage = {"prompt_tokens": 5, "completion_tokens": len(step.words), "total_tokens": 5 + len(step.words)}
            await _send_event(writer, {**_chunk(request, {}, None), "choices": [], "usage": usage})
        await _send_chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def model_server(server: ModelServer | None = None) -> AsyncIterator[ModelServer]:
    """Run a server on a free port while the block lasts, a plain one unless given."""
    server = server or ModelServer()
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(server.handle(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _chunk(request: Request, delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": request.body["model"],
        "x_server": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}],
    }


def _completion(step: Step, request: Request) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(step.words)}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": request.body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": step.finish_reason or None}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(path=first.split(" ")[1], headers=headers, body=json.loads(body) if body else None)


async def _send_json(writer: asyncio.StreamWriter, status: int, body: Any, headers: Mapping[str, str]) -> None:
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Scripted", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + data)
    await writer.drain()


async def _send_event(writer: asyncio.StreamWriter, event: Any) -> None:
    await _send_chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


async def _send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()
