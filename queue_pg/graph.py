"""Jobs that wait for others, written as `queue_pg.submit_graph` takes them; refusals name the job and the field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast
from uuid import UUID

from queue_pg.chunks import name_position
from queue_pg.errors import InvalidJob
from queue_pg.models import Job, NewJob, Parent, ParentRef, Parents, Submitted
from queue_pg.submission import JobChecker, encode_checked

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")
_POLICIES: Final = ("cancel", "run", "fail")


def is_part(job: NewJob) -> bool:
    """Tell whether a job waits for others or may be waited for by its key."""
    return job.key is not None or bool(job.depends_on)


def parents_of(depends_on: Parents) -> list[Parent]:
    """Return what `depends_on` says, each as a Parent. Raises InvalidJob."""
    given: Any = depends_on
    if isinstance(given, Mapping):
        named = cast("Mapping[Any, ParentRef]", given)
        return [replace(_parent(ref, place), name=name) for place, (name, ref) in enumerate(named.items())]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidJob("depends_on", "must be a list of jobs, or an object of them by name")
    return [_parent(ref, place) for place, ref in enumerate(cast("Sequence[ParentRef]", given))]


def encode_one(job: NewJob, check: JobChecker) -> str:
    """Return a single job as JSON array."""
    return f"[{_encode(job, check)}]"


def encode_graph(jobs: Iterable[NewJob], check: JobChecker) -> str:
    """Return jobs as JSON array; a refusal names the job: `jobs[3].payload`."""
    encoded: list[str] = []
    for position, job in enumerate(jobs):
        try:
            encoded.append(_encode(job, check))
        except InvalidJob as error:
            name_position(error, position)
            raise
    return f"[{','.join(encoded)}]"


def _encode(job: NewJob, check: JobChecker) -> str:
    text = encode_checked(check(replace(job, key=None, depends_on=())))
    links: dict[str, Any] = {}
    if job.key is not None:
        links["key"] = _name("key", job.key)
    if job.depends_on:
        links["depends_on"] = [_entry(parent, place) for place, parent in enumerate(parents_of(job.depends_on))]
    return f"{text[:-1]},{json.dumps(links)[1:]}" if links else text


def _entry(parent: Parent, place: int) -> dict[str, str]:
    field = f"depends_on[{place}]"
    entry = {"job": _reference(parent.job, field)}
    if parent.name is not None:
        entry["name"] = _name(f"{field}.name", parent.name)
    if parent.on_unsuccessful not in _POLICIES:
        raise InvalidJob(f"{field}.on_unsuccessful", f"must be one of {', '.join(_POLICIES)}")
    entry["on_unsuccessful"] = parent.on_unsuccessful
    return entry


def _parent(ref: ParentRef, place: int) -> Parent:
    if isinstance(ref, Parent):
        return ref
    if isinstance(cast(Any, ref), UUID | str | Job | Submitted):
        return Parent(ref)
    raise InvalidJob(f"depends_on[{place}]", f"must be a job, its id or its key, not {type(ref).__name__}")


def _reference(job: Any, field: str) -> str:
    if isinstance(job, Job | Submitted):
        return str(job.id)
    if isinstance(job, UUID):
        return str(job)
    if isinstance(job, str) and (_NAME.match(job) or _is_id(job)):
        return job
    raise InvalidJob(field, "must be the id of a job, or a key of 1 to 100 letters, digits, _ or -")


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _name(field: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.match(value):
        raise InvalidJob(field, "must have 1 to 100 letters, digits, _ or -")
    return value
