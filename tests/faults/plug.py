"""A file system whose plug can be pulled: what was written and not synced since is gone, or some of it.

It is a folder seen through FUSE. Each page is remembered as it was before it was first written after the last sync of
its file, and each change of a folder's entries with what undoes it. A sync of any file makes the entries of all
durable, as on ext4. When it is unmounted, everything that was not synced is as if the power had failed: of the pages
any may have reached the disk, of the entries the first so many.

    python -m tests.faults.plug FOLDER MOUNTPOINT SEED REPORT
"""

from __future__ import annotations

import ctypes.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

PAGE: Final = 4096
MOUNT_SECONDS: Final = 30.0
# Removed, and perhaps back after the power has failed.
REMOVED: Final = ".removed"
ROOT: Final = Path(__file__).resolve().parents[2]


@cache
def no_plug() -> str | None:
    """Why there is none to pull on this machine; None: there is."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        return "mounting a file system of ours needs root and /dev/fuse"
    if find_spec("mfusepy") is None or ctypes.util.find_library("fuse3") is None:
        return "neither mfusepy nor libfuse3 may be missing"
    return None


@dataclass(frozen=True, slots=True)
class Loss:
    """What a power failure took: pages, and entries of folders."""

    pages: int
    entries: int


class Plug:
    """Such a file system in the place of a folder, with what was in it. What it loses is of the seed."""

    def __init__(self, folder: Path, randomness: random.Random) -> None:
        self.folder = folder
        self._random = randomness
        self._backing = folder.with_name(f"{folder.name}.backing")
        self._report = folder.with_name(f"{folder.name}.lost")
        self._process: subprocess.Popen[bytes] | None = None
        folder.rename(self._backing)
        (self._backing / REMOVED).mkdir()
        folder.mkdir(mode=0o700)
        self._mount()

    def pull(self) -> Loss:
        """Have the power fail, and return. Nobody may have a file open there."""
        self._unmount()
        loss = Loss(**json.loads(self._report.read_text()))
        self._mount()
        return loss

    def remove(self) -> None:
        """Unmount it and leave nothing behind."""
        self._unmount()
        shutil.rmtree(self._backing, ignore_errors=True)
        self._report.unlink(missing_ok=True)

    def _mount(self) -> None:
        arguments = [str(self._backing), str(self.folder), str(self._random.randrange(2**32)), str(self._report)]
        self._report.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.plug", *arguments], cwd=ROOT, start_new_session=True
        )
        deadline = time.monotonic() + MOUNT_SECONDS
        while not self.folder.is_mount():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the file system is not mounted")
            time.sleep(0.01)

    def _unmount(self) -> None:
        if self._process is None:
            return
        deadline = time.monotonic() + MOUNT_SECONDS
        while subprocess.run(["umount", str(self.folder)], check=False, capture_output=True).returncode:
            if time.monotonic() > deadline:
                subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)
                break
            time.sleep(0.05)
        self._process.wait(MOUNT_SECONDS)
        self._process = None


@dataclass(slots=True)
class _Unsynced:
    """A file that was written since it was synced: how long it was, how short meanwhile, and what its pages were."""

    descriptor: int
    size: int
    shortest: int
    pages: dict[int, bytes] = field(default_factory=dict[int, bytes])


class _Folder:
    """The operations, by their names in libfuse."""

    use_ns = True

    def __init__(self, root: str, randomness: random.Random, report: Path) -> None:
        self._root = root
        self._random = randomness
        self._report = report
        self._unsynced: dict[int, _Unsynced] = {}
        self._entries: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._removed = 0

    def _at(self, path: str) -> str:
        return self._root + path

    # --- what is not synced -------------------------------------------------------------------------------------------

    def _keep(self, descriptor: int, begin: int, end: int) -> None:
        """Remember the pages from `begin` to `end` before they change."""
        stat = os.fstat(descriptor)
        file = self._unsynced.get(stat.st_ino)
        if file is None:
            again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
            file = self._unsynced[stat.st_ino] = _Unsynced(again, stat.st_size, stat.st_size)
        for page in range(begin // PAGE, -(-end // PAGE)):
            if page not in file.pages:
                file.pages[page] = os.pread(file.descriptor, PAGE, page * PAGE)

    def _synced(self, number: int) -> None:
        """Make a file durable, and all entries."""
        if (file := self._unsynced.pop(number, None)) is not None:
            os.close(file.descriptor)
        for _, keep in self._entries:
            keep()
        self._entries.clear()

    def _changed(self, undo: Callable[[], None], keep: Callable[[], None] = lambda: None) -> None:
        self._entries.append((undo, keep))

    def _put_aside(self, path: str) -> str:
        """Move a file where nobody sees it until its removal is durable; it has no pages to lose from then on."""
        self._removed += 1
        aside = f"{self._root}/{REMOVED}/{self._removed}"
        os.rename(path, aside)
        return aside

    def _drop(self, aside: str) -> None:
        if (file := self._unsynced.pop(os.stat(aside).st_ino, None)) is not None:
            os.close(file.descriptor)
        os.unlink(aside)

    def destroy(self, _path: str) -> None:
        """Lose what is not synced: any of the pages, and the last of the entries."""
        pages = sum(self._lose_pages(file) for file in self._unsynced.values())
        reached = self._random.randint(0, len(self._entries))
        for undo, _ in reversed(self._entries[reached:]):
            undo()
        for _, keep in self._entries[:reached]:
            with suppress(FileNotFoundError):
                keep()
        self._report.write_text(json.dumps({"pages": pages, "entries": len(self._entries) - reached}))

    def _lose_pages(self, file: _Unsynced) -> int:
        now = os.fstat(file.descriptor).st_size
        as_long_as_before = self._random.random() < 0.5
        if as_long_as_before:
            os.ftruncate(file.descriptor, file.size)
        lost = max(0, now - file.size) // PAGE if as_long_as_before else 0
        end = os.fstat(file.descriptor).st_size
        for page, before in file.pages.items():
            begin = page * PAGE
            # What was cut off and is not is what it was, whatever chance says.
            cut_off = as_long_as_before and begin + PAGE > file.shortest and before != b""
            if begin < end and (cut_off or self._random.random() < 0.5):
                os.pwrite(file.descriptor, before.ljust(min(PAGE, end - begin), b"\0"), begin)
                lost += 1
        os.close(file.descriptor)
        return lost

    # --- files --------------------------------------------------------------------------------------------------------

    def create(self, path: str, mode: int, _fi: Any = None) -> int:
        whole = self._at(path)
        descriptor = os.open(whole, os.O_RDWR | os.O_CREAT, mode)
        self._own(whole)
        self._changed(lambda: os.unlink(whole))
        return descriptor

    def open(self, path: str, flags: int) -> int:
        # Pages that change are read first, so write alone is not enough; where a write begins is told each time.
        readable = (flags & ~(os.O_WRONLY | os.O_APPEND)) | (os.O_RDWR if flags & (os.O_WRONLY | os.O_RDWR) else 0)
        return os.open(self._at(path), readable & ~(os.O_DIRECT | os.O_SYNC | os.O_DSYNC))

    def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, _path: str, data: bytes, offset: int, fh: int) -> int:
        self._keep(fh, offset, offset + len(data))
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        descriptor = os.open(self._at(path), os.O_RDWR) if fh is None else fh
        try:
            stat = os.fstat(descriptor)
            self._keep(descriptor, length, max(length, stat.st_size))
            os.ftruncate(descriptor, length)
            file = self._unsynced[stat.st_ino]
            file.shortest = min(file.shortest, length)
        finally:
            if fh is None:
                os.close(descriptor)
        return 0

    def flush(self, _path: str, _fh: int) -> int:
        return 0

    def fsync(self, _path: str, _datasync: int, fh: int) -> int:
        self._synced(os.fstat(fh).st_ino)
        return 0

    def fsyncdir(self, _path: str, _datasync: int, _fh: int) -> int:
        self._synced(0)
        return 0

    def release(self, _path: str, fh: int) -> int:
        os.close(fh)
        return 0

    # --- entries ------------------------------------------------------------------------------------------------------

    def unlink(self, path: str) -> int:
        whole = self._at(path)
        aside = self._put_aside(whole)
        self._changed(lambda: os.rename(aside, whole), lambda: self._drop(aside))
        return 0

    def rename(self, old: str, new: str) -> int:
        before, after = self._at(old), self._at(new)
        aside = self._put_aside(after) if os.path.lexists(after) and not os.path.isdir(after) else None
        os.rename(before, after)

        def undo() -> None:
            os.rename(after, before)
            if aside is not None:
                os.rename(aside, after)

        self._changed(undo, lambda: self._drop(aside) if aside is not None else None)
        return 0

    def link(self, target: str, source: str) -> int:
        whole = self._at(target)
        os.link(self._at(source), whole)
        self._changed(lambda: os.unlink(whole))
        return 0

    def symlink(self, target: str, source: str) -> int:
        whole = self._at(target)
        os.symlink(source, whole)
        self._own(whole)
        self._changed(lambda: os.unlink(whole))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        whole = self._at(path)
        os.mkdir(whole, mode)
        self._own(whole)
        self._changed(lambda: os.rmdir(whole))
        return 0

    def rmdir(self, path: str) -> int:
        whole = self._at(path)
        stat = os.stat(whole)
        os.rmdir(whole)

        def undo() -> None:
            os.mkdir(whole, stat.st_mode & 0o7777)
            os.chown(whole, stat.st_uid, stat.st_gid)

        self._changed(undo)
        return 0

    # --- what no power failure changes --------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        stat = os.fstat(fh) if fh else os.lstat(self._at(path))
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino", "st_dev")
        found = {name: getattr(stat, name) for name in names}
        return found | {f"st_{one}time": getattr(stat, f"st_{one}time_ns") for one in "amc"}

    def readdir(self, path: str, _fh: int) -> Iterable[str]:
        return [".", "..", *(name for name in os.listdir(self._at(path)) if path != "/" or name != REMOVED)]

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._at(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        now = time.time_ns()
        os.utime(self._at(path), ns=times or (now, now), follow_symlinks=False)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._at(path))
        names = (
            "f_bavail",
            "f_bfree",
            "f_blocks",
            "f_bsize",
            "f_favail",
            "f_ffree",
            "f_files",
            "f_frsize",
            "f_namemax",
        )
        return {name: getattr(found, name) for name in names}

    def _own(self, whole: str) -> None:
        import mfusepy

        uid, gid, _ = mfusepy.fuse_get_context()
        os.chown(whole, uid, gid, follow_symlinks=False)


def main() -> None:
    """Serve until unmounted."""
    import mfusepy

    backing, mountpoint, seed, report = sys.argv[1:]
    os.umask(0)

    # What is not there is left to its base.
    operations: Any = type("Operations", (_Folder, mfusepy.Operations), {})
    folder = operations(backing, random.Random(int(seed)), Path(report))
    mfusepy.FUSE(
        folder, mountpoint, foreground=True, nothreads=True, allow_other=True, default_permissions=True, nonempty=False
    )


if __name__ == "__main__":
    main()
