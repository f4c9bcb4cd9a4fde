"""CPU time and memory of processes, read from /proc (Linux only)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stat:
    """One process: its parent, its own CPU seconds and those of its ended and awaited children."""

    pid: int
    parent: int
    own_seconds: float
    children_seconds: float


def stat(pid: int) -> Stat | None:
    """Read one process; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return Stat(pid, int(fields[1]), own / TICKS, children / TICKS)


def tree(root: int) -> list[Stat]:
    """Return a process and all that descend from it."""
    everyone = [found for pid in _pids() if (found := stat(pid)) is not None]
    members = {root}
    while True:
        more = {one.pid for one in everyone if one.parent in members} - members
        if not more:
            return [one for one in everyone if one.pid in members]
        members |= more


def cpu_seconds(root: int) -> float:
    """Return user and system seconds of a process and its descendants, ended ones included once they were awaited."""
    return sum(one.own_seconds + one.children_seconds for one in tree(root))


def rss_bytes(pid: int, *, peak: bool = False) -> int:
    """Return a process's resident memory, or its highest so far; 0 when it is gone."""
    field = "VmHWM:" if peak else "VmRSS:"
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


def largest_rss_bytes(root: int, *, peak: bool = False) -> int:
    """Return the memory of the largest process of a tree."""
    return max((rss_bytes(one.pid, peak=peak) for one in tree(root)), default=0)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
