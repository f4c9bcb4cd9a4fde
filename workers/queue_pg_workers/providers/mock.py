"""A provider without a model: deterministic answers, and every misbehaviour of a real server on request."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from typing import Any

from queue_pg_workers.providers.base import ChatRequest, UpstreamFailure, failure_for_status
from queue_pg_workers.providers.shapes import is_list, is_object

DEFAULT_MODEL = "mock-1"
_ANSWER_CHARS = 400
_SUMMARY = re.compile(r"\b(summar|tl;?dr|in one sentence|in a sentence)", re.IGNORECASE)
_INSTRUCTION_END = re.compile(r":\s|\n\s*\n")
_LIST = re.compile(r"\bJSON (array|list) of strings\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(A-Z0-9])")
_WORDS = ("the", "queue", "holds", "what", "you", "asked", "and", "answers", "in", "its", "own", "time")


class MockProvider:
    """Answers from the prompt alone; the same request gets the same answer, id included."""

    name = "mock"

    def __init__(self, *, model: str = DEFAULT_MODEL) -> None:
        self._model = model

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        script = request.mock
        if script.hang:
            await asyncio.Event().wait()
        if script.latency_seconds:
            await asyncio.sleep(script.latency_seconds)
        if script.status is not None:
            headers = {} if script.retry_after is None else {"retry-after": str(script.retry_after)}
            raise failure_for_status(script.status, f"the mock provider was told to answer {script.status}", headers)
        if script.garbage:
            raise UpstreamFailure("upstream_invalid", "the mock provider was told to answer garbage")
        if script.truncate:
            raise UpstreamFailure("upstream_truncated", "the mock provider was told to end without a finish reason")
        return self._completion(request)

    async def aclose(self) -> None:
        return None

    def _completion(self, request: ChatRequest) -> dict[str, Any]:
        script = request.mock
        if script.text is not None:
            text = script.text
        elif script.tokens is not None:
            text = " ".join(_WORDS[position % len(_WORDS)] for position in range(script.tokens))
        else:
            text = answer_to(_prompt_of(request.messages), instructions=_instructions_of(request.messages))
        finish_reason = "stop"
        limit = request.parameters.get("max_completion_tokens", request.parameters.get("max_tokens"))
        words = text.split(" ")
        if isinstance(limit, int) and limit < len(words):
            text, finish_reason = " ".join(words[:limit]), "length"
        prompt_tokens = sum(len(_text_of(message).split()) for message in request.messages)
        completion_tokens = len(text.split())
        digest = hashlib.sha256(json.dumps(request.messages, sort_keys=True, default=str).encode("utf-8", "replace"))
        return {
            "id": f"chatcmpl-mock-{digest.hexdigest()[:24]}",
            "object": "chat.completion",
            "created": 0,
            "model": request.model or self._model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": finish_reason,
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }


def answer_to(prompt: str, *, instructions: str = "") -> str:
    """Return a short plausible answer: the first sentence of the text that prompt or instructions want summarised.

    Where the instructions ask for a JSON list it is one.
    """
    if _LIST.search(instructions):
        subject = _first_sentence(prompt)
        return json.dumps([f"{part}: {subject}" for part in ("Prepare", "Carry out", "Check")])
    head, *body = _INSTRUCTION_END.split(prompt, maxsplit=1)
    if body and body[0].strip() and (_SUMMARY.search(head) or _SUMMARY.search(instructions)):
        return _first_sentence(body[0])
    if _SUMMARY.search(instructions):
        return _first_sentence(prompt)
    return f"You asked: {_first_sentence(prompt)}"


def _first_sentence(text: str) -> str:
    paragraph = next((part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()), "")
    flat = " ".join(paragraph.split())
    return _SENTENCE_END.split(flat, maxsplit=1)[0][:_ANSWER_CHARS]


def _instructions_of(messages: list[dict[str, Any]]) -> str:
    return "\n".join(_text_of(message) for message in messages if message.get("role") in ("system", "developer"))


def _prompt_of(messages: list[dict[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user":
            return _text_of(message)
    return _text_of(messages[-1]) if messages else ""


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if is_list(content):
        texts = (part.get("text") for part in content if is_object(part))
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""
