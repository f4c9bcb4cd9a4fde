"""A handler's statements that may be sent again: an outage of less than some ten seconds does not reach the handler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from psycopg import AsyncConnection

from queue_pg.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from queue_pg.tasks import JobContext

T = TypeVar("T")
Statement = Callable[[AsyncConnection[Any]], Awaitable[T]]

_PAUSES_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 5.0)


async def run_patiently(job: JobContext, statement: Statement[T]) -> T:
    """Run a statement that does no more when it is done twice. Raises DatabaseUnavailable after a long outage."""
    pauses = _pauses(job)
    while True:
        try:
            return await job.linked().run(statement)
        except DatabaseUnavailable:
            if (pause := next(pauses, None)) is None or job.cancelled.is_set():
                raise
            await asyncio.sleep(pause)


def run_patiently_blocking(job: JobContext, statement: Statement[T]) -> T:
    """Do what `run_patiently` does, for a handler in a thread."""
    pauses = _pauses(job)
    while True:
        try:
            return job.linked().run_blocking(statement)
        except DatabaseUnavailable:
            if (pause := next(pauses, None)) is None or job.cancelled.wait(pause):
                raise


def _pauses(job: JobContext) -> Iterator[float]:
    # By the job's id: those who failed at one moment do not come back at one, and a simulation can do it again.
    jitter = Random(job.job_id.int)
    for pause in _PAUSES_SECONDS:
        yield pause * jitter.uniform(1, 1.5)
