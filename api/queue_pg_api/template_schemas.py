"""Bodies and queries of job templates."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from queue_pg_api.schemas import (
    MAX_PAGE_JOBS,
    Attempts,
    Body,
    CacheSeconds,
    Cost,
    Id,
    Key,
    Name,
    Priority,
    Query,
    Seconds,
    TimeoutSeconds,
    Timestamp,
)

TemplateName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]


class TemplateBody(Body):
    """A job template. The same again makes no new version."""

    name: TemplateName = Field(examples=["summary"])
    kind: Name = Field(description="Which handler runs its jobs.", examples=["chat"])
    payload: Any = Field(
        default_factory=dict[str, Any],
        description="With {{ variables.x }} in its strings.",
        examples=[{"prompt": "Summarise in {{ variables.words }} words: {{ variables.text }}"}],
    )
    variables: dict[str, Any] = Field(
        default_factory=dict[str, Any],
        description="By name: a type, or an object with it and `default`, `enum`, `minimum`, `maximum`, `max_length`.",
        examples=[{"text": "string", "words": {"type": "integer", "default": 50}}],
    )
    queue: Name = "default"
    priority: Priority = 0
    max_attempts: Attempts | None = None
    timeout_seconds: TimeoutSeconds | None = None
    limit_key: Key | None = Field(None, description="Their limit key; may hold {{ variables.x }}.")
    cost: Cost = Field(1, description="Units each attempt takes from a rate.")
    cache: bool | None = Field(None, description="Whether they may be answered by identical work, or share it.")
    cache_for_seconds: CacheSeconds | None = Field(None, description="How old such an answer may be. Asks for `cache`.")
    cache_version: Key | None = Field(None, description="Compared too: change it to forget. Asks for `cache`.")
    description: Annotated[str, Field(max_length=2_000)] | None = None


class TemplateFilter(Query):
    """Which templates to list, by name."""

    limit: int = Field(50, ge=1, le=MAX_PAGE_JOBS)
    after: TemplateName | None = Field(None, description="The last name of the page before.")


class TemplateVersion(Query):
    version: Version | None = Field(None, description="Default: the newest.")


class SubmitTemplateBody(Body):
    """A job made from a template. What is given here wins over the template's."""

    variables: dict[str, Any] = Field(default_factory=dict[str, Any])
    version: Version | None = Field(None, description="Default: the newest.")
    queue: Name | None = None
    priority: Priority | None = None
    run_at: Timestamp | None = None
    delay_seconds: Seconds | None = Field(None, description="Excludes `run_at`.")
    max_attempts: Attempts | None = None
    timeout_seconds: TimeoutSeconds | None = None
    expires_at: Timestamp | None = None
    unique_key: Key | None = None
    tags: Annotated[list[Name], Field(max_length=64)] | None = None
    metadata: dict[str, Any] | None = Field(None, description="Gets `template`: its name and version.")
    traceparent: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    batch_id: Id | None = None
    limit_key: Key | None = None
    cost: Cost | None = None
    cache: bool | None = None
    cache_for_seconds: CacheSeconds | None = None
    cache_version: Key | None = None


class SubmitByTemplateBody(SubmitTemplateBody):
    """A job made from a template, for `POST /jobs`. Kind and payload are the template's."""

    template: TemplateName = Field(examples=["summary"])
