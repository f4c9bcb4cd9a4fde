"""What the kind `chat` asks of a provider, and the ways a model server can disappoint it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_RETRY_AFTER_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 3600.0

THROTTLING_STATUSES = frozenset({429, 503, 529})
RETRYABLE_STATUSES = frozenset({408, 409, 425})


class MockScript(BaseModel):
    """What the mock provider shall do with one request; other providers ignore it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency_seconds: float = Field(default=0, ge=0, le=86_400)
    tokens: int | None = Field(default=None, ge=0, le=100_000)
    text: str | None = None
    status: int | None = Field(default=None, ge=400, le=599)
    retry_after: float | None = Field(default=None, ge=0)
    truncate: bool = False
    garbage: bool = False
    hang: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One chat completion to get. `parameters` are further OpenAI chat parameters, passed on as they are."""

    messages: list[dict[str, Any]]
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mock: MockScript = field(default_factory=MockScript)


class Provider(Protocol):
    """A source of chat completions."""

    @property
    def name(self) -> str: ...

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Return a whole `chat.completion` object in which every choice has a finish reason.

        Raise `Throttled` or `UpstreamFailure`. Being cancelled closes the request upstream.
        """
        ...

    async def aclose(self) -> None: ...


class Throttled(Exception):
    """The model server asks us to come back later; that is nobody's failure."""

    def __init__(self, retry_after: timedelta) -> None:
        super().__init__(f"the model server asks to wait {retry_after.total_seconds():g} s")
        self.retry_after = retry_after


class UpstreamFailure(Exception):
    """The model server gave no usable completion. `retry` is false when asking again would be refused again."""

    def __init__(self, code: str, message: str, *, status: int | None = None, retry: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.retry = retry


def failure_for_status(status: int, message: str, headers: Mapping[str, str] | None = None) -> Exception:
    """Return the error that an upstream HTTP status stands for."""
    if status in THROTTLING_STATUSES:
        return Throttled(retry_after(headers or {}))
    if 400 <= status < 500 and status not in RETRYABLE_STATUSES:
        return UpstreamFailure("upstream_refused", message, status=status, retry=False)
    return UpstreamFailure("upstream_error", message, status=status)


def retry_after(headers: Mapping[str, str]) -> timedelta:
    """Read `retry-after-ms` or `Retry-After` (seconds or an HTTP date), bounded to an hour.

    Without a readable one: about ten seconds, jittered so that a throttled fleet does not come back as one.
    """
    seconds = asked_seconds(headers)
    if seconds is None:
        seconds = DEFAULT_RETRY_AFTER_SECONDS * random.uniform(0.75, 1.5)
    return timedelta(seconds=min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS))


def asked_seconds(given: Mapping[str, str]) -> float | None:
    """Return for how long `retry-after-ms` or `Retry-After` ask to wait, which may be negative; None: they don't."""
    headers = {name.lower(): value for name, value in given.items()}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if seconds == seconds:  # not NaN
            return seconds
    try:
        when = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError, TypeError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    # Not the database's clock on purpose: an HTTP date is meant for the client that reads it.
    return (when - datetime.now(UTC)).total_seconds()
