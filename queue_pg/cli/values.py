"""What people type: durations, times, priorities, JSON."""

from __future__ import annotations

import difflib
import math
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from queue_pg.errors import InvalidJob

PRIORITIES = {"critical": 20, "high": 10, "normal": 0, "low": -10, "batch": -20}

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)


def parse_duration(text: str, *, field: str) -> timedelta:
    """Return the duration in `30` (seconds), `30s`, `5m`, `2h`, `1d`, `1h30m`."""
    word = text.strip().lower()
    pieces = _DURATION.findall(word)
    try:
        if re.fullmatch(r"\d+(\.\d+)?", word, re.ASCII):
            seconds = float(word)
        elif pieces and "".join(number + unit for number, unit in pieces) == word:
            seconds = math.fsum(float(number) * _UNIT_SECONDS[unit] for number, unit in pieces)
        else:
            raise InvalidJob(field, f"{text!r} is not a duration.", hint="Write 30, 30s, 5m, 2h or 1d.")
        return timedelta(seconds=seconds)
    except OverflowError:
        raise InvalidJob(field, f"{text!r} is too long.", hint="Write 30, 30s, 5m, 2h or 1d.") from None


def optional_duration(text: str | None, *, field: str) -> timedelta | None:
    """As `parse_duration`; None stays None."""
    return None if text is None else parse_duration(text, field=field)


def parse_time(text: str, *, field: str) -> datetime:
    """Return the instant in an ISO 8601 time with its zone, such as `2026-01-31T09:00:00Z`."""
    hint = "Write it with its zone, such as 2026-01-31T09:00:00Z or 2026-01-31T09:00+01:00."
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidJob(field, f"{text!r} is not a time.", hint=hint) from None
    if when.tzinfo is None:
        # Guessing the zone would run the job at another hour on another machine.
        raise InvalidJob(field, f"{text!r} has no time zone.", hint=hint)
    return when


def optional_time(text: str | None, *, field: str) -> datetime | None:
    """As `parse_time`; None stays None."""
    return None if text is None else parse_time(text, field=field)


def parse_priority(value: str | int, *, field: str = "priority") -> int:
    """Return the number of a priority given as a number or a name."""
    text = str(value).strip().lower()
    if text in PRIORITIES:
        return PRIORITIES[text]
    try:
        number = int(text)
    except ValueError:
        raise InvalidJob(
            field, f"{value!r} is not a priority.", hint=f"Write a number or one of {', '.join(PRIORITIES)}."
        ) from None
    if not -32768 <= number <= 32767:
        raise InvalidJob(field, f"{number} is out of range.", hint="Write a number between -32768 and 32767.")
    return number


def parse_id(text: str) -> UUID:
    """Return the job id in `text`, with or without dashes."""
    try:
        return UUID(text.strip())
    except ValueError:
        raise InvalidJob("id", f"{text!r} is not a job id.", hint="Find ids with: queue-pg list") from None


def choice(value: str | None, known: Sequence[str], *, field: str) -> str | None:
    """Return `value` when it is one of `known`, else say which there are."""
    if value is None or value in known:
        return value
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(known)}."
    raise InvalidJob(field, f"{value!r} is not a {field}.", hint=hint)


def read_bytes(source: str, *, field: str) -> bytes:
    """Return what `-` (standard input) or the file `source` holds."""
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidJob(field, f"cannot read {source!r}: {error.strerror or error}.") from None


def parse_payload(text: str, *, field: str = "payload") -> Any:
    """Return the JSON value in `text`, in the file of `@file`, or on standard input for `-`."""
    from queue_pg.payloads import parse_json

    if text == "-" or text.startswith("@"):
        # Programs on Windows begin a UTF-8 file with a byte order mark.
        body = read_bytes("-" if text == "-" else text[1:], field=field).removeprefix(BOM_UTF8)
    else:
        body = text.encode("utf-8", "surrogateescape")
    try:
        return parse_json(body, field=field)
    except InvalidJob as error:
        if error.hint is None:
            error.hint = """Write JSON, such as '{"prompt": "Hello"}', or @file.json, or - for standard input."""
        raise


def optional_until(text: str | None, *, field: str) -> datetime | None:
    """Return an instant given as a time with its zone, or as a duration from now."""
    if text is None:
        return None
    if _DURATION.match(text.strip().lower()) and "T" not in text:
        return datetime.now(UTC) + parse_duration(text, field=field)
    return parse_time(text, field=field)
