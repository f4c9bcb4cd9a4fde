# Generated from queue_pg/artifact_store.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""The statements about artifacts, as store.py has those about jobs; rows in, models out.

Rows travel in binary: as text a chunk would be twice as long. `artifact_store_sync.py` is generated from this file by
tools/async_to_sync.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import DictRow, dict_row

from queue_pg.content import CHUNK_BYTES, HASH_BYTES, StoredArtifact
from queue_pg.errors import ArtifactCorrupt, ArtifactNotFound, JobNotFound
from queue_pg.models import Artifact
from queue_pg.statements import statement


def _all(conn: Connection[Any], name: str, params: Mapping[str, Any]) -> list[DictRow]:
    with Cursor(conn, row_factory=dict_row) as cursor:
        cursor.execute(statement(name), params, binary=True)
        return cursor.fetchall()


def list_artifacts(conn: Connection[Any], job_id: UUID, *, org: str | None = None) -> list[Artifact]:
    """Return a job's artifacts by name. Raises JobNotFound."""
    found = _all(conn, "list_artifacts", {"id": job_id, "org": org})
    if not found:
        raise JobNotFound(job_id)
    return [Artifact(**row) for row in found if row["name"] is not None]


def get_artifact(
    conn: Connection[Any], job_id: UUID, name: str, *, org: str | None = None
) -> StoredArtifact:
    """Return one artifact. Raises JobNotFound, ArtifactNotFound; ArtifactCorrupt for a list of chunks not its own."""
    found = _all(conn, "get_artifact", {"id": job_id, "name": name, "org": org})
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


def get_chunk(conn: Connection[Any], chunk: bytes) -> bytes | None:
    """Return the chunk that was stored under this hash; None: it was removed meanwhile."""
    found = _all(conn, "get_chunk", {"sha256": chunk})
    return bytes(found[0]["data"]) if found else None


def put_artifact(
    conn: Connection[Any],
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
    found = _all(conn, "put_artifact", params)
    if not found:
        raise JobNotFound(job_id)
    return Artifact(**found[0])


def begin_artifact(
    conn: Connection[Any],
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
    found = _all(conn, "begin_artifact", params)
    if not found:
        raise JobNotFound(job_id)
    upload_id: UUID = found[0]["id"]
    return upload_id


def append_artifact(conn: Connection[Any], upload_id: UUID, number: int, data: bytes) -> None:
    """Store the next chunk of an upload."""
    _all(conn, "append_artifact", {"upload_id": upload_id, "number": number, "data": data})


def complete_artifact(conn: Connection[Any], upload_id: UUID, whole: bytes) -> Artifact:
    """End an upload, whose whole content has this hash."""
    return Artifact(**(_all(conn, "complete_artifact", {"upload_id": upload_id, "sha256": whole}))[0])


def discard_artifact(conn: Connection[Any], upload_id: UUID) -> None:
    """Give an upload up."""
    _all(conn, "discard_artifact", {"upload_id": upload_id})
