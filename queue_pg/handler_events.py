"""What a running handler says: log lines, progress, text as it is made, and events of its own.

Saying something takes next to no time: the worker gathers what its handlers say and stores it every 50 ms, sooner
while somebody reads along, and before the outcome of the attempt. When the database is away it gathers up to a bound,
and then the handlers wait.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from uuid import UUID

from queue_pg.errors import InvalidJob
from queue_pg.payloads import encode_json, sanitise_text

if TYPE_CHECKING:
    from queue_pg.tasks import HandlerLink

MAX_EVENT_BYTES: Final = 64 * 1024
MAX_LINE_CHARS: Final = 8_000
_MAX_FIELDS_BYTES: Final = 24 * 1024
# A chunk is text that must come out as it went in, so it is split and not cut.
_CHUNK_CHARS: Final = 12_000


class RunningJob(Protocol):
    """What a sink needs to know of the job that says something."""

    @property
    def job_id(self) -> UUID: ...
    @property
    def lease_token(self) -> int: ...
    @property
    def cancelled(self) -> threading.Event: ...


class EventSink(Protocol):
    """Where a worker takes in what its handlers say. `data` is JSON text. Both raise LeaseLost."""

    async def add(self, job: RunningJob, events: list[tuple[str, str]]) -> None:
        """Take events in, (type, data) each; waits while there is no room."""
        ...

    def add_blocking(self, job: RunningJob, events: list[tuple[str, str]]) -> None:
        """Take events in, for a handler in a thread."""
        ...


class SaysEvents:
    """The part of JobContext by which a handler says what it is doing."""

    __slots__ = ()

    @abstractmethod
    def linked(self) -> HandlerLink:
        """Return the handler's way to the database."""

    async def log(self, line: str, stream: str = "stdout", **fields: Any) -> None:
        """Add a line to the job's log. What Postgres cannot store is replaced; a very long line loses its middle."""
        await self._sink.add(self._job, [log_event(line, stream, fields)])

    def log_blocking(self, line: str, stream: str = "stdout", **fields: Any) -> None:
        """Do what `log` does, for a handler in a thread."""
        self._sink.add_blocking(self._job, [log_event(line, stream, fields)])

    async def progress(self, value: float | Mapping[str, Any]) -> None:
        """Tell how far the work is: a fraction from 0 to 1, or an object of your own."""
        await self._sink.add(self._job, [progress_event(value)])

    def progress_blocking(self, value: float | Mapping[str, Any]) -> None:
        """Do what `progress` does, for a handler in a thread."""
        self._sink.add_blocking(self._job, [progress_event(value)])

    async def stream(self, text: str) -> None:
        """Pass on a piece of text as it is made, such as the tokens of a model; readers put the pieces together."""
        await self._sink.add(self._job, chunk_events(text))

    def stream_blocking(self, text: str) -> None:
        """Do what `stream` does, for a handler in a thread."""
        self._sink.add_blocking(self._job, chunk_events(text))

    async def emit(self, name: str, data: Mapping[str, Any] | None = None) -> None:
        """Add an event of a type of your own (a-z, 0-9 and _ . : -). Raises InvalidJob for data that is not JSON."""
        await self._sink.add(self._job, [own_event(name, data)])

    def emit_blocking(self, name: str, data: Mapping[str, Any] | None = None) -> None:
        """Do what `emit` does, for a handler in a thread."""
        self._sink.add_blocking(self._job, [own_event(name, data)])

    @property
    def _job(self) -> RunningJob:
        return cast("RunningJob", self)

    @property
    def _sink(self) -> EventSink:
        return self.linked().events


def log_event(line: object, stream: object = "stdout", fields: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Return the event of a log line; `fields` must be JSON (InvalidJob), the rest is made storable."""
    given = dict(fields or {})
    encode_json(given, field="fields", max_bytes=_MAX_FIELDS_BYTES)
    text = sanitise_text(line, MAX_LINE_CHARS)
    return "log", encode_json({**given, "stream": sanitise_text(stream, 64) or "stdout", "line": text}, field="data")


def progress_event(value: object) -> tuple[str, str]:
    """Return the event of a fraction or an object. Raises InvalidJob."""
    if isinstance(value, Mapping):
        return own_event("progress", cast("Mapping[str, Any]", value))
    # A boolean is a number to Python, and NaN is in no range.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise InvalidJob("progress", "must be a number from 0 to 1, or an object")
    return "progress", encode_json({"fraction": value}, field="data")


def chunk_events(text: str) -> list[tuple[str, str]]:
    """Return the events of a piece of text, a long one in several."""
    safe = sanitise_text(text, max(len(text), 1))
    pieces = [safe[start : start + _CHUNK_CHARS] for start in range(0, len(safe), _CHUNK_CHARS)]
    return [("chunk", encode_json({"text": piece}, field="data")) for piece in pieces]


def own_events(events: Sequence[tuple[str, Mapping[str, Any] | None]]) -> list[tuple[str, str]]:
    """Return events of any type. Raises InvalidJob naming `events[2].data.n`."""
    made: list[tuple[str, str]] = []
    for place, event in enumerate(events):
        try:
            made.append(own_event(*event))
        except InvalidJob as error:
            error.field = f"events[{place}].{error.field}"
            error.message = f"{error.field}: {error.reason}"
            error.args = (error.message,)
            raise
    return made


def own_event(name: str, data: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return an event of any type; whether that may be appended is the database's to say."""
    return name, encode_json({} if data is None else dict(data), field="data", max_bytes=MAX_EVENT_BYTES)
