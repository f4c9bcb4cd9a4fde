"""Completions from any OpenAI-compatible server (OpenAI, vLLM, Ollama, ...) by the official SDK."""

from __future__ import annotations

from typing import Any, cast

import openai
from openai import AsyncOpenAI

from queue_pg_workers.providers.assembly import CompletionAssembly, require_finished, storable
from queue_pg_workers.providers.base import ChatRequest, Throttled, UpstreamFailure, failure_for_status
from queue_pg_workers.providers.shapes import is_object

CONNECT_TIMEOUT_SECONDS = 10.0
# Silence bound, to the first token and between two; the whole call is bounded by the job's timeout.
READ_TIMEOUT_SECONDS = 300.0

# How we speak to the server is ours to say, not the payload's.
_OURS = frozenset({"stream", "stream_options", "messages", "model"})


class OpenAIProvider:
    """Streams each completion, because only a stream shows that an answer was cut off, and puts it together."""

    name = "openai"

    def __init__(self, *, api_key: str | None, base_url: str | None, model: str) -> None:
        self._model = model
        self._client = AsyncOpenAI(
            # Local servers need no key, but the SDK insists on one.
            api_key=api_key or "none",
            base_url=base_url,
            # The queue retries, with its own backoff and its own count of attempts.
            max_retries=0,
            timeout=openai.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        )

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        try:
            response: dict[str, Any] = storable(await self._request(request))
            return response
        except (Throttled, UpstreamFailure):
            raise
        except openai.APIStatusError as error:
            raise failure_for_status(error.status_code, _message_of(error), error.response.headers) from error
        except openai.APITimeoutError as error:
            raise UpstreamFailure("upstream_timeout", "the model server did not answer in time") from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = f"no connection to the model server, or it broke: {type(cause).__name__}: {cause}"
            raise UpstreamFailure("upstream_unreachable", reason) from error
        except openai.APIError as error:
            raise _failure_in_body(error.body, error.message) from error
        except ValueError as error:
            raise UpstreamFailure("upstream_invalid", f"the model server sent what is no JSON: {error}") from error

    async def aclose(self) -> None:
        await self._client.close()

    async def _request(self, request: ChatRequest) -> dict[str, Any]:
        parameters = {name: value for name, value in request.parameters.items() if name not in _OURS}
        streaming = self._client.chat.completions.with_streaming_response.create(
            model=request.model or self._model,
            messages=cast("Any", request.messages),
            stream=True,
            stream_options={"include_usage": True},
            extra_body=parameters,
        )
        # Leaving the block closes the response, so a cancelled handler ends the generation upstream too.
        async with streaming as response:
            if "json" in response.headers.get("content-type", ""):
                return _whole(await response.json())
            assembly = CompletionAssembly()
            async for chunk in await response.parse():
                assembly.add(_fields_of(chunk))
            return assembly.completion()


def _whole(body: object) -> dict[str, Any]:
    """Take an answer that came in one piece: an error in a 200, or a server that does not stream."""
    if not is_object(body):
        raise UpstreamFailure("upstream_invalid", "the model server answered with something that is no completion")
    if body.get("error"):
        raise _failure_in_body(body["error"], "the model server answered 200 with an error")
    require_finished(body)
    return body


def _failure_in_body(error: object, default_message: str) -> Exception:
    """Return what an error object in a body or stream stands for; some servers put the status into its `code`."""
    fields: dict[str, Any] = error if is_object(error) else {"message": error}
    message = fields.get("message")
    if not isinstance(message, str):
        message = default_message
    code = fields.get("code")
    status = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else None
    if status is not None and 400 <= status <= 599:
        return failure_for_status(status, message)
    return UpstreamFailure("upstream_error", message)


def _message_of(error: openai.APIStatusError) -> str:
    message = error.body.get("message") if is_object(error.body) else None
    return f"{error.status_code}: {message}" if isinstance(message, str) and message else error.message


def _fields_of(chunk: object) -> dict[str, Any]:
    """Return the chunk as the server sent it, with fields that the SDK does not know."""
    if not isinstance(chunk, openai.BaseModel):
        raise UpstreamFailure("upstream_invalid", "the model server sent a chunk that is no object")
    return chunk.to_dict(mode="json", use_api_names=True, exclude_unset=True)
