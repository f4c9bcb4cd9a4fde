"""The content of an artifact on its way in and out of this process: cut into chunks, and saved to a file.

Files are read and written in threads where an event loop runs, which a slow disk would stop.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast
from uuid import UUID

from queue_pg.errors import InvalidArtifact
from queue_pg.models import Artifact

# As in functions/artifacts.sql.
CHUNK_BYTES: Final = 1024 * 1024
HASH_BYTES: Final = 32
_END: Final = b""
_OVER: Final = object()


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """An artifact of a job, and where its content is: the hashes of its chunks, one after the other."""

    job_id: UUID
    artifact: Artifact
    blob_id: UUID
    chunks: bytes

    def chunk(self, number: int) -> bytes:
        """Return the hash of a chunk."""
        return self.chunks[number * HASH_BYTES : (number + 1) * HASH_BYTES]


class Readable(Protocol):
    """A binary file, or what reads like one."""

    def read(self, size: int, /) -> bytes: ...


Bytes = bytes | bytearray | memoryview
Content = str | os.PathLike[str] | Bytes | Readable | Iterable[Bytes] | AsyncIterable[Bytes]
BlockingContent = str | os.PathLike[str] | Bytes | Readable | Iterable[Bytes]


def known_size(content: object) -> int | None:
    """Return the size of a content that tells it, so that what is too large is refused before it is sent."""
    if isinstance(content, bytes | bytearray):
        return len(content)
    if isinstance(content, memoryview):
        return content.nbytes
    if isinstance(content, str | os.PathLike):
        with suppress(OSError, ValueError):
            return Path(cast("os.PathLike[str]", content)).stat().st_size
    return None


class Cutter:
    """Cuts pieces of any size into chunks of CHUNK_BYTES; holds less than one chunk and one piece."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def add(self, piece: object) -> Generator[bytes]:
        """Take a piece in, and yield the chunks that are full."""
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise InvalidArtifact("content", f"must be bytes; the stream gave {type(piece).__name__}")
        view = memoryview(cast("Bytes", piece)).cast("B")
        start = 0
        while len(self._pending) + len(view) - start >= CHUNK_BYTES:
            end = start + CHUNK_BYTES - len(self._pending)
            self._pending += view[start:end]
            full, self._pending, start = bytes(self._pending), bytearray(), end
            yield full
        self._pending += view[start:]

    def rest(self) -> bytes:
        """Return what is left at the end; may be empty."""
        return bytes(self._pending)


def chunks_of_sync(content: BlockingContent) -> Generator[bytes]:
    """Yield a content in chunks of CHUNK_BYTES; the last one, which may be empty, is shorter."""
    cutter = Cutter()
    with _opened(content) as pieces:
        for piece in pieces:
            yield from cutter.add(piece)
    yield cutter.rest()


async def chunks_of_async(content: Content) -> AsyncGenerator[bytes]:
    """Yield a content in chunks of CHUNK_BYTES; the last one, which may be empty, is shorter."""
    cutter = Cutter()
    if isinstance(content, AsyncIterable):
        async for given in content:
            for chunk in cutter.add(given):
                yield chunk
    else:
        with _opened(content) as pieces:
            apart = not isinstance(content, bytes | bytearray | memoryview)
            while True:
                piece: object = await asyncio.to_thread(next, pieces, _OVER) if apart else next(pieces, _OVER)
                if piece is _OVER:
                    break
                for chunk in cutter.add(piece):
                    yield chunk
    yield cutter.rest()


@contextmanager
def _opened(content: BlockingContent) -> Generator[Iterator[object]]:
    """Give the pieces of a content. Raises InvalidArtifact for what has none."""
    if isinstance(content, bytes | bytearray | memoryview):
        yield iter((content,))
    elif isinstance(content, str | os.PathLike):
        with ExitStack() as stack:
            try:
                file = stack.enter_context(Path(content).open("rb"))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                hint = "A str is a path; for text as content give text.encode()." if isinstance(content, str) else None
                shown = os.fspath(content)[:200]
                raise InvalidArtifact("content", f"cannot read the file {shown!r}: {reason}", hint=hint) from None
            yield iter(lambda: file.read(CHUNK_BYTES), _END)
    elif callable(getattr(content, "read", None)):
        stream = cast("Readable", content)
        yield iter(lambda: _text_refused(stream.read(CHUNK_BYTES)), _END)
    elif isinstance(content, Iterable):
        yield iter(cast("Iterable[object]", content))
    else:
        raise InvalidArtifact("content", f"must be a path, bytes or a stream of bytes, not {type(content).__name__}")


def _text_refused(piece: Any) -> Any:
    # The end of a text file is '', which would never equal the end of a binary one.
    if isinstance(piece, str):
        raise InvalidArtifact("content", "must be bytes; the file is open as text", hint='Open it with mode "rb".')
    return piece


# --- saving -----------------------------------------------------------------------------------------------------------


class SyncFile:
    """A file that appears under its name when it is whole, and not at all when the block fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        self._part = Path(name)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def keep(self) -> None:
        # mkstemp makes a file that only its owner may read.
        mask = os.umask(0)
        os.umask(mask)
        self._file.close()
        self._part.chmod(0o666 & ~mask)
        self._part.replace(self._path)

    def drop(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


class AsyncFile:
    """A SyncFile whose disk an event loop need not wait for."""

    def __init__(self, file: SyncFile) -> None:
        self._file = file

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(self._file.write, data)


@contextmanager
def saving_sync(path: str | os.PathLike[str]) -> Generator[SyncFile]:
    """Write a file anew; a failure leaves what was there."""
    file = SyncFile(Path(path))
    try:
        yield file
        file.keep()
    except BaseException:
        file.drop()
        raise


@asynccontextmanager
async def saving_async(path: str | os.PathLike[str]) -> AsyncGenerator[AsyncFile]:
    """Write a file anew; a failure leaves what was there."""
    file = await asyncio.to_thread(SyncFile, Path(path))
    try:
        yield AsyncFile(file)
        await asyncio.to_thread(file.keep)
    except BaseException:
        file.drop()
        raise
