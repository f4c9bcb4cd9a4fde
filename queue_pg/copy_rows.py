"""Checked jobs as rows of COPY in its binary format, in the order of the columns in sql/submit_copy.sql.

Binary, because it costs both sides least: nothing to escape, nothing to parse. A row is the job's id and payload and
then a tail, which all jobs of the same terms share.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct, pack, unpack
from typing import Final
from uuid import UUID

from queue_pg.submission import CheckedJob, Terms
from queue_pg.uuid7 import uuid7_halves, uuid_of

HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER: Final = b"\xff\xff"
_COLUMNS: Final = 18
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # Postgres counts from here
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TEXT_TYPE: Final = 25
_JSONB_VERSION: Final = 1
_NULL: Final = b"\xff\xff\xff\xff"
# How many columns; the id's length and two halves; the payload's length and version.
_head: Final = Struct("!HIQQIB").pack


class CopyRows:
    """Makes the rows of one COPY that begins at `now` by the database's clock.

    Ids are UUIDv7, made one microsecond apart as submit_many() makes them: their order is that of the jobs.
    """

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._next_id_at = (now - _UNIX_EPOCH) // _MICROSECOND
        self._tail_of: Terms | None = None
        self._tail = b""

    def add(self, jobs: Sequence[CheckedJob]) -> tuple[bytes, list[UUID]]:
        """Return the rows of the next jobs, and their ids."""
        ids: list[UUID] = []
        pieces: list[bytes] = []
        at = self._next_id_at
        for (terms, payload), random in zip(jobs, unpack(f"!{len(jobs)}Q", os.urandom(8 * len(jobs))), strict=True):
            at += 1
            high, low = uuid7_halves(at, random)
            if terms is not self._tail_of:
                self._tail_of, self._tail = terms, self._make_tail(terms)
            ids.append(uuid_of(high << 64 | low))
            pieces += (_head(_COLUMNS, 16, high, low, len(payload) + 1, _JSONB_VERSION), payload, self._tail)
        self._next_id_at = at
        return b"".join(pieces), ids

    def _make_tail(self, terms: Terms) -> bytes:
        run_at = terms.run_at or self._now
        if terms.delay_seconds is not None:
            run_at = self._now + timedelta(seconds=terms.delay_seconds)
        return b"".join(
            (
                _moment(run_at),
                _moment(self._now),
                pack("!ih", 2, terms.priority),
                _text("scheduled" if run_at > self._now else "queued"),
                _text(terms.org),
                _text(terms.queue),
                _text(terms.kind),
                _NULL if terms.max_attempts is None else pack("!ii", 4, terms.max_attempts),
                _NULL if terms.timeout_seconds is None else _interval(terms.timeout_seconds),
                _NULL if terms.expires_at is None else _moment(terms.expires_at),
                _texts(terms.tags),
                _field(bytes((_JSONB_VERSION,)) + terms.metadata.encode()),
                _NULL if terms.traceparent is None else _text(terms.traceparent),
                _NULL if terms.batch_id is None else _field(terms.batch_id.bytes),
                _NULL if terms.limit_key is None else _text(terms.limit_key),
                pack("!ii", 4, terms.cost),
            )
        )


def _field(value: bytes) -> bytes:
    return pack("!i", len(value)) + value


def _text(value: str) -> bytes:
    return _field(value.encode())


def _moment(value: datetime) -> bytes:
    return pack("!iq", 8, (value - _EPOCH) // _MICROSECOND)


def _interval(seconds: float) -> bytes:
    # Microseconds, and no days and months.
    return pack("!iqii", 16, round(seconds * 1_000_000), 0, 0)


def _texts(values: Sequence[str]) -> bytes:
    if not values:
        return _field(pack("!iii", 0, 0, _TEXT_TYPE))
    # One dimension, no nulls; its length and where it begins.
    elements = b"".join([_text(value) for value in values])
    return _field(pack("!iiiii", 1, 0, _TEXT_TYPE, len(values), 1) + elements)
