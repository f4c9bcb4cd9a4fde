"""Arrays as parameters, written as Postgres's array literals.

psycopg would look at every element to choose a type and a dumper; the statements name the type anyway, and a batch of
some hundred jobs has several arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta


def plain_array(values: Iterable[object]) -> str:
    """Return the literal of values whose text needs no quoting: numbers, UUIDs, words of our own."""
    return f"{{{','.join(map(str, values))}}}"


def text_array(values: Sequence[str | None]) -> str:
    """Return the literal of any texts; None becomes NULL."""
    return f"{{{','.join([_NULL if value is None else _quoted(value) for value in values])}}}"


def sparse_text_array(values: Sequence[str | None]) -> str | None:
    """Return the literal like `text_array`, or None when there is no text at all."""
    return None if values.count(None) == len(values) else text_array(values)


def sparse_interval_array(values: Sequence[timedelta | None]) -> str | None:
    """Return the literal of durations, or None when there are none."""
    return sparse_text_array([None if value is None else f"{value.total_seconds():.6f} s" for value in values])


_NULL = "NULL"


def _quoted(text: str) -> str:
    # Quotes always: they are what tells the text NULL from NULL and keeps commas, braces and spaces in place.
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if '"' in text:
        text = text.replace('"', '\\"')
    return f'"{text}"'
