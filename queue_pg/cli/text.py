"""Text that came from elsewhere, made safe to print."""

from __future__ import annotations

import re

# C0, DEL and C1 drive the terminal; the bidi controls reorder what is seen; surrogates cannot be encoded.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    return _SHORT.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}")


def printable(text: str) -> str:
    """Return `text` as one line in which control characters are written as escapes."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """As `printable`, but runs of white space, line breaks too, become one space; for messages, not for data."""
    return printable(" ".join(text.split()))


def printable_lines(text: str) -> str:
    """As `printable`, but line breaks and tabs stay."""
    return "\n".join(printable(line).replace("\\t", "\t") for line in text.split("\n"))


def printable_json(text: str) -> str:
    """Return the JSON document `text` with what terminals obey written as JSON escapes; it parses to the same."""
    return _UNSAFE.sub(lambda m: m.group() if m.group() in "\n\t" else f"\\u{ord(m.group()):04x}", text)


def shorten(text: str, max_chars: int) -> str:
    """Return `text`, cut to `max_chars` with an ellipsis."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
