"""Say where in a body something is wrong; used on the way of refusals only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from queue_pg.payloads import MAX_DEPTH, MAX_NUMBER_DIGITS

_LARGEST = 2**1024


class _Unstorable:
    """Stands for a number that neither Python nor Postgres can hold."""


def field_path(loc: Sequence[int | str]) -> str:
    """Write a location as people do: `tags[3]`, `error.code`."""
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path[:300] or "body"


def find_unstorable(body: bytes) -> str | None:
    """Return the path of the first number that cannot be held, else of what is nested too deep; None: neither.

    The strict parser stops at such a number without knowing where it is; here it is let through and searched for.
    """
    try:
        value = json.loads(body, parse_constant=_unstorable, parse_float=_float, parse_int=_int)
    except (ValueError, RecursionError):
        return None
    deepest: Sequence[int | str] | None = None
    stack: list[tuple[Any, tuple[int | str, ...]]] = [(value, ())]
    while stack:
        item, path = stack.pop()
        if isinstance(item, _Unstorable):
            return field_path(path)
        if len(path) > MAX_DEPTH:
            deepest = path[:1]
        elif isinstance(item, dict):
            children = cast("dict[str, Any]", item).items()
            stack.extend((child, (*path, key)) for key, child in reversed(children))
        elif isinstance(item, list):
            elements = cast("Sequence[Any]", item)
            stack.extend((elements[index], (*path, index)) for index in reversed(range(len(elements))))
    return None if deepest is None else field_path(deepest)


def _unstorable(_: str) -> _Unstorable:
    return _Unstorable()


def _float(digits: str) -> float | _Unstorable:
    return 0.0 if len(digits) <= MAX_NUMBER_DIGITS and abs(float(digits)) < float("inf") else _Unstorable()


def _int(digits: str) -> int | _Unstorable:
    return 0 if len(digits) <= MAX_NUMBER_DIGITS and abs(int(digits)) < _LARGEST else _Unstorable()
