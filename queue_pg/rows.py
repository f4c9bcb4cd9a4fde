"""Rows into models, without ever failing on what a row holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from queue_pg.models import (
    Dependencies,
    Dependency,
    EventsRead,
    Job,
    JobEvent,
    JobState,
    KindInfo,
    LogLine,
    Step,
    StoredEvent,
)
from queue_pg.payloads import decode_or_mark

_LATEST = datetime.max.replace(tzinfo=UTC)
_EARLIEST = datetime.min.replace(tzinfo=UTC)


def job(row: Mapping[str, Any]) -> Job:
    """Return the job of a row with the columns job (JSON text), payload, result, error and metadata (JSON text)."""
    found: dict[str, Any] = json.loads(row["job"])
    timeout_seconds = found.pop("timeout_seconds")
    for name in ("run_at", "lease_expires_at", "expires_at", "created_at", "started_at", "finished_at"):
        found[name] = _moment(found[name])
    for name in ("id", "parent_id", "batch_id", "rerun_of", "cached_from"):
        found[name] = None if found[name] is None else UUID(found[name])
    found["state"] = JobState(found["state"])
    return Job(
        **found,
        timeout=timedelta(seconds=timeout_seconds),
        payload=decode_or_mark(row["payload"]),
        result=decode_or_mark(row["result"]),
        error=decode_or_mark(row["error"]),
        metadata=decode_or_mark(row["metadata"]),
    )


def step(row: Mapping[str, Any]) -> Step:
    """Return a step of a row of sql/steps.sql."""
    return Step(**{**row, "result": decode_or_mark(row["result"])})


def kind(row: Mapping[str, Any]) -> KindInfo:
    """Return a kind of a row of sql/kinds.sql."""
    return KindInfo(**{**row, "schema": decode_or_mark(row["schema"])})


def dependencies(row: Mapping[str, Any]) -> Dependencies:
    """Return the parents and children of a row of sql/dependencies.sql."""
    return Dependencies(
        parents=[_dependency(each) for each in json.loads(row["parents"])],
        children=[_dependency(each) for each in json.loads(row["children"])],
        parents_count=row["parents_count"],
        children_count=row["children_count"],
    )


def _dependency(found: Mapping[str, Any]) -> Dependency:
    return Dependency(
        id=UUID(found["id"]),
        name=found["name"],
        on_unsuccessful=found["on_unsuccessful"],
        outcome=None if found["outcome"] is None else JobState(found["outcome"]),
        state=None if found["state"] is None else JobState(found["state"]),
    )


def events_read(found: Sequence[tuple[Any, ...]], jobs: int) -> list[EventsRead | None]:
    """Return what rows of sql/read_events.sql say about each of so many jobs."""
    read: dict[int, EventsRead] = {}
    for position, org, state, followed, last_seq, *event in found:
        if position not in read:
            read[position] = EventsRead(org=org, state=JobState(state), followed=followed, last_seq=last_seq)
        if event[0] is not None:
            read[position].events.append(StoredEvent(*event))
    return [read.get(position) for position in range(1, jobs + 1)]


def event(stored: StoredEvent) -> JobEvent:
    return JobEvent(seq=stored.seq, at=stored.at, type=stored.type, data=decode_or_mark(stored.data))


def log_line(row: Mapping[str, Any]) -> LogLine:
    """Return a line of a row of sql/logs.sql; what other clients than ours logged may lack stream and line."""
    return LogLine(
        seq=row["seq"],
        at=row["at"],
        stream=row["stream"] or "stdout",
        line=row["line"] or "",
        data=decode_or_mark(row["data"]),
    )


def _moment(text: str | None) -> datetime | None:
    """Return a time as JSON shows it, in UTC; what Python's calendar lacks (infinity, BC) becomes its nearest end."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return _EARLIEST if text.startswith("-") or text.endswith("BC") else _LATEST
