"""Every action in every state, against the table of docs/states.md."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

STATES = ("scheduled", "queued", "running", "completed", "failed", "cancelled")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "states.md"
EDGE = re.compile(r"^\| (\w+) \| (\w+(?: \([^)]+\))?) \| (\w+) \| (same|\+1|-1|0) \| ", re.MULTILINE)
EDGES = {(m[1], m[2]): (m[3], m[4]) for m in EDGE.finditer(DOCUMENT.read_text())}
ACTIONS = sorted({action for _, action in EDGES})

# What each action is in SQL. `%(token)s` is the token of the last claim, so finishing is tried with the best lease
# that anybody ever had.
FINISH = "select state from queue_pg.finish(array[%(id)s::uuid], array[%(token)s::bigint], array[{}])"
SQL = {
    "promote": "select queue_pg.promote()",
    "claim": "select count(*) from queue_pg.claim('prober', '{default}')",
    "complete": "select queue_pg.complete(%(id)s, %(token)s, '1')",
    "fail": 'select queue_pg.fail(%(id)s, %(token)s, \'{"code": "x"}\')',
    "discard": 'select queue_pg.fail(%(id)s, %(token)s, \'{"code": "x"}\', retry => false)',
    "snooze": "select queue_pg.snooze(%(id)s, %(token)s, '1 hour')",
    "release": "select queue_pg.release(%(id)s, %(token)s)",
    "cancel (by handler)": "select queue_pg.finish_one(%(id)s, %(token)s, 'cancel', null, null, null)",
    "reap": "select queue_pg.reap()",
    "cancel": "select queue_pg.cancel(%(id)s)",
    "expire": "select queue_pg.expire()",
    "retry": "select queue_pg.retry(%(id)s)",
}
VARIANTS = {"fail (last attempt)": "fail", "reap (third loss)": "reap", "reap (past timeout)": "reap"}


async def make(conn: psycopg.AsyncConnection, state: str, *, arrange: str = "") -> UUID:
    """A job in `state`, with all that the functions look at set so that only the state can decide."""
    delay = "1 second" if state == "scheduled" else None
    row = await (
        await conn.execute(
            "select queue_pg.submit('k', delay => %s::interval, max_attempts => 5,"
            " expires_at => queue_pg.now() + '1 day')",
            (delay,),
        )
    ).fetchone()
    assert row is not None
    job_id: UUID = row[0]
    if state not in ("scheduled", "queued"):
        await conn.execute("select queue_pg.claim('first', '{default}')")
    if state == "completed":
        await conn.execute("select queue_pg.complete(%s, 1)", (job_id,))
    if state == "failed":
        await conn.execute("select queue_pg.fail(%s, 1, '{}', false)", (job_id,))
    if state == "cancelled":
        await conn.execute("select queue_pg.cancel(%s)", (job_id,))
    if arrange:
        await conn.execute(arrange, (job_id,))
    assert (await read(conn, job_id))[0] == state
    return job_id


async def read(conn: psycopg.AsyncConnection, job_id: UUID) -> tuple[str, int, int]:
    row = await (
        await conn.execute("select state::text, attempt, lease_token from queue_pg.job(%s)", (job_id,))
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", [a for a in ACTIONS if a not in VARIANTS])
async def test_every_action_in_every_state(
    conn: psycopg.AsyncConnection, clock: Clock, state: str, action: str
) -> None:
    job_id = await make(conn, state)
    before = await read(conn, job_id)
    # Everything that time can bring has come: due, lease expired. The deadline only for the action that looks at it.
    clock.advance(100)
    if action == "expire":
        clock.advance(2 * 86_400)
    refusal = None
    try:
        await conn.execute(SQL[action], {"id": job_id, "token": before[2]})
    except psycopg.Error as error:
        refusal = error.sqlstate
    assert refusal in (None, "QP002", "QP003")
    refused = refusal is not None
    after = await read(conn, job_id)
    expected = EDGES.get((state, action))
    if expected is None:
        assert after == before
        # Maintenance passes by silently; whoever names a job is told. Cancelling twice is no error.
        silent = action in ("promote", "claim", "reap", "expire") or (state, action) == ("cancelled", "cancel")
        assert refused is not silent
    else:
        to, change = expected
        attempt = {"same": before[1], "+1": before[1] + 1, "-1": before[1] - 1, "0": 0}[change]
        assert (after[0], after[1]) == (to, attempt)
        assert after[2] == before[2] + (action == "claim")
        assert not refused


@pytest.mark.parametrize(
    ("action", "arrange", "code"),
    [
        ("fail (last attempt)", "update queue_pg.jobs set max_attempts = 1 where id = %s", "x"),
        ("reap (third loss)", "update queue_pg.jobs set lease_losses = 2 where id = %s", "lease_lost"),
        ("reap (past timeout)", "update queue_pg.jobs set timeout = '90 s' where id = %s", "timeout"),
    ],
)
async def test_the_variants(conn: psycopg.AsyncConnection, clock: Clock, action: str, arrange: str, code: str) -> None:
    job_id = await make(conn, "running", arrange=arrange)
    clock.advance(100)
    await conn.execute(SQL[VARIANTS[action]], {"id": job_id, "token": 1})
    to, change = EDGES["running", action]
    assert await read(conn, job_id) == (to, 1 if change == "same" else 0, 1)
    row = await (await conn.execute("select error ->> 'code' from queue_pg.job(%s)", (job_id,))).fetchone()
    assert row == (code,)


def test_the_table_is_complete() -> None:
    assert len(EDGES) >= 19
    assert {VARIANTS.get(action, action) for action in ACTIONS} == set(SQL)
