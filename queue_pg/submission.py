"""A NewJob into the JSON object that `queue_pg.submit_many` takes, refusing by name what cannot be stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from queue_pg.errors import InvalidJob
from queue_pg.models import NewJob
from queue_pg.payloads import DEFAULT_MAX_PAYLOAD_BYTES, MAX_METADATA_BYTES, encode_json

MAX_NAME_CHARS: Final = 200
MAX_KEY_CHARS: Final = 255
MAX_TAGS: Final = 64
MAX_ATTEMPTS: Final = 1_000
PRIORITIES: Final = (-32_768, 32_767)
_LONGEST: Final = timedelta(days=365)
_SHORTEST: Final = timedelta(milliseconds=1)
_MAX_DELAY: Final = timedelta(days=3_650)


def encode_job(job: NewJob, *, org: str, max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES) -> str:
    """Return one element of the array for `queue_pg.submit_many` as JSON text. Raises InvalidJob, PayloadTooLarge."""
    fields: dict[str, Any] = {
        "org": _text("org", org, MAX_NAME_CHARS),
        "kind": _text("kind", job.kind, MAX_NAME_CHARS),
        "queue": _text("queue", job.queue, MAX_NAME_CHARS),
        "priority": _integer("priority", job.priority, *PRIORITIES),
        "run_at": _moment("run_at", job.run_at),
        "delay_seconds": seconds("delay", job.delay, shortest=timedelta(0), longest=_MAX_DELAY),
        "max_attempts": None
        if job.max_attempts is None
        else _integer("max_attempts", job.max_attempts, 1, MAX_ATTEMPTS),
        "timeout_seconds": seconds("timeout", job.timeout, shortest=_SHORTEST, longest=_LONGEST),
        "expires_at": _moment("expires_at", job.expires_at),
        "unique_key": None if job.unique_key is None else _text("unique_key", job.unique_key, MAX_KEY_CHARS),
        "tags": _tags(job.tags),
        "traceparent": None if job.traceparent is None else _text("traceparent", job.traceparent, MAX_KEY_CHARS),
    }
    if job.run_at is not None and job.delay is not None:
        raise InvalidJob("delay", "give either run_at or delay")
    if not isinstance(cast(Any, job.metadata), Mapping):
        raise InvalidJob("metadata", "must be an object")
    metadata = encode_json(dict(job.metadata), field="metadata", max_bytes=MAX_METADATA_BYTES)
    payload = encode_json({} if job.payload is None else job.payload, field="payload", max_bytes=max_payload_bytes)
    scalars = encode_json({name: value for name, value in fields.items() if value is not None}, field="")
    # Spliced as text: the payload is encoded once, and its size is known.
    return f'{scalars[:-1]},"metadata":{metadata},"payload":{payload}}}'


def seconds(field: str, value: timedelta | float | None, *, shortest: timedelta, longest: timedelta) -> float | None:
    """Return a duration, given as timedelta or seconds, in seconds."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(cast(Any, value), int | float) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
    else:
        raise InvalidJob(field, f"must be a timedelta or a number of seconds, not {value!r:.60}")
    if not shortest.total_seconds() <= number <= longest.total_seconds():
        raise InvalidJob(field, f"must be from {shortest} to {longest}")
    return number


def _text(field: str, value: Any, max_chars: int) -> str:
    if not isinstance(value, str):
        raise InvalidJob(field, f"must be a string, not {type(value).__name__}")
    if not 1 <= len(value) <= max_chars:
        raise InvalidJob(field, f"must have 1 to {max_chars} characters, not {len(value):,}")
    return value


def _integer(field: str, value: Any, smallest: int, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidJob(field, f"must be an integer, not {type(value).__name__}")
    if not smallest <= value <= largest:
        raise InvalidJob(field, f"must be from {smallest:,} to {largest:,}")
    return value


def _moment(field: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidJob(field, f"must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidJob(field, "must have a time zone, such as datetime.now(UTC)")
    try:
        return value.astimezone(UTC).isoformat()
    except OverflowError:
        raise InvalidJob(field, "must be a time within the years 1 to 9998") from None


def _tags(tags: Any) -> list[str]:
    if isinstance(tags, str) or not isinstance(tags, list | tuple | set | frozenset):
        raise InvalidJob("tags", "must be a list of strings")
    found = list(cast("list[Any]", tags))
    if len(found) > MAX_TAGS:
        raise InvalidJob("tags", f"has {len(found):,} entries; at most {MAX_TAGS} are kept")
    for index, tag in enumerate(found):
        _text(f"tags[{index}]", tag, MAX_NAME_CHARS)
    return found


def array(encoded: list[str]) -> str:
    """Return encoded jobs as the JSON array that `queue_pg.submit_many` takes."""
    return f"[{','.join(encoded)}]"


def encode_kinds(kinds: list[dict[str, Any]]) -> str:
    """Return rows for `queue_pg.register_kinds` as JSON text."""
    return json.dumps(kinds, ensure_ascii=True, allow_nan=False)
