"""Log lines of the services: text for people, or an object of JSON a line (`LOG_FORMAT=json`).

Both say what a line belongs to: inside a handler its job, inside a request its id, and the trace of either.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from queue_pg.tasks import find_current_job

LogFormat = Literal["text", "json"]
TEXT_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Where a submission that has a request's id keeps it.
REQUEST_ID_FIELD: Final = "request_id"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII | re.DOTALL)
# What every record has; all else came by `extra`.
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_MAX_TEXT_CHARS: Final = 200

_request: ContextVar[_Request | None] = ContextVar("queue_pg_request", default=None)


class _Request(NamedTuple):
    request_id: str
    trace_id: str | None
    given: bool


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the id of the trace that a W3C traceparent names."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return found[1] if found else None


@contextmanager
def correlated(*, request_id: str, traceparent: str | None = None, given: bool = False) -> Generator[None]:
    """Have log lines inside the block say which request they belong to. `given`: the id is the client's own."""
    token = _request.set(_Request(request_id, trace_id_of(traceparent), given))
    try:
        yield
    finally:
        _request.reset(token)


def with_request_id(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a job that the present request submits: with the id that its client has given it."""
    request = _request.get()
    if request is None or not request.given or REQUEST_ID_FIELD in metadata:
        return dict(metadata)
    return {**metadata, REQUEST_ID_FIELD: request.request_id}


def correlation() -> dict[str, Any]:
    """Return what the present line belongs to."""
    found: dict[str, Any] = {}
    request = _request.get()
    if request is not None:
        found["request_id"], found["trace_id"] = request.request_id, request.trace_id
    job = find_current_job()
    if job is not None:
        found |= {"job_id": str(job.job_id), "kind": job.kind, "queue": job.queue, "attempt": job.attempt}
        if isinstance(given := job.metadata.get(REQUEST_ID_FIELD), str):
            found["request_id"] = given[:_MAX_TEXT_CHARS]
        if (trace_id := trace_id_of(job.traceparent)) is not None:
            found["trace_id"] = trace_id
    return {name: value for name, value in found.items() if value is not None}


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, what it belongs to, what `extra` says, the exception."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **correlation(),
        }
        content |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            content["exception"] = record.exc_text
        if record.stack_info:
            content["stack"] = self.formatStack(record.stack_info)
        # ASCII: a line stays a line, whatever the text and the encoding of the stream.
        try:
            return json.dumps(content, default=_text, skipkeys=True, allow_nan=False)
        except (ValueError, RecursionError):  # not a number, or a value that holds itself
            return json.dumps({name: _text(value) for name, value in content.items()})


class TextFormatter(logging.Formatter):
    """As `TEXT_FORMAT`; inside a handler the line ends with its job."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        line = super().formatMessage(record)
        found = correlation()
        if "job_id" not in found:
            return line
        # An id that somebody has put into the metadata by another way than HTTP may hold anything.
        request_id = found.get("request_id", "")
        request = f" request={request_id}" if request_id and request_id.isprintable() else ""
        return f"{line} [job={found['job_id']} attempt={found['attempt']}{request}]"


def formatter(log_format: LogFormat = "text") -> logging.Formatter:
    """Return the formatter of a format; for `logging.config.dictConfig` too."""
    return JsonFormatter() if log_format == "json" else TextFormatter()


def configure(log_format: LogFormat, level: str) -> None:
    """Log to stderr, unless the process has set up logging already."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format))
    root.addHandler(handler)
    root.setLevel(level)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"
