"""/jobs/{id}/artifacts: files of a job, streamed in and out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from queue_pg.artifacts import AsyncArtifactReader
from queue_pg.models import Artifact
from queue_pg_api.answers import ArtifactAnswer, ArtifactsAnswer
from queue_pg_api.bodies import received
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import ApiError, json_response
from queue_pg_api.ranges import Part, asked_part, is_known
from queue_pg_api.rendering import artifact_json
from queue_pg_api.schemas import ArtifactUpload, NoBody, NoQuery

endpoints = Endpoints("Artifacts")

# A client that takes nothing for this long holds memory for nothing.
SEND_TIMEOUT_SECONDS = 30.0
SEND_BYTES = 64 * 1024
# The database has the limits; this one only ends what declares nonsense.
NO_LIMIT = 2**62

# What browsers show and never run. Everything else is sent to be saved.
SHOWN = frozenset(
    {
        *("text/plain", "text/csv", "application/json"),
        *("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"),
        *("audio/mpeg", "audio/ogg", "audio/wav", "audio/x-wav", "video/mp4", "video/webm"),
    }
)
BINARY = {"*/*": {"type": "string", "format": "binary"}}


@endpoints.get("/jobs/{id}/artifacts", answers={200: ArtifactsAnswer}, refuses=(404, 422, 503))
async def list_artifacts(call: Call[NoQuery, NoBody]) -> Response:
    """List a job's artifacts by name."""
    found = await call.queue.artifacts(call.job_id)
    return json_response({"artifacts": [artifact_json(each) for each in found]})


@endpoints.get(
    "/jobs/{id}/artifacts/{name:path}", answers={200: None, 206: None, 304: None}, refuses=(404, 416, 422, 500, 503)
)
async def get_artifact(call: Call[NoQuery, NoBody]) -> Response:
    """Read an artifact, or a range of it.

    Takes one `Range` of bytes, `If-Range` and `If-None-Match`; the ETag is the content's SHA-256. Every piece is
    compared with its hash before it is sent. Content that a browser could run is sent as an attachment.
    """
    reader = await call.queue.open_artifact(call.job_id, call.request.path_params["name"])
    artifact, headers = reader.artifact, call.request.headers
    etag = f'"{artifact.sha256}"'
    common = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "content-disposition": disposition(artifact),
    }
    if is_known(headers, etag):
        return Response(status_code=304, headers=common)
    part = asked_part(headers, artifact.size, etag)
    if not part.satisfiable:
        raise ApiError(
            416,
            "range_not_satisfiable",
            f"The artifact has {artifact.size:,} bytes; the range begins after them.",
            headers={**common, "content-range": part.content_range},
        )
    common |= {"content-type": artifact.content_type, "content-length": str(part.length)}
    if part.partial:
        common["content-range"] = part.content_range
    status = 206 if part.partial else 200
    if call.request.method == "HEAD":
        return Response(status_code=status, headers=common)
    content = Content(reader, part, call.service.transfers, status, common)
    await content.prepare()
    return content


@endpoints.put(
    "/jobs/{id}/artifacts/{name:path}",
    raw_body=BINARY,
    answers={201: ArtifactAnswer},
    refuses=(403, 404, 408, 409, 413, 415, 422, 503),
)
async def put_artifact(call: Call[ArtifactUpload, NoBody]) -> Response:
    """Store an artifact; one of the same name is replaced.

    While the job runs only its worker may, with `lease_token`; before it runs anybody: an input. The body is the
    content, of any type, and is stored as it arrives. When the client goes before its end nothing is stored.
    """
    request, name = call.request, str(call.request.path_params["name"])
    async with call.service.transfers:
        made = await call.queue.put_artifact(
            call.job_id,
            name,
            _body(request),
            content_type=request.headers.get("content-type"),
            lease_token=call.query.lease_token,
            sha256=call.query.sha256,
            size=_declared_size(request),
        )
    location = call.url(f"/jobs/{call.job_id}/artifacts/{quote(made.name)}")
    return json_response(artifact_json(made), 201, headers={"location": location, "etag": f'"{made.sha256}"'})


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for piece in received(request, limit=NO_LIMIT):
        yield piece


def _declared_size(request: Request) -> int | None:
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() and len(declared) <= 18 else None


def disposition(artifact: Artifact) -> str:
    """Return the Content-Disposition: ASCII whatever the name is, and never one that runs."""
    # With a comma it would be two types to a browser, which takes the last one: `image/png;a, text/html`.
    shown = artifact.content_type.partition(";")[0].strip().lower() in SHOWN and "," not in artifact.content_type
    kind = "inline" if shown else "attachment"
    file = artifact.name.rpartition("/")[2]
    plain = "".join(char if char.isascii() and char.isprintable() and char not in '"\\%;' else "_" for char in file)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(file, safe='')}"


class Content(Response):
    """Streams a part of an artifact. Its first piece is read before anything is sent, so that it can be refused."""

    def __init__(
        self,
        reader: AsyncArtifactReader,
        part: Part,
        transfers: asyncio.Semaphore,
        status: int,
        headers: dict[str, str],
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self._pieces: AsyncGenerator[bytes] = reader.range(part.start, part.end)
        self._transfers = transfers
        self._first: bytes | None = None

    async def prepare(self) -> None:
        """Read the first piece. Raises what is wrong with it."""
        async with self._transfers:
            self._first = await anext(self._pieces, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The connection ends without an end of the body when a later piece is corrupt or the client has stalled: it
        # has fewer bytes than were promised, and knows.
        gone = asyncio.create_task(_until_gone(receive))
        sending = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (gone, sending):
                task.cancel()
            await asyncio.wait((gone, sending))
            if sending.done() and not sending.cancelled():
                sending.exception()  # seen

    async def _send(self, send: Send) -> None:
        async with self._transfers, aclosing(self._pieces):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            piece, self._first = self._first, None
            while piece:
                view = memoryview(piece)
                for start in range(0, len(view), SEND_BYTES):
                    await _in_time(send, bytes(view[start : start + SEND_BYTES]))
                piece = await anext(self._pieces, b"")
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _in_time(send: Send, body: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    message: Any = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
