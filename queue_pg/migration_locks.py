"""Locks of a migration: taken early, waited for shortly, and given up together, so that submissions never wait long.

Whoever waits for a lock on `jobs` makes all later inserts wait behind it, and whoever has it makes them wait until the
end of the transaction. So a migration takes the tables that it touches before it changes anything, within lock_timeout
in all, or gives them all up (see sql/migration_locks.sql). Who tries again pauses for longer than that.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

import psycopg

from queue_pg.statements import statement

_COMMENT = re.compile(r"--.*")
_NAME = re.compile(r"\bqueue_pg\.(\w+)")
# A file of functions may make triggers anew; the tables that the functions themselves read are not touched by it.
_TRIGGER = re.compile(r"\bcreate(?: or replace)? trigger\b[^;]*?\bon queue_pg\.(\w+)")
MINIMUM_PAUSE_SECONDS = 0.05


def names_touched(texts: Iterable[tuple[str, bool]]) -> set[str]:
    """Return the names of ours in some migrations, given as text and whether they are repeatable: tables, and more."""
    found: set[str] = set()
    for text, repeatable in texts:
        found.update((_TRIGGER if repeatable else _NAME).findall(_COMMENT.sub("", text)))
    return found


def take(conn: psycopg.Connection[Any], names: Iterable[str]) -> None:
    """Lock those that are tables until the end of the transaction. Raises LockNotAvailable, DeadlockDetected."""
    conn.execute(statement("migration_tables"), {"tables": ",".join(sorted(names))})
    conn.execute(statement("migration_locks"))


def pause_seconds(lock_timeout_seconds: float) -> float:
    """Return how long to leave everybody else alone before the next try: longer than they have waited for us."""
    return max(MINIMUM_PAUSE_SECONDS, lock_timeout_seconds) * random.uniform(1, 2)


def describe_holder(conn: psycopg.Connection[Any]) -> str:
    """Return who is in the way, as far as that can be seen, in words."""
    row = conn.execute(statement("migration_holders")).fetchone()
    if row is None:
        return "another migration runs, or a long transaction holds a table"
    pid, name, state, seconds, migrates = row
    if migrates:
        return f"another migration runs (process {pid}, {name})"
    since = "" if seconds is None else f" for {seconds:.0f} s"
    return f"a transaction holds a table (process {pid}, {name}, {state}{since})"
