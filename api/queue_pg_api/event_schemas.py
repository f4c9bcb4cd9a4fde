"""Bodies and queries of events, logs and WebSockets."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from queue_pg_api.schemas import MAX_PAGE_JOBS, Body, LeaseToken, Query, WaitSeconds


class EventsQuery(Query):
    """Where to begin in a job's events."""

    after: int = Field(0, ge=0, le=2**31 - 1, description="Only events after this number; `Last-Event-ID` wins.")
    limit: int = Field(1_000, ge=1, le=MAX_PAGE_JOBS, description="Of a JSON page: events at most.")
    wait: WaitSeconds = Field(0, description="Of a JSON page: answer when there is an event, or after these seconds.")


class LogsQuery(Query):
    """Which lines of a job's log to read."""

    from_seq: int = Field(1, ge=0, le=2**31 - 1, description="Lines with this number or a higher one.")
    limit: int = Field(100, ge=1, le=MAX_PAGE_JOBS)
    stream: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(None, description="stdout, stderr, ...")


class AttemptsQuery(Query):
    """Which attempts of a job to list."""

    after: int = Field(0, ge=0, le=2**31 - 1, description="Those that started after this event; see `next_after`.")
    limit: int = Field(100, ge=1, le=MAX_PAGE_JOBS)


class SocketQuery(Query):
    """Where a WebSocket begins in a job's events."""

    after: int = Field(0, ge=0, le=2**31 - 1)


class TopicsQuery(Query):
    """What a WebSocket observes."""

    topics: Annotated[str, Field(max_length=32_000)] | None = None


class EventInput(Body):
    type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.:-]{0,63}$")] = Field(
        description="a-z, then a-z, 0-9 and _ . : -"
    )
    data: dict[str, Any] = Field(default_factory=dict[str, Any])


class AppendBody(Body):
    lease_token: LeaseToken
    events: Annotated[list[EventInput], Field(min_length=1, max_length=1_000)]


class ProgressBody(Body):
    lease_token: LeaseToken
    progress: float | dict[str, Any] = Field(description="A fraction from 0 to 1, or an object.")


class LogBody(Body):
    lease_token: LeaseToken
    lines: Annotated[list[Annotated[str, Field(max_length=16_000)]], Field(min_length=1, max_length=1_000)]
    stream: Annotated[str, Field(min_length=1, max_length=64)] = "stdout"
