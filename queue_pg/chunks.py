"""Cutting a stream of jobs into chunks small enough to hold in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Final

from queue_pg.errors import InvalidJob
from queue_pg.models import NewJob
from queue_pg.submission import CheckedJob, JobChecker

CHUNK_JOBS: Final = 500
CHUNK_BYTES: Final = 8 * 1024 * 1024


@dataclass(slots=True)
class Chunk:
    """Checked jobs that follow each other; `first` is the position of the first one in the stream, from 0."""

    first: int = 0
    jobs: list[CheckedJob] = field(default_factory=list[CheckedJob])
    size: int = 0
    last: bool = False

    @property
    def places(self) -> range:
        return range(self.first, self.first + len(self.jobs))


class _Cutter:
    def __init__(self, check: JobChecker) -> None:
        self._check = check
        self._chunk = Chunk()

    def add(self, job: NewJob) -> Chunk | None:
        """Add a job; return the chunk before it when there is no room in it."""
        chunk = self._chunk
        position = chunk.first + len(chunk.jobs)
        try:
            checked = self._check(job)
        except InvalidJob as error:
            name_position(error, position)
            raise
        size = len(checked[1])
        full = None
        if len(chunk.jobs) >= CHUNK_JOBS or (chunk.jobs and chunk.size + size > CHUNK_BYTES):
            full, chunk = chunk, Chunk(position)
            self._chunk = chunk
        chunk.jobs.append(checked)
        chunk.size += size
        return full

    def rest(self) -> Generator[Chunk]:
        if self._chunk.jobs:
            self._chunk.last = True
            yield self._chunk


def chunks_sync(jobs: Iterable[NewJob], check: JobChecker) -> Generator[Chunk]:
    """Yield checked jobs chunk by chunk; a refusal names the job: `jobs[3].payload`."""
    cutter = _Cutter(check)
    for job in jobs:
        if (full := cutter.add(job)) is not None:
            yield full
    yield from cutter.rest()


async def chunks_async(jobs: Iterable[NewJob] | AsyncIterable[NewJob], check: JobChecker) -> AsyncGenerator[Chunk]:
    """Yield checked jobs chunk by chunk; a refusal names the job: `jobs[3].payload`."""
    if not isinstance(jobs, AsyncIterable):
        for chunk in chunks_sync(jobs, check):
            yield chunk
        return
    cutter = _Cutter(check)
    async for job in jobs:
        if (full := cutter.add(job)) is not None:
            yield full
    for last in cutter.rest():
        yield last


def name_position(error: InvalidJob, position: int) -> None:
    """Name the job of a bulk submission in what is refused about it: `jobs[3].payload`."""
    error.field = f"jobs[{position}].{error.field}"
    error.message = f"{error.field}: {error.reason}"
    error.args = (error.message,)
