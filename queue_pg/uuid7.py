"""UUIDv7 as the SQL functions make them: 48 bits of milliseconds, 12 of the fraction of that one, 62 random bits."""

from __future__ import annotations

from typing import Final
from uuid import UUID, SafeUUID

_VERSION: Final = 0x7000
_VARIANT: Final = 2**63
_RANDOM: Final = 2**62 - 1
_unknown: Final = SafeUUID.unknown  # reading it off an enum takes longer than all the rest
_new: Final = object.__new__
_set: Final = object.__setattr__


def uuid7_halves(microseconds: int, random: int) -> tuple[int, int]:
    """Return both 64-bit halves of the id of a moment since 1970; ids of later microseconds are greater."""
    milliseconds, rest = divmod(microseconds, 1000)
    return milliseconds << 16 | _VERSION | rest * 4096 // 1000, _VARIANT | random & _RANDOM


def uuid_of(number: int) -> UUID:
    """Return UUID(int=number) in a third of its time, the checks left out: a COPY makes one a row."""
    made = _new(UUID)
    _set(made, "int", number)
    _set(made, "is_safe", _unknown)
    return made


def uuid7_microseconds(made: UUID) -> int:
    """Return the moment since 1970, to the microsecond, that an id was made of."""
    high = made.int >> 64
    return (high >> 16) * 1000 - (-(high & 0xFFF) * 1000 // 4096)
