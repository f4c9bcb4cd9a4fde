"""Artifacts from Python: stored from paths, bytes and streams, read whole, in pieces, into files; both clients."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from queue_pg import (
    ArtifactCorrupt,
    ArtifactNotFound,
    ArtifactTooLarge,
    InvalidArtifact,
    InvalidTransition,
    JobNotFound,
    LeaseLost,
    Queue,
    SyncQueue,
)
from queue_pg.content import CHUNK_BYTES, Cutter
from queue_pg.testing import Clock

MiB = 1024 * 1024
SIZES = [0, 1, MiB - 1, MiB, MiB + 1, 2 * MiB, 5 * MiB + 3]


def pattern(size: int) -> bytes:
    """Return bytes of which no two chunks are alike."""
    block = bytes(range(256)) * 4096
    return b"".join(n.to_bytes(4, "big") + block[4:] for n in range(-(-size // MiB)))[:size]


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as client:
        yield client


@pytest.fixture
def sync_queue(dsn: str) -> Iterator[SyncQueue]:
    with SyncQueue(dsn, notify=False) as client:
        yield client


async def counts(conn: psycopg.AsyncConnection) -> tuple[int, ...]:
    row = await (
        await conn.execute("select (select count(*) from queue_pg.chunks), (select count(*) from queue_pg.uploads)")
    ).fetchone()
    assert row is not None
    return tuple(row)


@pytest.mark.parametrize("size", SIZES)
async def test_round_trip(queue: Queue, size: int) -> None:
    job = await queue.submit("k")
    data = pattern(size)
    made = await queue.put_artifact(job.id, "data.bin", data)
    assert (made.name, made.size, made.sha256, made.attempt) == ("data.bin", size, sha256(data).hexdigest(), 0)
    reader = await queue.open_artifact(job.id, "data.bin")
    assert reader.artifact == made
    assert await reader.read() == data
    pieces = [piece async for piece in reader]
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= CHUNK_BYTES for piece in pieces)
    assert await queue.artifacts(job.id) == [made]


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_blocking(sync_queue: SyncQueue, size: int, tmp_path: Path) -> None:
    job = sync_queue.submit("k")
    data = pattern(size)
    made = sync_queue.put_artifact(job.id, "data.bin", data)
    reader = sync_queue.open_artifact(job.id, "data.bin")
    assert reader.artifact == made
    assert b"".join(reader) == reader.read() == data
    assert reader.save(tmp_path / "saved").read_bytes() == data
    assert sync_queue.artifacts(job.id) == [made]


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [0, 7, MiB, 2 * MiB + 9])
async def test_every_kind_of_content(queue: Queue, sync_queue: SyncQueue, tmp_path: Path, size: int) -> None:
    job = await queue.submit("k")
    data = pattern(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    contents: list[Any] = [
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        [data[: size // 2], b"", memoryview(data)[size // 2 :]],
        (data[n : n + 100_003] for n in range(0, size, 100_003)),
    ]
    for content in contents:
        assert (await queue.put_artifact(job.id, "a", content)).sha256 == sha256(data).hexdigest()
    with path.open("rb") as file:
        assert (await queue.put_artifact(job.id, "a", file)).size == size
    assert (await queue.put_artifact(job.id, "a", in_pieces(data, 300_001))).size == size
    contents[5].seek(0)
    contents[7] = iter([data])
    for content in contents:
        made = await asyncio.to_thread(sync_queue.put_artifact, job.id, "b", content)
        assert made.sha256 == sha256(data).hexdigest()


@pytest.mark.parametrize("sizes", [[1] * 10, [MiB, MiB], [3 * MiB], [0, 5 * MiB // 2, 0, 1], [MiB - 1, 2, MiB]])
def test_pieces_of_any_size_are_cut_into_whole_chunks(sizes: list[int]) -> None:
    data = pattern(sum(sizes))
    cutter, chunks, start = Cutter(), list[bytes](), 0
    for size in sizes:
        chunks += cutter.add(data[start : start + size])
        start += size
    assert {len(chunk) for chunk in chunks} <= {CHUNK_BYTES}
    assert b"".join([*chunks, cutter.rest()]) == data
    assert len(cutter.rest()) < CHUNK_BYTES


async def a_text() -> AsyncIterator[Any]:
    yield "text"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (7, "a path, bytes or a stream"),
        (None, "a path, bytes or a stream"),
        (["text"], "the stream gave str"),
        ([1], "the stream gave int"),
        ([None], "the stream gave NoneType"),
        (a_text(), "the stream gave str"),
        (io.StringIO("text"), "open as text"),
        (io.StringIO(""), "open as text"),
        ("no such file", "No such file"),
        ("a text\0with NUL", "null byte"),
        (Path(os.sep), "directory"),
    ],
)
async def test_a_content_that_is_none(
    queue: Queue, sync_queue: SyncQueue, conn: psycopg.AsyncConnection, content: Any, reason: str
) -> None:
    job = await queue.submit("k")
    with pytest.raises(InvalidArtifact, match=reason) as caught:
        await queue.put_artifact(job.id, "a", content)
    assert caught.value.field == "content"
    if not isinstance(content, AsyncIterator):
        with pytest.raises(InvalidArtifact, match=reason):
            await asyncio.to_thread(sync_queue.put_artifact, job.id, "a", content)
    assert await queue.artifacts(job.id) == []
    assert await counts(conn) == (0, 0)


@pytest.mark.parametrize("name", ["../x", "/x", "", "a\0b", "\ud800", 7, None])
async def test_a_name_that_is_none(queue: Queue, name: Any) -> None:
    job = await queue.submit("k")
    for call in (queue.put_artifact(job.id, name, b"x"), queue.open_artifact(job.id, name)):
        with pytest.raises(InvalidArtifact) as caught:
            await call
        assert caught.value.field == "name"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"content_type": "nonsense"}, "content_type"),
        ({"content_type": "text/plain\0"}, "content_type"),
        ({"content_type": 7}, "content_type"),
        ({"sha256": "abc"}, "sha256"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"size": 3}, "size"),
    ],
)
@pytest.mark.parametrize("size", [2, 2 * MiB + 2])
async def test_what_was_announced_has_to_come(
    queue: Queue, conn: psycopg.AsyncConnection, given: dict[str, Any], field: str, size: int
) -> None:
    job = await queue.submit("k")
    with pytest.raises(InvalidArtifact) as caught:
        await queue.put_artifact(job.id, "a", pattern(size), **given)
    assert caught.value.field == field
    assert await queue.artifacts(job.id) == []
    assert (await counts(conn))[1] == 0


async def test_announced_rightly(queue: Queue) -> None:
    job = await queue.submit("k")
    digest = sha256(b"x").hexdigest()
    assert (await queue.put_artifact(job.id, "a", b"x", sha256=digest.upper(), size=1)).sha256 == digest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "text/plain"),
        ("x/y/a.json", "application/json"),
        ("a.PNG", "image/png"),
        ("a", "application/octet-stream"),
        ("a.tar.gz", "application/octet-stream"),
    ],
)
async def test_the_content_type_follows_from_the_name(queue: Queue, name: str, expected: str) -> None:
    job = await queue.submit("k")
    assert (await queue.put_artifact(job.id, name, b"")).content_type == expected
    assert (await queue.put_artifact(job.id, name, b"", content_type="a/b")).content_type == "a/b"


async def test_who_may(queue: Queue, dsn: str) -> None:
    job = await queue.submit("k")
    async with Queue(dsn, org="other", notify=False) as stranger:
        for call in (
            stranger.artifacts(job.id),
            stranger.open_artifact(job.id, "a"),
            stranger.put_artifact(job.id, "a", b"x"),
            stranger.put_artifact(job.id, "a", pattern(MiB + 1)),
            queue.artifacts(uuid4()),
            queue.artifacts("no id"),
            queue.put_artifact(uuid4(), "a", b"x"),
        ):
            with pytest.raises(JobNotFound):
                await call
    with pytest.raises(ArtifactNotFound) as missing:
        await queue.open_artifact(job.id, "a")
    assert (missing.value.job_id, missing.value.name) == (job.id, "a")
    [claimed] = await queue.claim("w", ["default"])
    await queue.put_artifact(job.id, "a", pattern(MiB + 1), lease_token=claimed.lease_token)
    for data in (b"x", pattern(MiB)):
        with pytest.raises(LeaseLost):
            await queue.put_artifact(job.id, "a", data, lease_token=claimed.lease_token + 1)
        with pytest.raises(InvalidArtifact, match="lease_token"):
            await queue.put_artifact(job.id, "a", data)
    await queue.complete(job.id, claimed.lease_token)
    with pytest.raises(InvalidTransition, match="completed"):
        await queue.put_artifact(job.id, "a", b"x")


async def test_too_large_is_refused_before_it_is_sent(
    queue: Queue, conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    await conn.execute("select queue_pg.configure(max_artifact_bytes => 2097152)")
    job = await queue.submit("k")
    path = tmp_path / "file"
    path.write_bytes(pattern(2 * MiB + 1))
    for content in (path, path.read_bytes()):
        with pytest.raises(ArtifactTooLarge) as caught:
            await queue.put_artifact(job.id, "a", content)
        assert (caught.value.field, caught.value.limit) == ("size", 2 * MiB)
        assert (await counts(conn)) == (0, 0)
    with pytest.raises(ArtifactTooLarge):
        await queue.put_artifact(job.id, "a", in_pieces(path.read_bytes(), MiB))
    assert (await counts(conn))[1] == 0


@pytest.mark.parametrize("size", [MiB, 3 * MiB + 5])
async def test_ranges(queue: Queue, size: int) -> None:
    job = await queue.submit("k")
    data = pattern(size)
    await queue.put_artifact(job.id, "a", data)
    reader = await queue.open_artifact(job.id, "a")
    for start, end in [
        *[(0, None), (0, 1), (5, 5), (MiB - 1, MiB + 1), (MiB, None), (-3, None), (-3, -1), (0, 10 * MiB)],
        *[(2 * MiB - 1, 2 * MiB + 1), (size, None), (size + 1, None), (7, 3), (size - 1, size)],
    ]:
        pieces = [piece async for piece in reader.range(start, end)]
        assert b"".join(pieces) == data[start:end], (start, end)


DAMAGE = {
    "a chunk": ["update queue_pg.chunks set data = set_byte(data, 9, 0)"],
    "a chunk cut off": ["update queue_pg.chunks set data = substring(data for 9)"],
    "a chunk less": ["delete from queue_pg.blob_chunks where number = 2"],
    "a chunk more": ["insert into queue_pg.blob_chunks select blob_id, 3, sha256 from queue_pg.blob_chunks limit 1"],
    "chunks in another order": ["update queue_pg.blob_chunks set number = 12 - number"],
    "chunks of another": ["update queue_pg.blob_chunks set sha256 = (select max(sha256) from queue_pg.chunks)"],
    "another size": ["update queue_pg.artifacts set size = size + 1"],
    "chunks that are gone": ["set session_replication_role = replica", "delete from queue_pg.chunks"],
    "the hash of the whole": [
        "update queue_pg.artifacts set sha256 = sha256",
        "set session_replication_role = replica",
        "update queue_pg.blobs set sha256 = sha256('x')",
        "update queue_pg.artifacts set sha256 = sha256('x')",
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_is_an_error_and_never_handed_out(
    queue: Queue, conn: psycopg.AsyncConnection, tmp_path: Path, damage: str
) -> None:
    job = await queue.submit("k")
    data = pattern(2 * MiB + 100)
    await queue.put_artifact(job.id, "a", data)
    for statement in DAMAGE[damage]:
        await conn.execute(statement.encode())
    seen = bytearray()

    async def read() -> None:
        async for piece in await queue.open_artifact(job.id, "a"):
            seen.extend(piece)

    with pytest.raises(ArtifactCorrupt) as caught:
        await read()
    assert len(caught.value.sha256) == 64
    # At most what came before the damage.
    assert data.startswith(seen)
    assert len(seen) < len(data)


async def test_what_cannot_be_read_leaves_the_file_as_it_was(
    queue: Queue, conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    job = await queue.submit("k")
    await queue.put_artifact(job.id, "a", pattern(2 * MiB))
    await conn.execute("update queue_pg.chunks set data = 'x' where data = %s", (pattern(2 * MiB)[MiB:],))
    target = tmp_path / "file"
    target.write_bytes(b"before")
    with pytest.raises(ArtifactCorrupt):
        await (await queue.open_artifact(job.id, "a")).save(target)
    assert os.listdir(tmp_path) == ["file"]
    assert target.read_bytes() == b"before"
    made = await queue.put_artifact(job.id, "b", pattern(2 * MiB))  # repairs it
    await (await queue.open_artifact(job.id, "a")).save(target)
    assert sha256(target.read_bytes()).hexdigest() == made.sha256


async def test_what_is_replaced_while_it_is_read_is_read_to_its_end(
    queue: Queue, conn: psycopg.AsyncConnection, clock: Clock
) -> None:
    job = await queue.submit("k")
    data = pattern(3 * MiB)
    await queue.put_artifact(job.id, "a", data)
    reader = await queue.open_artifact(job.id, "a")
    pieces = aiter(reader)
    seen = await anext(pieces)
    await queue.put_artifact(job.id, "a", b"new")
    clock.advance(3000)
    await conn.execute("select queue_pg.maintain_history()")
    seen += await anext(pieces)
    clock.advance(3000)
    await conn.execute("select queue_pg.maintain_history()")
    with pytest.raises(ArtifactNotFound):
        await anext(pieces)
    assert data.startswith(seen)
    assert await (await queue.open_artifact(job.id, "a")).read() == b"new"


async def test_a_stream_that_fails_leaves_nothing(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    job = await queue.submit("k")

    async def failing() -> AsyncIterator[bytes]:
        yield pattern(2 * MiB)
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="source"):
        await queue.put_artifact(job.id, "a", failing())
    assert (await counts(conn))[1] == 0
    await conn.execute("select queue_pg.maintain_history()")
    assert await counts(conn) == (0, 0)
    assert await queue.artifacts(job.id) == []


async def test_a_task_that_is_cancelled_leaves_nothing(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    job = await queue.submit("k")
    stuck = asyncio.Event()

    async def hanging() -> AsyncIterator[bytes]:
        yield pattern(2 * MiB)
        stuck.set()
        await asyncio.Event().wait()

    uploading = asyncio.create_task(queue.put_artifact(job.id, "a", hanging()))
    await stuck.wait()
    assert (await counts(conn))[1] == 1
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert (await counts(conn))[1] == 0


async def test_two_who_store_the_same_at_once(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    data = pattern(4 * MiB + 1)
    jobs = [await queue.submit("k") for _ in range(4)]
    made = await asyncio.gather(*(queue.put_artifact(job.id, "a", in_pieces(data, 70_000)) for job in jobs))
    assert {artifact.sha256 for artifact in made} == {sha256(data).hexdigest()}
    assert await counts(conn) == (5, 0)
    for job in jobs:
        assert await (await queue.open_artifact(job.id, "a")).read() == data


MEMORY = """
import asyncio, os, re, sys
from pathlib import Path
from queue_pg import Queue

MEGABYTES = 200
tail = os.urandom(1024 * 1024 - 8)

async def content():
    for n in range(MEGABYTES):
        block = n.to_bytes(8, "big") + tail
        for start in range(0, len(block), 65536):
            yield block[start:start + 65536]

def peak():
    # Not ru_maxrss: that of a child begins with its parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) // 1024

async def main():
    async with Queue(sys.argv[1], notify=False) as queue:
        job = await queue.submit("k")
        await (await queue.open_artifact(job.id, (await queue.put_artifact(job.id, "small", b"x")).name)).read()
        before = peak()
        made = await queue.put_artifact(job.id, "large", content())
        stored = peak()
        size = 0
        async for piece in await queue.open_artifact(job.id, "large"):
            size += len(piece)
        assert size == made.size == MEGABYTES * 1024 * 1024
        print(before, stored - before, peak() - before)

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells a process's peak")
def test_memory_does_not_grow_with_the_content(dsn: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, dsn], capture_output=True, text=True, check=True, timeout=120)
    before, stored, read = map(int, done.stdout.split())
    # Of 200 MiB. In all it stays below the 100 MB that a process may take for any size.
    assert stored < 25
    assert read < 25
    assert before + read < 120
