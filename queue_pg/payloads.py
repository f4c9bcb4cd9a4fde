"""JSON that both Postgres and Python can hold: checks on the way in, no surprises on the way out.

The rules, on every value and every object key: no NUL, no lone surrogate, no NaN or Infinity, no number beyond the
range of a float or longer than 1,000 digits, at most 64 levels deep, at most `max_bytes` in UTF-8. A row written
by plain SQL may break them; `decode_json` then refuses that one value, and `decode_or_mark` shows it as `Unreadable`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from queue_pg.errors import InvalidJob, PayloadTooLarge

DEFAULT_MAX_PAYLOAD_BYTES: Final = 32 * 1024 * 1024
MAX_METADATA_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 64
MAX_NUMBER_DIGITS: Final = 1_000
MAX_ERROR_BYTES: Final = 64 * 1024
_LARGEST: Final = int(sys.float_info.max)
_SMALL_INT: Final = 10**16
_EXACT_FLOAT: Final = 1e16  # from here on repr() of a whole float has an exponent, and jsonb returns it as an int


class UnreadableJson(ValueError):
    """Stored JSON that Python cannot hold, such as `1e5000`."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands where a stored value could not be decoded. `text` is the JSON as Postgres shows it."""

    text: str
    reason: str


def encode_json(value: Any, *, field: str = "payload", max_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES) -> str:
    """Return `value` as JSON text that Postgres stores and Python reads back equal.

    `value` is made of dict with str keys, list, tuple, str, int, float, bool and None. Raises InvalidJob naming the
    path (`payload.messages[0].content`) and PayloadTooLarge.
    """
    if _check(value, field):
        value = _whole_floats_as_ints(value)
    text = _encode(value)
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        _check(value, field, surrogates=True)
        raise InvalidJob(field, "holds a lone surrogate, which is not text") from None
    if size > max_bytes:
        raise PayloadTooLarge(field, size, max_bytes)
    return text


def decode_json(text: str) -> Any:
    """Return the value of JSON text read from Postgres. Raises UnreadableJson for what Python cannot hold."""
    try:
        value = _decode(text)
    except RecursionError:
        raise UnreadableJson(f"nested deeper than {MAX_DEPTH} levels") from None
    except UnreadableJson:
        raise
    except ValueError as error:
        reason = "a number is too long" if "digits" in str(error) else str(error)
        raise UnreadableJson(reason) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(value):
        raise UnreadableJson(f"nested deeper than {MAX_DEPTH} levels")
    return value


def decode_or_mark(text: str | None) -> Any:
    """Return the value of stored JSON text, or an Unreadable in its place; None for SQL null. Never raises."""
    if text is None:
        return None
    try:
        return decode_json(text)
    except UnreadableJson as error:
        return Unreadable(text, str(error))


def parse_json(body: bytes, *, field: str = "body", max_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES) -> Any:
    """Return the value of a request body under the same rules as `encode_json`; duplicate keys are refused."""
    if len(body) > max_bytes:
        raise PayloadTooLarge(field, len(body), max_bytes)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJob(field, f"is not UTF-8 at byte {error.start}") from None
    if not text.strip(" \t\r\n"):
        raise InvalidJob(field, "is empty; JSON is expected")
    refuse = _refuser(field)
    try:
        value = json.loads(
            text,
            parse_constant=lambda name: refuse(f"{name} is not JSON"),
            parse_float=lambda digits: _request_float(digits, refuse),
            parse_int=lambda digits: _request_int(digits, refuse),
            object_pairs_hook=lambda pairs: _unique_pairs(pairs, refuse),
        )
    except RecursionError:
        raise InvalidJob(field, f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise InvalidJob(field, reason) from None
    _check(value, field, surrogates=True)
    return value


def sanitise_text(text: object, max_chars: int = 8_000) -> str:
    """Return `text` as a string that Postgres can store: NUL and surrogates replaced, the middle cut out if too long.

    Takes any object and never raises: it is the way of error texts, and the failure path must not fail.
    """
    try:
        shown = text if isinstance(text, str) else str(text)
    except Exception:
        shown = f"<{type(text).__name__} without a readable text>"
    if len(shown) > max_chars:
        # Both ends say what went wrong: the first line of a message, the last line of a traceback.
        keep = max(max_chars - 40, 2) // 2
        shown = f"{shown[:keep]} [... {len(shown) - 2 * keep:,} characters cut ...] {shown[-keep:]}"
    shown = shown.replace("\x00", "\ufffd")
    return shown if shown.isascii() else shown.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def error_object(code: object, message: object, /, **details: Any) -> dict[str, Any]:
    """Return the error to store with a job, safe to store always; a detail that is not JSON is stored as text."""
    error: dict[str, Any] = {"code": sanitise_text(code, 200) or "error", "message": sanitise_text(message)}
    for name, value in details.items():
        name = sanitise_text(name, 200)
        if name in ("code", "message") or value is None:
            continue
        try:
            encode_json(value, field=name, max_bytes=MAX_ERROR_BYTES)
        except Exception:
            value = sanitise_text(value)
        error[name] = value
    try:
        encode_json(error, field="error", max_bytes=4 * MAX_ERROR_BYTES)
    except InvalidJob:
        return {"code": error["code"], "message": error["message"]}
    return error


# --- checking ---------------------------------------------------------------------------------------------------------


def _check(value: Any, field: str, *, surrogates: bool = False) -> bool:
    """Raise InvalidJob at the first thing that cannot be stored. Return whether a large whole float was met."""
    # Most values are small and harmless, and finding that out needs no paths for messages.
    return False if _is_harmless(value, 4, surrogates) else _check_closely(value, field, surrogates)


def _is_harmless(value: object, depth: int, surrogates: bool) -> bool:
    """Return whether `value` surely keeps all the rules; False means that somebody has to look closely."""
    if type(value) is str:
        return "\x00" not in value and (not surrogates or value.isascii())
    if type(value) is int:
        return -_SMALL_INT < value < _SMALL_INT
    if type(value) is float:
        return -_EXACT_FLOAT < value < _EXACT_FLOAT
    if type(value) is dict:
        if not depth:
            return False
        for key, child in cast("dict[object, object]", value).items():
            if type(key) is not str or not key.isascii() or "\x00" in key:
                return False
            if not _is_harmless(child, depth - 1, surrogates):
                return False
        return True
    if type(value) is list:
        if not depth:
            return False
        for child in cast("list[object]", value):  # noqa: SIM110 - all() of a generator takes twice the time
            if not _is_harmless(child, depth - 1, surrogates):
                return False
        return True
    return value is None or type(value) is bool


def _check_closely(value: Any, field: str, surrogates: bool) -> bool:
    """Do what `_check` says. A stack instead of recursion: the input's depth must not meet Python's own limit first."""
    large_float = False
    stack: list[tuple[Any, str | tuple[Any, ...], int]] = [(value, field, 0)]
    while stack:
        item, path, depth = stack.pop()
        if item is None or item is True or item is False:
            continue
        if isinstance(item, str):
            _check_text(item, path, surrogates)
        elif isinstance(item, int):
            if not -_LARGEST <= item <= _LARGEST:
                raise InvalidJob(_path(path), "is a number beyond the range of a float")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise InvalidJob(_path(path), f"is {item}, which JSON cannot hold")
            large_float = large_float or abs(item) >= _EXACT_FLOAT
        elif isinstance(item, dict):
            if depth >= MAX_DEPTH:
                raise InvalidJob(field, f"is nested deeper than {MAX_DEPTH} levels")
            for key, child in cast("dict[object, Any]", item).items():
                if not isinstance(key, str):
                    raise InvalidJob(_path(path), f"has the key {sanitise_text(repr(key), 60)}; keys must be strings")
                _check_text(key, path, surrogates, key=True)
                stack.append((child, (path, key), depth + 1))
        elif isinstance(item, list | tuple):
            if depth >= MAX_DEPTH:
                raise InvalidJob(field, f"is nested deeper than {MAX_DEPTH} levels")
            children = cast("Sequence[Any]", item)
            stack.extend((child, (path, index), depth + 1) for index, child in enumerate(children))
        else:
            raise InvalidJob(_path(path), f"is a {type(item).__name__}, which is not JSON")
    return large_float


def _check_text(text: str, path: str | tuple[Any, ...], surrogates: bool, *, key: bool = False) -> None:
    what = "has a key that holds" if key else "holds"
    if "\x00" in text:
        raise InvalidJob(_path(path), f"{what} the NUL character, which Postgres cannot store")
    if surrogates and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidJob(_path(path), f"{what} a lone surrogate, which is not text") from None


def _path(path: str | tuple[Any, ...]) -> str:
    """Return a path as people write it. Paths are linked pairs: joining strings for every node would cost too much."""
    parts: list[str] = []
    while isinstance(path, tuple):
        path, step = path
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif step.isidentifier() and step.isascii() and len(step) <= 60:
            parts.append(f".{step}")
        else:
            parts.append(f"[{json.dumps(step[:60])}]")
    return (path + "".join(reversed(parts))).lstrip(".")


def _whole_floats_as_ints(value: Any) -> Any:
    """Return `value` with floats such as 1e23 as the int they are equal to.

    jsonb keeps 1e+23 as the decimal 10^23 and prints it without a point, so Python would read back an int that
    differs from the float. The exact int survives the journey. Depth was checked before.
    """
    if isinstance(value, float) and abs(value) >= _EXACT_FLOAT:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_floats_as_ints(child) for key, child in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_whole_floats_as_ints(child) for child in cast("list[Any]", value)]
    return value


def _too_deep(value: Any) -> bool:
    level = _containers([value])
    for _ in range(MAX_DEPTH):
        level = [inner for item in level for inner in _containers(item)]
    return bool(level)


def _containers(item: Any) -> list[Any]:
    children = cast("dict[str, Any]", item).values() if isinstance(item, dict) else cast("list[Any]", item)
    return [child for child in children if isinstance(child, dict | list)]


# --- parsing ----------------------------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> NoReturn:
    raise UnreadableJson(f"{name} is not JSON")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise UnreadableJson("a number is beyond the range of a float")
    return number


# Made once: json.dumps and json.loads with arguments make a new one at every call.
_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_decode: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_float).decode


def _refuser(field: str) -> Callable[[str], NoReturn]:
    def refuse(reason: str) -> NoReturn:
        raise InvalidJob(field, reason)

    return refuse


def _request_float(digits: str, refuse: Callable[[str], NoReturn]) -> float:
    if len(digits) > MAX_NUMBER_DIGITS:
        refuse(f"holds a number of more than {MAX_NUMBER_DIGITS:,} digits")
    number = float(digits)
    if math.isinf(number):
        refuse("holds a number beyond the range of a float")
    return number


def _request_int(digits: str, refuse: Callable[[str], NoReturn]) -> int:
    if len(digits) > MAX_NUMBER_DIGITS:
        refuse(f"holds a number of more than {MAX_NUMBER_DIGITS:,} digits")
    number = int(digits)
    if not -_LARGEST <= number <= _LARGEST:
        refuse("holds a number beyond the range of a float")
    return number


def _unique_pairs(pairs: list[tuple[str, Any]], refuse: Callable[[str], NoReturn]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                refuse(f"holds the key {json.dumps(key[:60])} twice in one object")
            seen.add(key)
    return unique
