"""What handlers tell the harness. Imported by workers in other environments: the standard library only.

Every process has one file in the folder BENCH_MARKS, named by its pid: the time of its first job (nanoseconds of the
monotonic clock, which all processes of a machine share) and how many jobs it has begun, two 64-bit integers. With
BENCH_STAMPS set it also appends to `<pid>.stamps` a pair (number, time) for each job.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

_stamping = bool(os.environ.get("BENCH_STAMPS"))
_view: memoryview[int] | None = None
_stamps = -1


def begun(n: int) -> None:
    """Count a job that begins now; `n` is its number."""
    view = _view or _open()
    view[1] += 1
    if _stamping:
        os.write(_stamps, struct.pack("<qq", n, time.monotonic_ns()))


def _open() -> memoryview[int]:
    # At the first job and not at import: the process that runs jobs may be a fork of the one that imported this.
    global _view, _stamps
    name = os.path.join(os.environ["BENCH_MARKS"], str(os.getpid()))
    _stamps = os.open(f"{name}.stamps", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    with open(f"{name}.new", "w+b") as file:
        file.truncate(16)
        _view = memoryview(mmap.mmap(file.fileno(), 16)).cast("q")
    _view[0] = time.monotonic_ns()
    os.rename(f"{name}.new", name)
    return _view
