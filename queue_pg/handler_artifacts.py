"""The artifacts of the job that runs, by its worker's connection for handlers: chunk by chunk, in turn with others.

What does no more when it is done twice is sent again through a short outage. The next chunk of an upload is not: nobody
knows whether it has arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from queue_pg import artifact_store
from queue_pg.content import StoredArtifact
from queue_pg.handler_patience import Statement, run_patiently, run_patiently_blocking
from queue_pg.models import Artifact

if TYPE_CHECKING:
    from queue_pg.tasks import JobContext


class Statements:
    """The statements about the artifacts of one attempt."""

    def __init__(self, job_id: UUID, lease_token: int) -> None:
        self._job_id = job_id
        self._lease_token = lease_token

    def find(self, name: str) -> Statement[StoredArtifact]:
        return lambda conn: artifact_store.get_artifact(conn, self._job_id, name)

    def chunk(self, sha256: bytes) -> Statement[bytes | None]:
        return lambda conn: artifact_store.get_chunk(conn, sha256)

    def put(self, name: str, data: bytes, content_type: str | None) -> Statement[Artifact]:
        return lambda conn: artifact_store.put_artifact(
            conn, self._job_id, name, data, content_type=content_type, lease_token=self._lease_token
        )

    def begin(self, name: str, content_type: str | None, size: int | None) -> Statement[UUID]:
        return lambda conn: artifact_store.begin_artifact(
            conn, self._job_id, name, content_type=content_type, lease_token=self._lease_token, size=size
        )

    def append(self, upload_id: UUID, number: int, data: bytes) -> Statement[None]:
        return lambda conn: artifact_store.append_artifact(conn, upload_id, number, data)

    def complete(self, upload_id: UUID, sha256: bytes) -> Statement[Artifact]:
        return lambda conn: artifact_store.complete_artifact(conn, upload_id, sha256)

    def discard(self, upload_id: UUID) -> Statement[None]:
        return lambda conn: artifact_store.discard_artifact(conn, upload_id)


class AsyncLinkCalls:
    """For a handler on the event loop."""

    def __init__(self, job: JobContext) -> None:
        self._job = job
        self._statements = Statements(job.job_id, job.lease_token)

    async def find(self, name: str) -> StoredArtifact:
        return await run_patiently(self._job, self._statements.find(name))

    async def chunk(self, sha256: bytes) -> bytes | None:
        return await run_patiently(self._job, self._statements.chunk(sha256))

    async def put(self, name: str, data: bytes, content_type: str | None) -> Artifact:
        return await run_patiently(self._job, self._statements.put(name, data, content_type))

    async def begin(self, name: str, content_type: str | None, size: int | None) -> UUID:
        return await run_patiently(self._job, self._statements.begin(name, content_type, size))

    async def append(self, upload_id: UUID, number: int, data: bytes) -> None:
        await self._job.linked().run(self._statements.append(upload_id, number, data))

    async def complete(self, upload_id: UUID, sha256: bytes) -> Artifact:
        return await self._job.linked().run(self._statements.complete(upload_id, sha256))

    async def discard(self, upload_id: UUID) -> None:
        await self._job.linked().run(self._statements.discard(upload_id))


class SyncLinkCalls:
    """For a handler in a thread."""

    def __init__(self, job: JobContext) -> None:
        self._job = job
        self._statements = Statements(job.job_id, job.lease_token)

    def find(self, name: str) -> StoredArtifact:
        return run_patiently_blocking(self._job, self._statements.find(name))

    def chunk(self, sha256: bytes) -> bytes | None:
        return run_patiently_blocking(self._job, self._statements.chunk(sha256))

    def put(self, name: str, data: bytes, content_type: str | None) -> Artifact:
        return run_patiently_blocking(self._job, self._statements.put(name, data, content_type))

    def begin(self, name: str, content_type: str | None, size: int | None) -> UUID:
        return run_patiently_blocking(self._job, self._statements.begin(name, content_type, size))

    def append(self, upload_id: UUID, number: int, data: bytes) -> None:
        self._job.linked().run_blocking(self._statements.append(upload_id, number, data))

    def complete(self, upload_id: UUID, sha256: bytes) -> Artifact:
        return self._job.linked().run_blocking(self._statements.complete(upload_id, sha256))

    def discard(self, upload_id: UUID) -> None:
        self._job.linked().run_blocking(self._statements.discard(upload_id))
