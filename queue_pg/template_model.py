"""Job templates as the library hands them out, and what callers give for them, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, cast

from queue_pg import arguments
from queue_pg.errors import InvalidJob
from queue_pg.models import NewJob
from queue_pg.payloads import decode_or_mark, encode_json
from queue_pg.submission import JobChecker, encode_checked

_MAX_PAYLOAD_BYTES: Final = 1024 * 1024
_MAX_VARIABLES_BYTES: Final = 256 * 1024
_check: Final = JobChecker(org="default", max_payload_bytes=_MAX_PAYLOAD_BYTES)
# Fields of NewJob that a submission by template may give, and what queue_pg.template_job calls them.
_OPTIONS: Final = {
    "queue": "queue",
    "priority": "priority",
    "run_at": "run_at",
    "delay": "delay_seconds",
    "max_attempts": "max_attempts",
    "timeout": "timeout_seconds",
    "expires_at": "expires_at",
    "unique_key": "unique_key",
    "tags": "tags",
    "metadata": "metadata",
    "traceparent": "traceparent",
    "batch_id": "batch_id",
    "limit_key": "limit_key",
    "cost": "cost",
    "cache": "cache",
    "cache_for": "cache_for_seconds",
    "cache_version": "cache_version",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTemplate:
    """A job template in one version. `variables` are written out: {"topic": {"type": "string"}}."""

    org: str
    name: str
    version: int
    kind: str
    queue: str
    priority: int
    max_attempts: int | None
    timeout: timedelta | None
    payload: Any
    variables: dict[str, Any]
    description: str | None
    created_at: datetime
    limit_key: str | None
    cost: int
    cache: bool | None
    cache_for: timedelta | None
    cache_version: str | None


def template(row: Mapping[str, Any]) -> JobTemplate:
    """Return the template of a row of sql/templates.sql."""
    found = dict(row)
    for name in ("timeout", "cache_for"):
        seconds = found.pop(f"{name}_seconds")
        found[name] = None if seconds is None else timedelta(seconds=seconds)
    for name in ("payload", "variables"):
        found[name] = decode_or_mark(found[name])
    return JobTemplate(**found)


def new_template(
    name: str,
    kind: str,
    payload: Any,
    *,
    variables: Mapping[str, Any] | None,
    description: str | None,
    defaults: Mapping[str, Any],
    org: str,
) -> dict[str, Any]:
    """Return the parameters of sql/put_template.sql. Raises InvalidJob naming the argument."""
    arguments.check_filters(name=name, description=description)
    given = {key: value for key, value in defaults.items() if value is not None}
    new = NewJob(kind=kind, payload=payload, **given)
    terms, text = _check(new)
    return {
        "name": name,
        "kind": terms.kind,
        "payload": text.decode(),
        "variables": encode_variables(variables),
        "queue": terms.queue,
        "priority": terms.priority,
        "max_attempts": terms.max_attempts,
        "timeout_seconds": terms.timeout_seconds,
        "description": description,
        "limit_key": terms.limit_key,
        "cost": terms.cost,
        # What does not take part has no terms of it; a submission may ask, and takes these then.
        "cache": new.cache,
        "cache_for_seconds": None if new.cache_for is None else new.cache_for.total_seconds(),
        "cache_version": new.cache_version,
        "org": org,
    }


def encode_variables(variables: Mapping[str, Any] | None, *, max_bytes: int = _MAX_VARIABLES_BYTES) -> str:
    if variables is None:
        return "{}"
    if not isinstance(cast(Any, variables), Mapping):
        raise InvalidJob("variables", "must be an object")
    return encode_json(dict(variables), field="variables", max_bytes=max_bytes)


def encode_options(options: Mapping[str, Any]) -> str:
    """Return the options of a submission as the JSON text that queue_pg.template_job takes. Raises InvalidJob."""
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in _OPTIONS:
            raise InvalidJob(key, "is no option of a job made from a template")
    for key in ("delay", "timeout", "cache_for"):
        if key in given:
            given[key] = arguments.duration(key, given[key])
    made: dict[str, Any] = json.loads(encode_checked(_check(NewJob(kind="template", **given))))
    if given.get("cache") is False:
        # As such a job has nothing about the cache; the template may ask for it.
        made["cache"] = False
    names = [_OPTIONS[key] for key in given]
    return json.dumps({name: made[name] for name in names if name in made}, ensure_ascii=False)


def check_version(version: Any) -> int | None:
    """Return a version as it is. Raises InvalidJob."""
    if version is None:
        return None
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < 2**31:
        raise InvalidJob("version", "must be a positive integer")
    return version
