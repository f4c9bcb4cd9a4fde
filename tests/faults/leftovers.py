"""Processes that a run has started and that are still there, however far they have gone from who started them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

# Whatever a run starts inherits this from the process that makes it, and hands it on.
MARK: Final = "FAULTS_RUN"


def mark() -> str:
    """Have all that this process starts from now on be known by what is returned."""
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    return os.environ[MARK]


def handed_on() -> dict[str, str]:
    """Return the mark, for those who are given an environment of their own."""
    return {MARK: os.environ[MARK]} if MARK in os.environ else {}


def processes(run: str, cluster: Path) -> list[int]:
    """Return the processes with this mark, and those of servers with data at `cluster` or beside it, named after it."""
    marked = f"{MARK}={run}".encode()
    return [pid for pid in _others() if marked in _environment(pid) or _folder(pid).startswith(str(cluster.resolve()))]


def _others() -> Iterator[int]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and int(path.name) != os.getpid():
            yield int(path.name)


def _environment(pid: int) -> list[bytes]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def _folder(pid: int) -> str:
    # Servers write their titles over their environment, and work where their data are.
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/cwd").readlink())
    return ""
