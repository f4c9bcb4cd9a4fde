"""Jobs from JSON lines: read, checked line by line, submitted in one transaction, with progress."""

from __future__ import annotations

import shutil
import sys
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from queue_pg.cli.values import parse_priority
from queue_pg.connections import connect
from queue_pg.errors import InvalidJob, SubmitError
from queue_pg.models import NewJob
from queue_pg.payloads import parse_json

if TYPE_CHECKING:
    from queue_pg.client_sync import SyncQueue

CHUNK_LINES = 500
MAX_LINE_BYTES = 33 * 1024 * 1024


_OTHERWISE = {"delay_seconds", "timeout_seconds", "cache_for_seconds", "scheduled_for"}


class JobLine(BaseModel):
    """A line of a JSON lines file: the body of `POST /jobs`."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    payload: Any = Field(default_factory=dict[str, Any])
    queue: str | None = None
    priority: int | None = None
    run_at: AwareDatetime | None = None
    scheduled_for: AwareDatetime | None = None
    delay_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_attempts: int | None = None
    timeout_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    expires_at: AwareDatetime | None = None
    unique_key: str | None = None
    limit_key: str | None = None
    cost: int | None = None
    cache: bool | None = None
    cache_for_seconds: float | None = Field(default=None, ge=0, le=3_153_600_000)
    cache_version: str | None = None
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    traceparent: str | None = None
    batch_id: UUID | None = None

    @field_validator("priority", mode="before")
    @classmethod
    def _named_priority(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse_priority(value)
        except InvalidJob as error:
            raise ValueError(error.reason) from None

    def new_job(self, given: Mapping[str, Any]) -> NewJob:
        """Return the job; what the command line gave holds where the line says nothing."""
        own: dict[str, Any] = {
            name: value
            for name, value in self.model_dump(exclude=_OTHERWISE).items()
            if value is not None or name == "payload"
        }
        if self.scheduled_for is not None:
            if self.run_at is not None:
                raise InvalidJob("scheduled_for", "is another name of run_at; give one of them.")
            own["run_at"] = self.scheduled_for
        if self.delay_seconds is not None:
            own["delay"] = timedelta(seconds=self.delay_seconds)
        if self.timeout_seconds is not None:
            own["timeout"] = timedelta(seconds=self.timeout_seconds)
        if self.cache_for_seconds is not None:
            own["cache_for"] = timedelta(seconds=self.cache_for_seconds)
        # A line's own time replaces the other way of giving one.
        base = {k: v for k, v in given.items() if not (k in {"delay", "run_at"} and own.keys() & {"delay", "run_at"})}
        return NewJob(**{**base, **own})


@dataclass(frozen=True, slots=True)
class Submitted:
    """A line's job. `created` is false when its unique key named a job that was there already."""

    line: int
    id: UUID
    created: bool


@dataclass(slots=True)
class Progress:
    """How far reading is, for the bar."""

    lines: int = 0
    bytes: int = 0


def submit_lines(
    dsn: str,
    source: str,
    *,
    kind: str | None,
    given: Mapping[str, Any],
    check: Callable[[SyncQueue, NewJob], None],
) -> list[Submitted]:
    """Submit each line of `source` (a file, or `-`), all or nothing; return the ids in the order of the lines.

    Raises InvalidJob whose message begins with the number of the line and the field.
    """
    from queue_pg.client_sync import SyncQueue

    submitted: list[Submitted] = []
    progress = Progress()
    with (
        _opened(source) as (stream, size),
        SyncQueue(dsn) as queue,
        connect(dsn, application="queue-pg submit") as connection,
        _bar(size, progress) as moved,
        connection.transaction(),
    ):
        lines = _jobs(stream, kind=kind, given=given, progress=progress)
        while chunk := list(islice(lines, CHUNK_LINES)):
            for number, job in chunk:
                with _at_line(number):
                    check(queue, job)
            submitted += _submit_chunk(queue, connection, chunk)
            moved()
    return submitted


def _submit_chunk(
    queue: SyncQueue, connection: psycopg.Connection[Any], chunk: list[tuple[int, NewJob]]
) -> list[Submitted]:
    try:
        with connection.transaction():
            done = queue.submit_many([job for _, job in chunk], connection=connection)
    except SubmitError:
        if len(chunk) == 1:
            with _at_line(chunk[0][0]):
                raise
        # Which line it was is found by halving; the savepoint has taken back what the chunk had stored.
        half = len(chunk) // 2
        return [*_submit_chunk(queue, connection, chunk[:half]), *_submit_chunk(queue, connection, chunk[half:])]
    return [Submitted(number, item.id, item.created) for (number, _), item in zip(chunk, done, strict=True)]


def _jobs(
    stream: IO[bytes], *, kind: str | None, given: Mapping[str, Any], progress: Progress
) -> Iterator[tuple[int, NewJob]]:
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES), b""), start=1):
        progress.lines, progress.bytes = number, progress.bytes + len(line)
        # Programs on Windows begin a UTF-8 file with a byte order mark.
        text = line.removeprefix(BOM_UTF8) if number == 1 else line
        if text.strip():
            with _at_line(number):
                yield number, _job(text, kind=kind, given=given)


def _job(line: bytes, *, kind: str | None, given: Mapping[str, Any]) -> NewJob:
    if kind is not None:
        return NewJob(kind=kind, payload=parse_json(line, field="payload"), **given)
    value = parse_json(line, field="line")
    if not isinstance(value, dict):
        raise InvalidJob("line", "must be a JSON object with the key kind.", hint="For bare payloads name a KIND.")
    try:
        return JobLine.model_validate(value).new_job(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        raise InvalidJob(field, _reason(first["type"], first["msg"])) from None


def _reason(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"is no field of a job. Fields: {', '.join(JobLine.model_fields)}."
    return "missing." if kind == "missing" else message.removeprefix("Value error, ")


@contextmanager
def _at_line(number: int) -> Generator[None]:
    """Put the number of the line before an error's message."""
    try:
        yield
    except SubmitError as error:
        # The library counts within what it was given, which is one job when it comes to naming.
        error.message = f"line {number}: {error.message.removeprefix('jobs[0].')}"
        error.hint = " ".join(part for part in (error.hint, "Nothing was submitted.") if part)
        raise


@contextmanager
def _opened(source: str) -> Generator[tuple[IO[bytes], int | None]]:
    """Open a file or standard input; also give its size in bytes when that is known."""
    if source == "-":
        # Copied first: the transaction must not stay open while another program takes its time to write.
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            size = copy.tell()
            copy.seek(0)
            yield copy, size or None
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(source).open("rb"))
            size = Path(source).stat().st_size
        except OSError as error:
            raise InvalidJob("jsonl", f"cannot read {source!r}: {error.strerror or error}.") from None
        yield stream, size or None


@contextmanager
def _bar(size: int | None, progress: Progress) -> Generator[Callable[[], None]]:
    """Show a progress bar on standard error when a person looks at it; give the function that moves it."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = [TextColumn("{task.fields[lines]:,} jobs"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("submit", total=size, lines=0)
        yield lambda: bar.update(task, completed=progress.bytes, lines=progress.lines)
