"""A NewJob checked, refusing by name what cannot be stored, and written as `queue_pg.submit_many` takes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

from queue_pg.errors import InvalidJob, PayloadTooLarge
from queue_pg.models import NewJob
from queue_pg.payloads import DEFAULT_MAX_PAYLOAD_BYTES, MAX_METADATA_BYTES, encode_json
from queue_pg.plain_json import plain_json

MAX_NAME_CHARS: Final = 200
MAX_KEY_CHARS: Final = 255
MAX_TAGS: Final = 64
MAX_ATTEMPTS: Final = 1_000
MAX_COST: Final = 1_000_000
PRIORITIES: Final = (-32_768, 32_767)
_LONGEST: Final = timedelta(days=365)
_SHORTEST: Final = timedelta(milliseconds=1)
_MAX_DELAY: Final = timedelta(days=3_650)
_MAX_CACHE_FOR: Final = timedelta(days=36_500)
_TERMS_KEPT: Final = 1_000
_COMPACT: Final[dict[str, Any]] = {"ensure_ascii": False, "separators": (",", ":")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Everything about a job except its payload, checked. Jobs that differ in their payload alone share one."""

    org: str
    kind: str
    queue: str
    priority: int
    run_at: datetime | None
    delay_seconds: float | None
    max_attempts: int | None
    timeout_seconds: float | None
    expires_at: datetime | None
    unique_key: str | None
    tags: list[str]
    traceparent: str | None
    batch_id: UUID | None
    limit_key: str | None
    cost: int
    metadata: str
    caches: bool = False
    cache_for_seconds: float | None = None
    cache_version: str | None = None


CheckedJob = tuple[Terms, bytes]
"""What to store: the terms, and the payload as JSON in UTF-8."""


class JobChecker:
    """Checks jobs of one tenant. Raises InvalidJob and PayloadTooLarge."""

    def __init__(self, *, org: str, max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES) -> None:
        self._org = org
        self._max_payload_bytes = max_payload_bytes
        self._plain_terms: dict[tuple[str, str, int, str | None, UUID | str | None, str | None, int], Terms] = {}

    def __call__(self, job: NewJob) -> CheckedJob:
        terms = self._terms(job)
        value: Any = {} if job.payload is None else job.payload
        payload = plain_json(value)
        if payload is None:
            payload = encode_json(value, field="payload", max_bytes=self._max_payload_bytes).encode()
        elif len(payload) > self._max_payload_bytes:
            raise PayloadTooLarge("payload", len(payload), self._max_payload_bytes)
        return terms, payload

    def _terms(self, job: NewJob) -> Terms:
        # True is equal to 1 as a key, and neither a priority nor a cost.
        if not _is_plain(job) or type(job.priority) is not int or type(job.cost) is not int:
            return _checked_terms(job, self._org)
        names = job.kind, job.queue, job.priority, job.traceparent, job.batch_id, job.limit_key, job.cost
        try:
            known = self._plain_terms.get(names)
        except TypeError:  # what has no hash is no name
            known = None
        if known is None:
            known = _checked_terms(job, self._org)
            if len(self._plain_terms) >= _TERMS_KEPT:
                self._plain_terms.clear()
            self._plain_terms[names] = known
        return known


def encode_checked(job: CheckedJob) -> str:
    """Return one element of the array for `queue_pg.submit_many` as JSON text."""
    terms, payload = job
    fields: dict[str, Any] = {
        "org": terms.org,
        "kind": terms.kind,
        "queue": terms.queue,
        "priority": terms.priority,
        "run_at": None if terms.run_at is None else terms.run_at.isoformat(),
        "delay_seconds": terms.delay_seconds,
        "max_attempts": terms.max_attempts,
        "timeout_seconds": terms.timeout_seconds,
        "expires_at": None if terms.expires_at is None else terms.expires_at.isoformat(),
        "unique_key": terms.unique_key,
        "tags": terms.tags,
        "traceparent": terms.traceparent,
        "batch_id": None if terms.batch_id is None else str(terms.batch_id),
        "limit_key": terms.limit_key,
        "cost": None if terms.cost == 1 else terms.cost,
        "cache": terms.caches or None,
        "cache_for_seconds": terms.cache_for_seconds,
        "cache_version": terms.cache_version,
    }
    scalars = json.dumps({name: value for name, value in fields.items() if value is not None}, **_COMPACT)
    # Spliced as text: the payload is encoded once, and its size is known.
    return f'{scalars[:-1]},"metadata":{terms.metadata},"payload":{payload.decode()}}}'


def encode_array(jobs: Sequence[CheckedJob]) -> str:
    """Return jobs as the JSON array that `queue_pg.submit_many` takes."""
    return f"[{','.join([encode_checked(job) for job in jobs])}]"


def _is_plain(job: NewJob) -> bool:
    """Tell whether nothing but payload, kind, queue, priority and what hardly costs a check is given."""
    metadata: Any = job.metadata
    return (
        job.unique_key is None
        and job.run_at is None
        and job.delay is None
        and job.max_attempts is None
        and job.timeout is None
        and job.expires_at is None
        and type(job.tags) in (tuple, list)
        and not job.tags
        and type(metadata) is dict
        and not metadata
        and job.key is None
        and not job.depends_on
        and job.cache is None
        and job.cache_for is None
        and job.cache_version is None
    )


def _checked_terms(job: NewJob, org: str) -> Terms:
    if job.key is not None or job.depends_on:
        # Many jobs are stored in pieces, and what refers to each other has to be stored at once: see graph.py.
        raise InvalidJob("depends_on" if job.depends_on else "key", "is for one job or for a graph of jobs")
    terms = Terms(
        org=_text("org", org, MAX_NAME_CHARS),
        kind=_text("kind", job.kind, MAX_NAME_CHARS),
        queue=_text("queue", job.queue, MAX_NAME_CHARS),
        priority=_integer("priority", job.priority, *PRIORITIES),
        run_at=_moment("run_at", job.run_at),
        delay_seconds=seconds("delay", job.delay, shortest=timedelta(0), longest=_MAX_DELAY),
        max_attempts=None if job.max_attempts is None else _integer("max_attempts", job.max_attempts, 1, MAX_ATTEMPTS),
        timeout_seconds=seconds("timeout", job.timeout, shortest=_SHORTEST, longest=_LONGEST),
        expires_at=_moment("expires_at", job.expires_at),
        unique_key=None if job.unique_key is None else _text("unique_key", job.unique_key, MAX_KEY_CHARS),
        tags=_tags(job.tags),
        traceparent=None if job.traceparent is None else _text("traceparent", job.traceparent, MAX_KEY_CHARS),
        batch_id=_batch_id(job.batch_id),
        limit_key=None if job.limit_key is None else _text("limit_key", job.limit_key, MAX_KEY_CHARS),
        cost=_integer("cost", job.cost, 0, MAX_COST),
        metadata=_metadata(job.metadata),
        **_cache_terms(job),
    )
    if job.run_at is not None and job.delay is not None:
        raise InvalidJob("delay", "give either run_at or delay")
    return terms


def _cache_terms(job: NewJob) -> dict[str, Any]:
    if job.cache is not None and not isinstance(cast(Any, job.cache), bool):
        raise InvalidJob("cache", "must be true or false; how old an answer may be is said by cache_for")
    age = seconds("cache_for", job.cache_for, shortest=timedelta(0), longest=_MAX_CACHE_FOR)
    version = None if job.cache_version is None else _text("cache_version", job.cache_version, MAX_KEY_CHARS)
    # What does not take part says nothing about it, and is stored like any other.
    return {"caches": True, "cache_for_seconds": age, "cache_version": version} if job.caches else {}


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
    if not (value.isascii() and value.isprintable()):
        encode_json(value, field=field)
    return value


def _integer(field: str, value: Any, smallest: int, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidJob(field, f"must be an integer, not {type(value).__name__}")
    if not smallest <= value <= largest:
        raise InvalidJob(field, f"must be from {smallest:,} to {largest:,}")
    return value


def _moment(field: str, value: Any) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidJob(field, f"must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidJob(field, "must have a time zone, such as datetime.now(UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidJob(field, "must be a time within the years 1 to 9998") from None


def _batch_id(value: Any) -> UUID | None:
    if value is None or isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise InvalidJob("batch_id", "must be the id of a batch") from None


def _tags(tags: Any) -> list[str]:
    if isinstance(tags, str) or not isinstance(tags, list | tuple | set | frozenset):
        raise InvalidJob("tags", "must be a list of strings")
    found = list(cast("list[Any]", tags))
    if len(found) > MAX_TAGS:
        raise InvalidJob("tags", f"has {len(found):,} entries; at most {MAX_TAGS} are kept")
    return [_text(f"tags[{index}]", tag, MAX_NAME_CHARS) for index, tag in enumerate(found)]


def _metadata(metadata: Mapping[str, Any]) -> str:
    if not isinstance(cast(Any, metadata), Mapping):
        raise InvalidJob("metadata", "must be an object")
    return encode_json(dict(metadata), field="metadata", max_bytes=MAX_METADATA_BYTES)


def encode_kinds(kinds: list[dict[str, Any]]) -> str:
    """Return rows for `queue_pg.register_kinds` as JSON text."""
    return json.dumps(kinds, ensure_ascii=True, allow_nan=False)
