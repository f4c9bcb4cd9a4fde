"""Whether Postgres keeps what it has confirmed, in words. Every process that maintains says so when it starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from queue_pg.statements import statement

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weakness:
    """What a crash may cost with the server's settings, and what to do about it."""

    text: str
    advice: str


def weakness(*, fsync: bool, full_page_writes: bool, synchronous_commit: str) -> Weakness | None:
    """Return what is wrong with these settings; None: nothing is."""
    off = [name for name, on in (("fsync", fsync), ("full_page_writes", full_page_writes)) if not on]
    if off:
        are = "is" if len(off) == 1 else "are"
        return Weakness(
            f"{' and '.join(off)} {are} off: a crash of the machine can destroy the database.",
            f"Set {' and '.join(f'{name} = on' for name in off)}.",
        )
    if synchronous_commit == "off":
        return Weakness(
            "synchronous_commit is off: a crash can lose the last commits.",
            "queue-pg pins it where it acknowledges a job; plain INSERTs of others go with the server's setting.",
        )
    return None


async def warn(conn: AsyncConnection[Any]) -> None:
    """Log a warning when this connection's server may lose what it has confirmed. Raises psycopg's errors."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        [row] = await (await cursor.execute(statement("durability"))).fetchall()
    if (found := weakness(**row)) is not None:
        _log.warning("%s %s", found.text, found.advice)
