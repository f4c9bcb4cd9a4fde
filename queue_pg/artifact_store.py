"""The statements about artifacts, as store.py has those about jobs; rows in, models out.

Rows travel in binary: as text a chunk would be twice as long. `artifact_store_sync.py` is generated from this file by
tools/async_to_sync.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row

from queue_pg.content import CHUNK_BYTES, HASH_BYTES, StoredArtifact
from queue_pg.errors import ArtifactCorrupt, ArtifactNotFound, JobNotFound
from queue_pg.models import Artifact
from queue_pg.statements import statement


async def _all(conn: AsyncConnection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    async with AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(statement(name), params, binary=True)
        return await cursor.fetchall()


async def list_artifacts(conn: AsyncConnection[Any], job_id: UUID, *, org: str | None = None) -> list[Artifact]:
    """Return a job's artifacts by name. Raises JobNotFound."""
    found = await _all(conn, "list_artifacts", {"id": job_id, "org": org})
    if not found:
        raise JobNotFound(job_id)
    return [Artifact(**row) for row in found if row["name"] is not None]


async def get_artifact(
    conn: AsyncConnection[Any], job_id: UUID, name: str, *, org: str | None = None
) -> StoredArtifact:
    """Return one artifact. Raises JobNotFound, ArtifactNotFound; ArtifactCorrupt for a list of chunks not its own."""
    found = await _all(conn, "get_artifact", {"id": job_id, "name": name, "org": org})
    if not found:
        raise JobNotFound(job_id)
    row = found[0]
    blob_id: UUID | None = row.pop("blob_id")
    chunks, chunks_sha256 = row.pop("chunks"), row.pop("chunks_sha256")
    if blob_id is None:
        raise ArtifactNotFound(job_id, name)
    artifact = Artifact(**row)
    if sha256(chunks).digest() != chunks_sha256 or len(chunks) != -(-artifact.size // CHUNK_BYTES) * HASH_BYTES:
        raise ArtifactCorrupt(artifact.sha256, "the list of its chunks is not the one it was stored with")
    return StoredArtifact(job_id, artifact, blob_id, bytes(chunks))


async def get_chunk(conn: AsyncConnection[Any], chunk: bytes) -> bytes | None:
    """Return the chunk that was stored under this hash; None: it was removed meanwhile."""
    found = await _all(conn, "get_chunk", {"sha256": chunk})
    return bytes(found[0]["data"]) if found else None


async def put_artifact(
    conn: AsyncConnection[Any],
    job_id: UUID,
    name: str,
    data: bytes,
    *,
    content_type: str | None,
    lease_token: int | None,
    org: str | None = None,
) -> Artifact:
    """Store a whole artifact. Raises JobNotFound; a lost lease raises QP003."""
    params = {
        "id": job_id,
        "org": org,
        "name": name,
        "data": data,
        "content_type": content_type,
        "lease_token": lease_token,
    }
    found = await _all(conn, "put_artifact", params)
    if not found:
        raise JobNotFound(job_id)
    return Artifact(**found[0])


async def begin_artifact(
    conn: AsyncConnection[Any],
    job_id: UUID,
    name: str,
    *,
    content_type: str | None,
    lease_token: int | None,
    size: int | None,
    org: str | None = None,
) -> UUID:
    """Begin to store an artifact chunk by chunk; return the upload's id. Raises JobNotFound."""
    params = {
        "id": job_id,
        "org": org,
        "name": name,
        "content_type": content_type,
        "lease_token": lease_token,
        "size": size,
    }
    found = await _all(conn, "begin_artifact", params)
    if not found:
        raise JobNotFound(job_id)
    upload_id: UUID = found[0]["id"]
    return upload_id


async def append_artifact(conn: AsyncConnection[Any], upload_id: UUID, number: int, data: bytes) -> None:
    """Store the next chunk of an upload."""
    await _all(conn, "append_artifact", {"upload_id": upload_id, "number": number, "data": data})


async def complete_artifact(conn: AsyncConnection[Any], upload_id: UUID, whole: bytes) -> Artifact:
    """End an upload, whose whole content has this hash."""
    return Artifact(**(await _all(conn, "complete_artifact", {"upload_id": upload_id, "sha256": whole}))[0])


async def discard_artifact(conn: AsyncConnection[Any], upload_id: UUID) -> None:
    """Give an upload up."""
    await _all(conn, "discard_artifact", {"upload_id": upload_id})
