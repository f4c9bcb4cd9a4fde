"""Key triples of what can happen to a job at once, in every order; `make model` has all triples in every state."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import combinations

import psycopg
import pytest

from tests.model.interleavings import ACTIONS, STARTS, play_all

KEY_TRIPLES = [
    ("lease over", ("heartbeat", "reap", "finish")),
    ("lease over", ("claim", "reap", "finish")),
    ("lease over", ("claim", "reap", "heartbeat")),
    ("lease over", ("reap", "finish", "cancel")),
    ("lease over", ("reap", "cancel", "retry")),
    ("lease over", ("claim", "snooze", "promote")),
    ("lease over", ("finish", "cancel", "retry")),
    ("due", ("claim", "cancel", "promote")),
    ("failed", ("claim", "cancel", "retry")),
    ("forgotten", ("cancel", "retry", "retention")),
]
ALL_TRIPLES = [(start, triple) for start in STARTS for triple in combinations(ACTIONS, 3)]
TRIPLES = ALL_TRIPLES if os.environ.get("MODEL_TRIPLES") == "all" else KEY_TRIPLES


@pytest.mark.parametrize(("start", "names"), TRIPLES, ids=[f"{start}: {' '.join(names)}" for start, names in TRIPLES])
async def test_every_order_of_a_triple_is_sound(
    dsn: str, start: str, names: tuple[str, ...], record_property: Callable[[str, object], None]
) -> None:
    tried = await play_all(dsn, start, names)
    assert tried >= 6, "there are as many orders at least as if nobody overlapped"
    record_property("orders", tried)


TOKEN = "j.lease_expires_at is not null and j.lease_token = i.lease_token"
HELD = "j.lease_expires_at is not null"
# The function, what it says, what it would say instead, the triple that shows it, and what is found to be wrong.
BUGS = {
    "a finish counts whatever its token": (
        "retire",
        f"({HELD} and j.lease_token = e.lease_token)",
        HELD,
        ("claim", "reap", "finish"),
        "each ended the first lease",
    ),
    "a heartbeat counts whatever its token": (
        "heartbeat",
        TOKEN,
        HELD,
        ("claim", "reap", "heartbeat"),
        "renewed the lease of another",
    ),
    "the reaper takes what it has seen": (
        "reap",
        "for update skip locked",
        "",
        ("heartbeat", "reap", "finish"),
        "before it was over",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
async def test_a_planted_bug_is_found(conn: psycopg.AsyncConnection, dsn: str, bug: str) -> None:
    name, said, instead, names, complaint = BUGS[bug]
    row = await (
        await conn.execute("select pg_get_functiondef(p.oid) from pg_proc p where proname = %s", (name,))
    ).fetchone()
    assert row is not None
    assert said in row[0]
    await conn.execute(row[0].replace(said, instead))
    with pytest.raises(AssertionError, match=complaint):
        await play_all(dsn, "lease over", names)
