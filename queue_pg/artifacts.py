"""Artifacts of jobs: stored and read chunk by chunk, in memory that does not grow with them.

Each chunk is a statement of its own, so that neither a slow client nor a slow disk holds a connection or a transaction.
`artifacts_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from hashlib import sha256 as hashed
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from psycopg import AsyncConnection

from queue_pg import arguments, artifact_store
from queue_pg.content import (
    CHUNK_BYTES,
    Content,
    StoredArtifact,
    chunks_of_async,
    known_size,
    saving_async,
)
from queue_pg.errors import ArtifactCorrupt, ArtifactNotFound, InvalidArtifact, QueuePgError
from queue_pg.models import Artifact


class AsyncCalls(Protocol):
    """The statements about the artifacts of one job, whatever connection they run on."""

    async def find(self, name: str) -> StoredArtifact: ...

    async def chunk(self, sha256: bytes) -> bytes | None: ...

    async def put(self, name: str, data: bytes, content_type: str | None) -> Artifact: ...

    async def begin(self, name: str, content_type: str | None, size: int | None) -> UUID: ...

    async def append(self, upload_id: UUID, number: int, data: bytes) -> None: ...

    async def complete(self, upload_id: UUID, sha256: bytes) -> Artifact: ...

    async def discard(self, upload_id: UUID) -> None: ...


async def upload_async(
    calls: AsyncCalls,
    name: str,
    content: Content,
    *,
    content_type: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
) -> Artifact:
    """Store a content; what fits into one chunk goes in one statement. With `sha256` or `size` given it has to fit."""
    arguments.artifact_name(name)
    kind = arguments.content_type(name, content_type)
    declared = arguments.sha256(sha256)
    digest, number, total = hashed(), 0, 0
    upload_id: UUID | None = None
    async with aclosing(chunks_of_async(content)) as chunks:
        try:
            async for chunk in chunks:
                digest.update(chunk)
                total += len(chunk)
                if len(chunk) < CHUNK_BYTES:
                    arguments.check_content(digest.hexdigest(), total, sha256=declared, size=size)
                    if upload_id is None:
                        return await calls.put(name, chunk, kind)
                if upload_id is None:
                    upload_id = await calls.begin(name, kind, known_size(content) if size is None else size)
                if chunk:
                    await calls.append(upload_id, number, chunk)
                    number += 1
            if upload_id is None:
                raise InvalidArtifact("content", "ended without an end")
            return await calls.complete(upload_id, digest.digest())
        except BaseException:
            if upload_id is not None:
                # Maintenance removes it in any case, after an hour.
                with suppress(QueuePgError):
                    await calls.discard(upload_id)
            raise


class AsyncArtifactReader:
    """An artifact to be read, as often as needed: `async for piece in reader`, `read()`, `save(path)`, `range(...)`.

    Every chunk is compared with its hash before it is handed out, and the whole with that of the artifact. Holds no
    connection between two chunks. One that is replaced or forgotten meanwhile can be read for another hour.
    """

    def __init__(self, calls: AsyncCalls, stored: StoredArtifact) -> None:
        self._calls = calls
        self._stored = stored
        self.artifact = stored.artifact

    def __aiter__(self) -> AsyncGenerator[bytes]:
        return self.range()

    async def range(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` up to `end`, as a slice does. Raises ArtifactCorrupt, ArtifactNotFound."""
        start, end, _ = slice(start, end).indices(self.artifact.size)
        # Read to the end, the whole has to have its hash as well.
        whole = hashed() if (start, end) == (0, self.artifact.size) else None
        position = start
        while position < end:
            number, offset = divmod(position, CHUNK_BYTES)
            data = await self._chunk(number)
            if whole is not None:
                whole.update(data)
            piece = data[offset : offset + end - position]
            position += len(piece)
            if whole is not None and position == end:
                self._check(whole.hexdigest())
            yield piece
        if whole is not None and end == 0:
            self._check(whole.hexdigest())

    async def read(self) -> bytes:
        """Return the whole content."""
        pieces: list[bytes] = []
        async with aclosing(self.range()) as found:
            async for piece in found:
                pieces.append(piece)
        return b"".join(pieces)

    async def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the content to a file, which appears when it is whole, and return its path."""
        async with saving_async(path) as file, aclosing(self.range()) as found:
            async for piece in found:
                await file.write(piece)
        return Path(path)

    async def _chunk(self, number: int) -> bytes:
        expected = self._stored.chunk(number)
        data = await self._calls.chunk(expected)
        if data is None:
            # Forgotten while it was read, unless the artifact still says otherwise.
            if (await self._calls.find(self.artifact.name)).blob_id == self._stored.blob_id:
                raise ArtifactCorrupt(self.artifact.sha256, f"chunk {number} is missing")
            raise ArtifactNotFound(self._stored.job_id, self.artifact.name)
        if hashed(data).digest() != expected:
            raise ArtifactCorrupt(self.artifact.sha256, f"chunk {number} does not have its hash any more")
        if len(data) != (size := min(CHUNK_BYTES, self.artifact.size - number * CHUNK_BYTES)):
            raise ArtifactCorrupt(self.artifact.sha256, f"chunk {number} has {len(data)} bytes, not {size}")
        return data

    def _check(self, found: str) -> None:
        if found != self.artifact.sha256:
            raise ArtifactCorrupt(self.artifact.sha256, f"what is stored under it has the hash {found}")


class AsyncArtifacts(ABC):
    """What Queue inherits for artifacts."""

    org: str | None

    @abstractmethod
    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Lend a connection."""

    async def artifacts(self, job_id: UUID | str) -> list[Artifact]:
        """Return a job's artifacts by name. Raises JobNotFound."""
        known = arguments.job_id(job_id)
        async with self.connection() as conn:
            return await artifact_store.list_artifacts(conn, known, org=self.org)

    async def open_artifact(self, job_id: UUID | str, name: str) -> AsyncArtifactReader:
        """Return a reader of one artifact; it needs no closing. Raises JobNotFound, ArtifactNotFound."""
        arguments.artifact_name(name)
        calls = AsyncQueueCalls(self, arguments.job_id(job_id), None)
        return AsyncArtifactReader(calls, await calls.find(name))

    async def put_artifact(
        self,
        job_id: UUID | str,
        name: str,
        content: Content,
        *,
        content_type: str | None = None,
        lease_token: int | None = None,
        sha256: str | None = None,
        size: int | None = None,
    ) -> Artifact:
        """Store an artifact: a path, bytes, a binary file, or a stream of bytes. One of the same name is replaced.

        While the job runs only the holder of its lease may, by `lease_token`; before it runs, anybody: an input.
        With `sha256` (hex) or `size` given the content has to have them. Raises InvalidArtifact, ArtifactTooLarge,
        JobNotFound, LeaseLost, and InvalidTransition once the job has ended.
        """
        token = None if lease_token is None else arguments.lease_token(lease_token)
        calls = AsyncQueueCalls(self, arguments.job_id(job_id), token)
        return await upload_async(calls, name, content, content_type=content_type, sha256=sha256, size=size)


class AsyncQueueCalls:
    """Calls for one job, each on a connection that is lent for it."""

    def __init__(self, queue: AsyncArtifacts, job_id: UUID, lease_token: int | None) -> None:
        self._queue = queue
        self._job_id = job_id
        self._lease_token = lease_token

    async def find(self, name: str) -> StoredArtifact:
        async with self._queue.connection() as conn:
            return await artifact_store.get_artifact(conn, self._job_id, name, org=self._queue.org)

    async def chunk(self, sha256: bytes) -> bytes | None:
        async with self._queue.connection() as conn:
            return await artifact_store.get_chunk(conn, sha256)

    async def put(self, name: str, data: bytes, content_type: str | None) -> Artifact:
        async with self._queue.connection() as conn:
            return await artifact_store.put_artifact(
                conn,
                self._job_id,
                name,
                data,
                content_type=content_type,
                lease_token=self._lease_token,
                org=self._queue.org,
            )

    async def begin(self, name: str, content_type: str | None, size: int | None) -> UUID:
        async with self._queue.connection() as conn:
            return await artifact_store.begin_artifact(
                conn,
                self._job_id,
                name,
                content_type=content_type,
                lease_token=self._lease_token,
                size=size,
                org=self._queue.org,
            )

    async def append(self, upload_id: UUID, number: int, data: bytes) -> None:
        async with self._queue.connection() as conn:
            await artifact_store.append_artifact(conn, upload_id, number, data)

    async def complete(self, upload_id: UUID, sha256: bytes) -> Artifact:
        async with self._queue.connection() as conn:
            return await artifact_store.complete_artifact(conn, upload_id, sha256)

    async def discard(self, upload_id: UUID) -> None:
        async with self._queue.connection() as conn:
            await artifact_store.discard_artifact(conn, upload_id)
