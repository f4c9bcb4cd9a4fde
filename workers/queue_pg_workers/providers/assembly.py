"""Put the chunks of a streamed chat completion together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from queue_pg_workers.providers.base import UpstreamFailure
from queue_pg_workers.providers.shapes import is_list, is_object

# Deltas repeat these instead of continuing them.
_SCALARS = frozenset({"index", "type", "role", "id", "name"})


class CompletionAssembly:
    """Collects chunks; `completion` is the object that the same request without streaming would have returned."""

    def __init__(self) -> None:
        self._envelope: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add one `chat.completion.chunk`. Raise `UpstreamFailure` for one that makes no sense."""
        choices: object = chunk.get("choices") or []
        if not is_list(choices):
            raise UpstreamFailure("upstream_invalid", "the model server sent a chunk whose choices are no list")
        for key, value in chunk.items():
            if key not in ("choices", "object") and value is not None:
                self._envelope[key] = value
        for choice in choices:
            self._add_choice(choice)

    def completion(self) -> dict[str, Any]:
        """Return the whole completion. Raise `UpstreamFailure` if the stream ended before it was whole."""
        response: dict[str, Any] = {**self._envelope, "object": "chat.completion"}
        response["choices"] = [self._choices[index] for index in sorted(self._choices)]
        require_finished(response)
        return response

    def _add_choice(self, part: object) -> None:
        if not is_object(part):
            raise UpstreamFailure("upstream_invalid", "the model server sent a choice that is no object")
        index = part.get("index", 0)
        if not isinstance(index, int):
            raise UpstreamFailure("upstream_invalid", "the model server sent a choice whose index is no number")
        whole = self._choices.setdefault(
            index, {"index": index, "message": {"role": "assistant", "content": None}, "finish_reason": None}
        )
        delta = part.get("delta")
        if is_object(delta):
            _merge(whole["message"], delta)
        for key, value in part.items():
            if key in ("index", "delta") or value is None:
                continue
            if is_object(value) and is_object(whole.get(key)):
                _merge(whole[key], value)
            else:
                whole[key] = value


def require_finished(response: Mapping[str, Any]) -> None:
    """Refuse a completion without a finish reason: a model server killed mid-answer ends its streams just so.

    Raise `UpstreamFailure` with code `upstream_truncated`, or `upstream_error` when the server says that it erred.
    """
    choices = response.get("choices")
    if not is_list(choices) or not choices:
        raise UpstreamFailure("upstream_truncated", "the model server's answer ended without a choice")
    for choice in choices:
        if not is_object(choice) or not is_object(choice.get("message")):
            raise UpstreamFailure("upstream_invalid", "the model server sent a choice without a message")
        reason = choice.get("finish_reason")
        if not reason:
            raise UpstreamFailure("upstream_truncated", "the model server's answer ended without a finish reason")
        if reason == "error":
            raise UpstreamFailure("upstream_error", "the model server ended its answer with an error")


def storable(value: Any) -> Any:
    """Replace what Postgres cannot hold in text (NUL, lone surrogates): models do emit them, and a paid answer
    must not be lost to one such character."""
    if isinstance(value, str):
        cleaned = value.replace("\x00", "\ufffd")
        return cleaned.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if is_object(value):
        return {storable(key): storable(item) for key, item in value.items()}
    if is_list(value):
        return [storable(item) for item in value]
    return value


def _merge(whole: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if value is None:
            whole.setdefault(key, None)
            continue
        known = whole.get(key)
        if key in _SCALARS or known is None:
            whole[key] = [dict(item) for item in value] if _is_indexed(value) else value
        elif isinstance(known, str) and isinstance(value, str):
            whole[key] = known + value
        elif is_object(known) and is_object(value):
            _merge(known, value)
        elif is_list(known) and is_list(value):
            _merge_lists(known, value)
        else:
            whole[key] = value


def _merge_lists(whole: list[Any], parts: list[Any]) -> None:
    if not (_is_indexed(parts) and _is_indexed(whole)):
        whole.extend(parts)
        return
    for part in parts:
        for item in whole:
            if item["index"] == part["index"]:
                _merge(item, part)
                break
        else:
            whole.append(dict(part))


def _is_indexed(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Tell whether this is a list such as `tool_calls`, whose items carry the index of what they continue."""
    return is_list(value) and all(is_object(item) and "index" in item for item in value)
