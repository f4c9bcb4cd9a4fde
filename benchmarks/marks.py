"""The harness's side of peers/marks.py: reads what handlers tell."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MARK = struct.Struct("<qq")


@dataclass(frozen=True, slots=True)
class Marks:
    """A folder that the handlers of one worker write to."""

    folder: Path

    def environment(self, *, stamps: bool = False) -> dict[str, str]:
        """Return what the worker's environment needs; with `stamps` every job's begin is kept."""
        return {"BENCH_MARKS": str(self.folder), "BENCH_STAMPS": "1" if stamps else ""}

    def first_ns(self) -> int | None:
        """Return when the first job began; None before that."""
        return min((first for first, _ in self._read()), default=None)

    def begun(self) -> int:
        """Return how many jobs have begun."""
        return sum(count for _, count in self._read())

    def stamps(self) -> dict[int, int]:
        """Return when each job began, by number; the first begin counts."""
        found: dict[int, int] = {}
        for file in self.folder.glob("*.stamps"):
            data = file.read_bytes()
            for number, moment in _MARK.iter_unpack(data[: len(data) // _MARK.size * _MARK.size]):
                found[number] = min(moment, found.get(number, moment))
        return found

    def _read(self) -> list[tuple[int, int]]:
        files = [path for path in self.folder.iterdir() if path.name.isdigit()]
        return [_MARK.unpack(data) for path in files if len(data := path.read_bytes()) == _MARK.size]


@contextmanager
def new_marks() -> Generator[Marks]:
    """Make a folder for one run of a worker."""
    with tempfile.TemporaryDirectory(prefix="queue-pg-bench-") as folder:
        yield Marks(Path(folder))
