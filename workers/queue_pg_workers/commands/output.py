"""What a command writes, on its way to the job's log: line by line, as text that can be stored, and not without end."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from queue_pg.handler_events import MAX_LINE_CHARS, log_event
from queue_pg.payloads import sanitise_text

READ_BYTES: Final = 64 * 1024
TAIL_BYTES: Final = 16 * 1024
# So many lines are handed on at once.
_BATCH_LINES: Final = 1_000

Say = Callable[[list[tuple[str, str]]], Awaitable[None]]


@dataclass(slots=True)
class Allowance:
    """How much an attempt may still log, in all streams together."""

    bytes: int
    lines: int

    def take(self, size: int) -> bool:
        """Take a line off, if there is room for it."""
        if self.lines <= 0 or self.bytes < size:
            # Nothing smaller gets in after it: a log with holes would mislead.
            self.bytes = self.lines = 0
            return False
        self.bytes -= size
        self.lines -= 1
        return True


class Lines:
    """Cuts text into lines. One longer than a log line comes in pieces, all but the last marked as continued."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""

    def drop(self) -> int:
        """Forget the line that is not complete; return how many bytes it has."""
        size, self._pending = len(self._pending.encode()), ""
        return size

    def add(self, data: bytes, *, end: bool = False) -> list[tuple[str, bool]]:
        """Return the lines that are complete now, each with whether it is continued."""
        *complete, rest = (self._pending + self._decoder.decode(data, end)).split("\n")
        found: list[tuple[str, bool]] = []
        for line in complete:
            *pieces, last = _pieces(line.removesuffix("\r"))
            found += [*((piece, True) for piece in pieces), (last, False)]
        *pieces, self._pending = _pieces(rest)
        found += [(piece, True) for piece in pieces]
        if end and self._pending:
            found.append((self._pending, False))
            self._pending = ""
        return found


class Output:
    """Reads one stream of a command to its end, whatever becomes of what it says, or the command would wait."""

    def __init__(self, stream: str, allowance: Allowance, say: Say) -> None:
        self.stream = stream
        self.cut_bytes = 0
        # Whether all that has come is logged, and more is waited for.
        self.waits = False
        self._allowance = allowance
        self._say = say
        self._lines = Lines()
        self._tail = bytearray()
        self._size = 0

    @property
    def tail(self) -> str:
        """The last of it, as text."""
        data = bytes(self._tail[-TAIL_BYTES:])
        if self._size > TAIL_BYTES:
            # Not from the middle of a character.
            data = data.lstrip(bytes(range(0x80, 0xC0)))
        text = data.decode("utf-8", "replace")
        return sanitise_text(text, max(len(text), 1))

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Log what comes until the end of the stream. Raises LeaseLost."""
        while data := await self._more(reader):
            await self._take(data)
        await self._take(b"", end=True)
        if self.cut_bytes:
            note = f"[{self.cut_bytes:,} more bytes of {self.stream} are not in the log]"
            await self._say([log_event(note, self.stream, {"cut_bytes": self.cut_bytes})])

    async def _more(self, reader: asyncio.StreamReader) -> bytes:
        self.waits = True
        try:
            return await reader.read(READ_BYTES)
        finally:
            self.waits = False

    async def _take(self, data: bytes, *, end: bool = False) -> None:
        self._size += len(data)
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        if self._allowance.lines <= 0:
            self.cut_bytes += self._lines.drop() + len(data)
            return
        events: list[tuple[str, str]] = []
        for line, continued in self._lines.add(data, end=end):
            size = len(line.encode()) + 1
            if not self._allowance.take(size):
                self.cut_bytes += size
                continue
            events.append(log_event(line, self.stream, {"continued": True} if continued else None))
            if len(events) >= _BATCH_LINES:
                await self._say(events)
                events = []
        if events:
            await self._say(events)


def _pieces(line: str) -> list[str]:
    """Return a line in pieces that a log line can hold; at least one."""
    return [line[start : start + MAX_LINE_CHARS] for start in range(0, len(line), MAX_LINE_CHARS)] or [""]
