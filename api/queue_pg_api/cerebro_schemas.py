"""Bodies of Cerebro's routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from queue_pg_api.schemas import Body, ErrorInput, LeaseToken, Name

CEREBRO_QUEUE = "cerebro"


def parse_content(value: object) -> object:
    """Take what every model server takes: a text, or an array of parts."""
    if isinstance(value, str | list):
        return cast("object", value)
    raise ValueError("should be a text or an array of parts" + (", not null" if value is None else ""))


MessageContent = Annotated[
    Any,
    BeforeValidator(parse_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {}}]}),
]


class CerebroMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    role: Annotated[str, Field(min_length=1, max_length=200)]
    content: MessageContent


class CerebroSubmitBody(Body):
    """A chat job in Cerebro's words."""

    messages: Annotated[list[CerebroMessage], Field(min_length=1)]
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any], description="`priority` in it orders the job.")
    queue: Name = CEREBRO_QUEUE


class CerebroGetBody(Body):
    worker: Name | None = None
    queue: Name = CEREBRO_QUEUE


class CerebroCompleteBody(Body):
    job_id: str
    result: Any = None
    status: Literal["completed", "failed"] | None = None
    error: ErrorInput | None = None
    lease_token: LeaseToken | None = Field(
        None, description="From /get_job. May be left out only while the lease is current."
    )
