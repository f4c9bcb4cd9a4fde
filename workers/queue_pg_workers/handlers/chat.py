"""The kind `chat`: one chat completion, kept whole."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from queue_pg.models import Fail, Snooze
from queue_pg_workers.providers.assembly import require_finished
from queue_pg_workers.providers.base import ChatRequest, MockScript, Provider, Throttled, UpstreamFailure

KIND = "chat"
DESCRIPTION = "One chat completion in OpenAI's format, from the model server that the worker is set up for."


class ChatMessage(BaseModel):
    """A message in OpenAI's format; fields beside these are passed on."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1)
    content: str | list[dict[str, Any]] | None = None


class ChatPayload(BaseModel):
    """Payload of a `chat` job: `messages` or `prompt`; any other OpenAI chat parameter is passed on.

    Where the model server is, and with which key, is the worker's setting and never the payload's.
    """

    model_config = ConfigDict(extra="allow")

    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    prompt: str | None = Field(default=None, min_length=1)
    model: str | None = Field(default=None, min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    mock: MockScript | None = Field(default=None, description="Script for the mock provider; others ignore it.")

    @model_validator(mode="after")
    def _one_of_messages_and_prompt(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        return self

    def request(self) -> ChatRequest:
        messages = (
            [{"role": "user", "content": self.prompt}]
            if self.messages is None
            else [message.model_dump(mode="json", exclude_unset=True) for message in self.messages]
        )
        parameters = self.model_dump(mode="json", exclude_none=True, exclude={"messages", "prompt", "model", "mock"})
        return ChatRequest(messages=messages, model=self.model, parameters=parameters, mock=self.mock or MockScript())


async def complete(provider: Provider, request: ChatRequest) -> dict[str, Any] | Snooze | Fail:
    """Return a whole completion, or why there is none."""
    try:
        response = await provider.complete(request)
        require_finished(response)
    except Throttled as throttled:
        return Snooze(throttled.retry_after)
    except UpstreamFailure as failure:
        details = {"provider": provider.name} | ({} if failure.status is None else {"status": failure.status})
        return Fail(failure.message, code=failure.code, retry=failure.retry, details=details)
    return response


def text_of(response: dict[str, Any]) -> str:
    content = response["choices"][0]["message"].get("content")
    return content if isinstance(content, str) else ""


async def run_chat(provider: Provider, payload: ChatPayload) -> dict[str, Any] | Snooze | Fail:
    """Return {text, response, usage, finish_reason, model, provider}, or why there is no completion."""
    return await answer(provider, payload.request())


async def answer(provider: Provider, request: ChatRequest) -> dict[str, Any] | Snooze | Fail:
    """Return what `run_chat` returns for any request."""
    response = await complete(provider, request)
    if not isinstance(response, dict):
        return response
    return {
        "text": text_of(response),
        "response": response,
        "usage": response.get("usage"),
        "finish_reason": response["choices"][0]["finish_reason"],
        "model": response.get("model"),
        "provider": provider.name,
    }
