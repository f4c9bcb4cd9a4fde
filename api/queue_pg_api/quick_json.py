"""The fast way to read a request body: what is plainly good JSON under the rules of payloads.parse_json.

Gives up wherever only the careful way can tell, which then also says what is wrong and where.
"""

from __future__ import annotations

import json
import math
from typing import Any

from queue_pg.payloads import MAX_DEPTH

_LONGEST_INT = 18
_LONGEST_FLOAT = 300


class NotPlainError(ValueError):
    """The careful way has to look at this body."""


def parse_plain(body: bytes) -> Any:
    """Return the value of a body. Raises NotPlainError."""
    # Escapes can hide NUL and half a surrogate pair; as raw bytes both are refused below.
    if b"\\u0000" in body or b"\\ud" in body or b"\\uD" in body or body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        raise NotPlainError
    try:
        return _decode(body.decode())
    except ValueError:
        raise NotPlainError from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise NotPlainError
    return unique


def _small_int(digits: str) -> int:
    if len(digits) > _LONGEST_INT:
        raise NotPlainError
    return int(digits)


def _finite_float(digits: str) -> float:
    number = float(digits)
    if len(digits) > _LONGEST_FLOAT or math.isinf(number):
        raise NotPlainError
    return number


def _refuse(name: str) -> Any:
    raise NotPlainError(name)


_decode = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_small_int, parse_float=_finite_float, parse_constant=_refuse
).decode
