"""Read request bodies: by received bytes, with a deadline, strictly, and saying which field is wrong.

`Content-Length` is the client's claim and is believed only when it is already too large.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection, Request

from queue_pg.errors import InvalidJob
from queue_pg.payloads import parse_json
from queue_pg_api.blame import field_path, find_unstorable
from queue_pg_api.errors import ApiError, invalid
from queue_pg_api.quick_json import NotPlainError, parse_plain

MiB = 1024 * 1024
# A payload of the largest size the database takes, written with escapes, and room for the other fields.
MAX_BODY_BYTES = 64 * MiB
MAX_LINE_BYTES = MAX_BODY_BYTES
# An NDJSON body is read piece by piece and only its ids are kept.
MAX_STREAM_BYTES = 4 * 1024 * MiB
MAX_STREAM_LINES = 1_000_000

# Beyond these a refusal says less.
MAX_FAULTS = 1_000
MAX_SUGGESTED_CHARS = 200

# A client that stops sending holds memory, and during a bulk submission a transaction.
RECEIVE_TIMEOUT_SECONDS = 30.0

NDJSON_TYPES = frozenset(
    {
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/jsonlines",
    }
)

M = TypeVar("M", bound=BaseModel)


def is_ndjson(request: Request) -> bool:
    return media_type(request) in NDJSON_TYPES


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def received(request: Request, *, limit: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; 413 past `limit` bytes, 408 when the client stalls."""
    _refuse_encodings(request)
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)
    size = 0
    stream = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(RECEIVE_TIMEOUT_SECONDS):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise ApiError(
                408,
                "body_timeout",
                f"No byte of the body arrived for {RECEIVE_TIMEOUT_SECONDS:g} s; nothing was stored. Send it again.",
                headers={"connection": "close"},
            ) from None
        if chunk is None:
            return
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        if chunk:
            yield chunk


async def read_body(request: Request, *, limit: int = MAX_BODY_BYTES) -> bytes:
    """Return the whole body, at most `limit` received bytes."""
    return b"".join([chunk async for chunk in received(request, limit=limit)])


async def read_lines(request: Request) -> AsyncIterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of an NDJSON body as it arrives; blank lines are left out but counted."""
    number = 0
    pending = bytearray()
    async for chunk in received(request, limit=MAX_STREAM_BYTES):
        # Only the new piece is searched for the end of a line, or one long line would be searched again and again.
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            pending += chunk[start:end]
            start = end + 1
            number += 1
            if line := _checked_line(pending, number):
                yield number, line
            pending = bytearray()
        pending += chunk[start:]
        if len(pending) > MAX_LINE_BYTES:
            _checked_line(pending, number + 1)
    if line := _checked_line(pending, number + 1):
        yield number + 1, line


def _checked_line(line: bytearray, number: int) -> bytes:
    if len(line) > MAX_LINE_BYTES:
        raise ApiError(
            413, "line_too_large", f"Line {number} is over the limit of {MAX_LINE_BYTES:,} bytes.", line=number
        )
    if number > MAX_STREAM_LINES and line.strip():
        raise ApiError(413, "too_many_lines", f"A body may hold at most {MAX_STREAM_LINES:,} lines.", line=number)
    # Programs on Windows begin a UTF-8 file with a byte order mark, and curl sends it.
    return bytes(line.removeprefix(BOM_UTF8) if number == 1 else line).strip()


def parse_body(body: bytes) -> Any:
    """Decode JSON strictly; the refusal names the path inside the body, or the position when it is no JSON."""
    with suppress(NotPlainError):
        return parse_plain(body)
    try:
        return parse_json(body, field="body", max_bytes=MAX_BODY_BYTES)
    except InvalidJob as error:
        path = error.field.removeprefix("body").lstrip(".") or find_unstorable(body) or "body"
        raise invalid(path, error.reason, code=error.code) from None


async def read_model(request: Request, model: type[M]) -> M:
    """Read and check a JSON body; an empty one stands for {} where every field has a default."""
    body = await read_body(request)
    if not body.strip() and not any(field.is_required() for field in model.model_fields.values()):
        return model()
    if not body.strip():
        needed = ", ".join(name for name, field in model.model_fields.items() if field.is_required())
        raise invalid("body", f"is empty; send a JSON object with {needed}")
    return check_model(model, parse_body(body))


def check_model(model: type[M], value: object) -> M:
    """Validate decoded JSON; the refusal names the field, and for an unknown one what may have been meant."""
    if not isinstance(value, dict):
        raise invalid("body", f"should be a JSON object, not {_kind_of_json(value)}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _refusal(error, list(model.model_fields)) from None


def read_query(request: HTTPConnection, model: type[M]) -> M:
    """Check the query string; every parameter at most once."""
    params: QueryParams = request.query_params
    values: dict[str, str] = {}
    for name, value in params.multi_items():
        if name in values:
            raise invalid(name, "is given more than once")
        if "\x00" in name + value:
            raise invalid("query" if "\x00" in name else name, "holds a NUL character, which Postgres cannot store")
        values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, list(model.model_fields)) from None


def suggest(word: str, known: Sequence[str]) -> list[str]:
    # Looking for what is alike takes memory of many times the word's length.
    return difflib.get_close_matches(word, known, n=3, cutoff=0.6) if len(word) <= MAX_SUGGESTED_CHARS else []


def _refusal(error: ValidationError, known: Sequence[str]) -> ApiError:
    if error.error_count() > MAX_FAULTS:
        # Listing a million of them, to name one, would stop all other requests for seconds.
        return invalid("body", f"has {error.error_count():,} faults; /docs shows the fields there are")
    errors = error.errors(include_url=False, include_context=False)
    # An unknown name beside a missing one is most often a typo of it: say that one first.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    field = field_path(first["loc"])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        suggestions = suggest(name, known) if len(first["loc"]) == 1 else []
        meant = f" Did you mean {' or '.join(repr(s) for s in suggestions)}?" if suggestions else ""
        return invalid(field, f"unknown field.{meant}", code="unknown_field", suggestions=suggestions)
    if first["type"] == "missing":
        return invalid(field, "is required", code="missing_field")
    return invalid(field, _reason(first))


def _reason(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    # In the words of JSON, not in those of Python.
    message = re.sub(r"^(?:Input|String|List|Dictionary) (?=should )", "", message)
    message = re.sub(r" after validation, not \d+$", "", message)
    message = re.sub(r"a valid dictionary(?: or instance of \w+)?", "an object", message)
    message = message.replace("a valid list", "an array")
    given = error.get("input")
    if str(error["type"]).endswith("_type") or error["type"] == "int_from_float":
        return f"{message}, not {_kind_of_json(given)}"
    if isinstance(given, int | float | str) and not isinstance(given, bool) and len(str(given)) <= 80:
        return f"{message} (got {given!r})"
    return message


def _kind_of_json(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _refuse_encodings(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        # Decompressing what a stranger sent needs a limit of its own; until somebody needs it, it is not offered.
        raise ApiError(
            415, "unsupported_encoding", f"Content-Encoding {encoding[:40]!r} is not supported; send it plain."
        )


def _too_large(limit: int) -> ApiError:
    # The connection stays open: closed while the client is still sending, it would be reset, and the client would
    # never see this answer. The server reads on and keeps nothing.
    return ApiError(
        413,
        "body_too_large",
        f"The body is over the limit of {limit:,} bytes. Send many jobs as NDJSON (application/x-ndjson).",
        limit=limit,
    )
