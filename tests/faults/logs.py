"""What processes write about themselves: little, however badly they are off."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# A process has some eight parts that find out by themselves that the database is away, and that it is back.
MOST_LINES: Final = 40
_STAMP: Final = re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} ")
_COMPLAINT: Final = re.compile(_STAMP.pattern + rb"(WARNING|ERROR|CRITICAL) ")
_ID: Final = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Busiest:
    """The second in which some process wrote most."""

    lines: int = 0
    process: str = ""
    second: str = ""


def lines_by_second(path: Path) -> Counter[str]:
    """Return how many lines were written in which second, without those about a job: these are as many as jobs."""
    found: Counter[str] = Counter()
    second, about_a_job = b"", False
    for line in _lines(path):
        if stamp := _STAMP.match(line):
            second, about_a_job = stamp[1], _ID.search(line) is not None
        # A line without a time belongs to the one before, such as those of a traceback.
        found[second.decode()] += not about_a_job
    return found


def busiest(folder: Path) -> Busiest:
    """Return the busiest second of any worker or API of a run."""
    most = Busiest()
    for path in _files(folder):
        for second, lines in lines_by_second(path).items():
            if lines > most.lines:
                most = Busiest(lines, path.stem, second)
    return most


def complaints(folder: Path, *, most: int = 40) -> str:
    """Return the last lines in which workers and APIs of a run warned of something, for a person to read."""
    lines = [
        f"{path.stem}: {line.decode(errors='replace').rstrip()}"
        for path in _files(folder)
        for line in _lines(path)
        if _COMPLAINT.match(line)
    ]
    return "\n".join(lines[-most:])


def deadlocks(folder: Path) -> int:
    """Return how many deadlocks any server of a run has told of."""
    return sum(b"deadlock detected" in line for path in folder.glob("*/server.log") for line in _lines(path))


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("worker-*.log"), *folder.glob("api-*.log")])


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file
