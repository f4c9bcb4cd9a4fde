"""The fast way into JSON, for values made of Python's plain types.

It gives the same text under the same rules as payloads.encode_json, or gives up: whatever is not plainly fine is left
to the careful way, which also knows how to say what is wrong.
"""

from __future__ import annotations

from typing import Final, cast

from pydantic_core import to_json

from queue_pg.payloads import MAX_DEPTH

_SMALL_INT: Final = 10**18
# Between these, and for zero, everybody writes a float without an exponent; beyond, the careful way turns whole floats
# into ints.
_LEAST_FLOAT: Final = 1e-4
_EXACT_FLOAT: Final = 1e16


def plain_json(value: object) -> bytes | None:
    """Return `value` as compact JSON in UTF-8, or None where only encode_json can tell whether it may be stored."""
    if not _is_plain(value, MAX_DEPTH):
        return None
    try:
        text = to_json(value)
    except ValueError:  # a lone surrogate, or deeper than it goes
        return None
    return None if b"\\u0000" in text else text


def _is_plain(value: object, levels: int) -> bool:
    """Tell whether a value is of plain types and small numbers, at most `levels` containers deep.

    Exact types, because a subclass may write itself in its own way. The most common children are looked at in place.
    """
    kind = type(value)
    if kind is dict:
        if levels == 0:
            return False
        for key, child in cast("dict[object, object]", value).items():
            if type(key) is not str:
                return False
            inner = type(child)
            if inner is not str and inner is not bool and child is not None and not _is_plain(child, levels - 1):
                return False
        return True
    if kind is list:
        if levels == 0:
            return False
        return all(type(child) is str or _is_plain(child, levels - 1) for child in cast("list[object]", value))
    if kind is int:
        return -_SMALL_INT < cast("int", value) < _SMALL_INT
    if kind is float:
        return _LEAST_FLOAT <= abs(cast("float", value)) < _EXACT_FLOAT or value == 0
    return kind is str or kind is bool or value is None
