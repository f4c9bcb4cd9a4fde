"""What a client asks of a content by its headers: a range of it, or only what it does not have (RFC 9110)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes from `start` up to `end` of `size`. Not satisfiable: the client asked for what is not there."""

    start: int
    end: int
    size: int
    partial: bool
    satisfiable: bool = True

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.size}" if self.satisfiable else f"bytes */{self.size}"


def asked_part(headers: Headers, size: int, etag: str) -> Part:
    """Return what to send. The whole when no single range is asked for, or one of another version (If-Range)."""
    whole = Part(0, size, size, partial=False)
    asked = headers.getlist("range")
    if len(asked) != 1 or headers.get("if-range", etag).strip() != etag:
        return whole
    match = _RANGE.fullmatch(asked[0])
    if match is None or match.group(1) == match.group(2) == "":
        return whole  # several ranges or nonsense: a server may ignore it
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < int(first):
        return whole
    if start >= size:
        return Part(0, 0, size, partial=True, satisfiable=False)
    return Part(start, end, size, partial=True)


def is_known(headers: Headers, etag: str) -> bool:
    """Tell whether the client has this version already (If-None-Match)."""
    return any(
        known.strip().removeprefix("W/") in {"*", etag}
        for line in headers.getlist("if-none-match")
        for known in line.split(",")
    )
