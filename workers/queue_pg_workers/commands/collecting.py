"""The files that a command has left in `artifacts/`, on their way to the job.

What is there was made by the command and may be anything: links, pipes, devices, endless folders, names that cannot
be stored. Only plain files are taken, each opened step by step from the workspace's own descriptor without following
a link, and looked at again once it is open.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from queue_pg.errors import ArtifactTooLarge, DatabaseUnavailable, InvalidArtifact
from queue_pg.tasks import JobContext
from queue_pg_workers.commands.workspace import ARTIFACTS, FOLDER, User, Workspace

# As deep as names of artifacts are (docs/artifacts.md).
MAX_DEPTH: Final = 16
MAX_ENTRIES: Final = 10_000
_PLAIN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_RETRY_SECONDS: Final = (0.1, 2.0)

Skipped = Callable[[str, str], Awaitable[None]]


@dataclass(slots=True)
class Found:
    """A file, or why something is none that can be kept."""

    name: str
    reason: str | None = None


async def collect(
    job: JobContext, workspace: Workspace, *, max_files: int, max_bytes: int, owner: int | None, skipped: Skipped
) -> list[dict[str, Any]]:
    """Store what is in `artifacts/` with the job; return name, size and sha256 of each. Raises LeaseLost.

    `skipped` is told what was left out, and why. `owner` is whose files they have to be where others may link to them.
    """
    kept: list[dict[str, Any]] = []
    left = max_bytes
    for found in await asyncio.to_thread(look, workspace.descriptor):
        reason = found.reason
        if reason is None and len(kept) >= max_files:
            reason = f"there are more than {max_files:,}"
        if reason is not None:
            await skipped(found.name, reason)
            continue
        try:
            file = await asyncio.to_thread(open_plain, workspace.descriptor, found.name, left, owner)
        except (OSError, ValueError) as error:
            await skipped(found.name, getattr(error, "strerror", None) or str(error))
            continue
        with file:
            try:
                made = await _store(job, found.name, file)
            except (InvalidArtifact, ArtifactTooLarge) as refused:
                await skipped(found.name, refused.message)
                continue
        left -= made["size"]
        kept.append(made)
    return kept


async def _store(job: JobContext, name: str, file: BinaryIO) -> dict[str, Any]:
    """Store one file; while the database is away, wait for it as outcomes do."""
    pause = _RETRY_SECONDS[0]
    while True:
        try:
            made = await job.artifact(name, file)
        except DatabaseUnavailable:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_SECONDS[1])
            file.seek(0)
        else:
            return {"name": made.name, "size": made.size, "sha256": made.sha256}


async def fetch(job: JobContext, workspace: Workspace, names: list[str], owner: User | None, max_bytes: int) -> None:
    """Put artifacts of the job into the workspace under their names; `max_bytes` 0: no limit. Raises ArtifactError."""
    total = 0
    for name in names:
        reader = await job.open_artifact(name)
        total += reader.artifact.size
        if max_bytes and total > max_bytes:
            raise ArtifactTooLarge("files", f"take more than {max_bytes:,} bytes (COMMAND_MAX_WORKSPACE_BYTES)")
        # The stored name, not the one asked for: only that is known to be a safe path.
        *folders, last = reader.artifact.name.split("/")
        try:
            folder = await asyncio.to_thread(_make_folders, workspace.descriptor, folders, owner)
            try:
                new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(last, new, 0o600, dir_fd=folder), "wb") as file:
                    if owner is not None:
                        os.fchown(file.fileno(), owner.uid, owner.gid)
                    async for piece in reader:
                        await asyncio.to_thread(file.write, piece)
            finally:
                os.close(folder)
        except (FileExistsError, NotADirectoryError):
            raise InvalidArtifact("files", f"{name!r} cannot be put into the workspace: its place is taken") from None


def _make_folders(root: int, names: list[str], owner: User | None) -> int:
    here = os.dup(root)
    for name in names:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=here)
            if owner is not None:
                os.chown(name, owner.uid, owner.gid, dir_fd=here, follow_symlinks=False)
        try:
            below = os.open(name, FOLDER, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


# --- blocking, in a thread --------------------------------------------------------------------------------------------


def look(workspace: int) -> list[Found]:
    """Return what is in `artifacts/`, by name, with what can't be kept."""
    try:
        top = os.open(ARTIFACTS, FOLDER, dir_fd=workspace)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Found(ARTIFACTS, f"is no folder ({error.strerror})")]
    found: list[Found] = []
    for each in _walk(top, "", 1):
        found.append(each)
        if len(found) >= MAX_ENTRIES:
            found.append(Found(each.name, f"what comes after it is left out: there are more than {MAX_ENTRIES:,}"))
            break
    return sorted(found, key=lambda each: each.name)


def _walk(folder: int, prefix: str, depth: int) -> Iterator[Found]:
    """Yield what is below a folder, which is closed."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_symlink():
                    yield Found(name, "is a symbolic link")
                elif entry.is_file(follow_symlinks=False):
                    yield Found(name)
                elif not entry.is_dir(follow_symlinks=False):
                    yield Found(name, "is no plain file")
                elif depth >= MAX_DEPTH:
                    yield Found(name, f"is nested deeper than {MAX_DEPTH} folders")
                else:
                    try:
                        below = os.open(entry.name, FOLDER, dir_fd=folder)
                    except OSError as error:
                        yield Found(name, error.strerror)
                    else:
                        yield from _walk(below, f"{name}/", depth + 1)
    finally:
        os.close(folder)


def open_plain(workspace: int, name: str, max_bytes: int, owner: int | None) -> BinaryIO:
    """Open a file below `artifacts/` by its name there. Raises OSError, and ValueError for what is not to be kept."""
    here = os.open(ARTIFACTS, FOLDER, dir_fd=workspace)
    *folders, last = name.split("/")
    try:
        for folder in folders:
            below = os.open(folder, FOLDER, dir_fd=here)
            os.close(here)
            here = below
        descriptor = os.open(last, _PLAIN, dir_fd=here)
    finally:
        os.close(here)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is no plain file")
        if owner is not None and found.st_uid != owner:
            raise ValueError("belongs to somebody else")
        if found.st_size > max_bytes:
            raise ValueError(f"has {found.st_size:,} bytes, of which {max_bytes:,} are left")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
