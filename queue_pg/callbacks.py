"""Callbacks of batches and what else callers give about a batch, checked before Postgres is asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping
from typing import Any, Final, cast

from queue_pg import arguments
from queue_pg.batch_model import BatchState
from queue_pg.errors import InvalidJob
from queue_pg.models import NewJob
from queue_pg.payloads import MAX_METADATA_BYTES, encode_json
from queue_pg.submission import MAX_NAME_CHARS, JobChecker, encode_checked

MAX_CALLBACK_BYTES: Final = 64 * 1024
WEBHOOK: Final = "webhook"
_FIELDS: Final = frozenset(
    {
        *(
            "kind",
            "payload",
            "queue",
            "priority",
            "delay",
            "max_attempts",
            "timeout",
            "tags",
            "metadata",
            "traceparent",
        ),
        *("limit_key", "cost"),
    }
)
_SECONDS: Final = {"delay_seconds": "delay", "timeout_seconds": "timeout"}
_check: Final = JobChecker(org="default", max_payload_bytes=MAX_CALLBACK_BYTES)


def encode(field: str, callback: NewJob | Mapping[str, Any] | str | None) -> str | None:
    """Return a callback as the JSON text that `queue_pg.create_batch` takes. Raises InvalidJob, `on_all.payload`."""
    if callback is None:
        return None
    job = _job(field, callback)
    for name in ("unique_key", "run_at", "expires_at", "batch_id"):
        if getattr(job, name) is not None:
            raise InvalidJob(f"{field}.{name}", "is no field of a callback")
    if job.payload is not None and not isinstance(job.payload, dict):
        raise InvalidJob(f"{field}.payload", "must be an object: the batch is added to it")
    try:
        made: dict[str, Any] = json.loads(encode_checked(_check(job)))
    except InvalidJob as error:
        error.field = f"{field}.{error.field}"
        error.message = f"{error.field}: {error.reason}"
        error.args = (error.message,)
        raise
    # The batch's own.
    del made["org"]
    return encode_json(made, field=field, max_bytes=MAX_CALLBACK_BYTES)


def _job(field: str, callback: NewJob | Mapping[str, Any] | str) -> NewJob:
    if isinstance(callback, NewJob):
        return callback
    if isinstance(callback, str):
        if callback.lower().startswith(("http://", "https://")):
            return NewJob(kind=WEBHOOK, payload={"url": callback})
        return NewJob(kind=callback)
    if not isinstance(cast(Any, callback), Mapping):
        raise InvalidJob(field, "must be a kind, a URL, a NewJob or a mapping with the fields of one")
    given: dict[str, Any] = {}
    for name, value in callback.items():
        known = _SECONDS.get(name, name)
        if known not in _FIELDS or known in given:
            raise InvalidJob(f"{field}.{name}", "is no field of a callback")
        if known in ("delay", "timeout"):
            try:
                value = arguments.duration(known, value)
            except InvalidJob as error:
                raise InvalidJob(f"{field}.{name}", error.reason) from None
        # As in a submission, null means the default.
        if value is not None:
            given[known] = value
    if "kind" not in given:
        raise InvalidJob(f"{field}.kind", "must be given")
    return NewJob(**given)


def check_name(name: Any) -> str | None:
    """Return the name of a batch as it is. Raises InvalidJob."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise InvalidJob("name", f"must be a string, not {type(name).__name__}")
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise InvalidJob("name", f"must have 1 to {MAX_NAME_CHARS} characters, not {len(name):,}")
    encode_json(name, field="name")
    return name


def encode_metadata(metadata: Mapping[str, Any] | None) -> str:
    if metadata is None:
        return "{}"
    if not isinstance(cast(Any, metadata), Mapping):
        raise InvalidJob("metadata", "must be an object")
    return encode_json(dict(metadata), field="metadata", max_bytes=MAX_METADATA_BYTES)


def batch_state(value: BatchState | str | None) -> str | None:
    if value is None:
        return None
    try:
        return str(BatchState(value))
    except ValueError:
        raise InvalidJob("state", f"must be one of {', '.join(BatchState)}") from None


def each_sync(jobs: Iterable[NewJob], change: Callable[[NewJob], NewJob]) -> Iterable[NewJob]:
    """Return the jobs changed; a collection stays one, anything else is read when it is needed."""
    if isinstance(jobs, Collection):
        return [change(job) for job in jobs]
    return (change(job) for job in jobs)


def each_async(
    jobs: Iterable[NewJob] | AsyncIterable[NewJob], change: Callable[[NewJob], NewJob]
) -> Iterable[NewJob] | AsyncIterable[NewJob]:
    """Do what `each_sync` does, for an async generator too."""
    if isinstance(jobs, AsyncIterable):
        return (change(job) async for job in jobs)
    return each_sync(jobs, change)
