"""JSON for people, out of the text that Postgres writes: nothing is parsed, so every number keeps its digits.

The text may be cut off anywhere and nested as deep as it likes.
"""

from __future__ import annotations

import re

MAX_CHARACTERS = 40_000
# Deeper than this the lines keep their distance from the left.
MAX_INDENT = 24
# Strings first, so that brackets in them are none; a string may have lost its end.
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}\[\],:]|[^\s"{}\[\],:]+|\s+', re.DOTALL)


def indented(text: str) -> str:
    """Return the JSON text with a line for each member, at most MAX_CHARACTERS of it."""
    written: list[str] = []
    depth = length = 0
    opened = False  # the last mark opened a container, which may be closed at once
    for match in _MARK.finditer(text):
        mark = match.group()
        if mark.isspace():
            continue
        closes = mark in "}]"
        if closes:
            depth = max(0, depth - 1)
        piece = mark
        if (opened and not closes) or (closes and not opened):
            piece = _new_line(depth) + mark
        if mark == ",":
            piece += _new_line(depth)
        elif mark == ":":
            piece += " "
        opened = mark in "{["
        if opened:
            depth += 1
        written.append(piece)
        length += len(piece)
        if length > MAX_CHARACTERS:
            break
    return "".join(written)[:MAX_CHARACTERS]


def _new_line(depth: int) -> str:
    return "\n" + "  " * min(depth, MAX_INDENT)
