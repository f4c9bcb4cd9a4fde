"""Every action in every state, against the table of docs/states.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

STATES = ("scheduled", "waiting", "queued", "running", "completed", "failed", "cancelled")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "states.md"
EDGE = re.compile(r"^\| (\w+) \| (\w+(?: \([^)]+\))?) \| (\w+) \| (same|\+1|-1|0) \| ", re.MULTILINE)
EDGES = {(m[1], m[2]): (m[3], m[4]) for m in EDGE.finditer(DOCUMENT.read_text())}
ACTIONS = sorted({action for _, action in EDGES})

# What each action is in SQL. `%(token)s` is the token of the last claim, so finishing is tried with the best lease
# that anybody ever had.
FINISH = "select state from queue_pg.finish(array[%(id)s::uuid], array[%(token)s::bigint], array[{}])"
SETTLE = (
    "select count(*) from queue_pg.finish(array(select id from queue_pg.jobs where queue = 'parents'),"
    " array(select lease_token from queue_pg.jobs where queue = 'parents'),"
    " array(select '{}'::text from queue_pg.jobs where queue = 'parents'))"
)
SQL = {
    "promote": "select queue_pg.promote()",
    "claim": "select count(*) from queue_pg.claim('prober', '{default}')",
    "complete": "select queue_pg.complete(%(id)s, %(token)s, '1')",
    "fail": 'select queue_pg.fail(%(id)s, %(token)s, \'{"code": "x"}\')',
    "discard": 'select queue_pg.fail(%(id)s, %(token)s, \'{"code": "x"}\', retry => false)',
    "snooze": "select queue_pg.snooze(%(id)s, %(token)s, '1 hour')",
    "fail (at once)": "select queue_pg.fail(%(id)s, %(token)s, '{\"code\": \"x\"}', delay => '0')",
    "snooze (over)": "select queue_pg.snooze(%(id)s, %(token)s, '0')",
    "wait": "select queue_pg.wait(%(id)s, %(token)s)",
    "plan": "select queue_pg.plan(%(id)s, %(token)s, '{a}')",
    "signal": "select queue_pg.signal(%(id)s, 'go')",
    "release": "select queue_pg.release(%(id)s, %(token)s)",
    "cancel (by handler)": "select queue_pg.finish_one(%(id)s, %(token)s, 'cancel', null, null, null)",
    "reap": "select queue_pg.reap()",
    "cancel": "select queue_pg.cancel(%(id)s)",
    "expire": "select queue_pg.expire()",
    "retry": "select queue_pg.retry(%(id)s)",
    "settle": SETTLE.format("complete"),
    "submit": "select queue_pg.submit('k', priority => 1, cache => true)",
}
VARIANTS = {
    "fail (last attempt)": "fail",
    "fail (at once)": "fail (at once)",
    "snooze (over)": "snooze (over)",
    "reap (third loss)": "reap",
    "reap (past timeout)": "reap",
    "reap (past timeout, last attempt)": "reap",
    "settle (run_at to come)": "settle",
    "settle (subtasks)": "settle",
    "settle (cancel)": "settle",
    "settle (fail)": "settle",
    "settle (template)": "settle",
    "wait (over)": "wait",
    "signal (waited for)": "signal",
    "retry (parents live)": "retry",
    "settle (shared)": "settle",
    "settle (next)": "settle",
    "settle (next, later)": "settle",
    "submit (overtakes)": "submit",
    "retry (shared)": "retry",
}
# The job's last claim, if it had one, has reached a wait for the event `go`.
REACHED = (
    "insert into queue_pg.job_steps (job_id, name, type, attempt, lease_token)"
    " select id, 'go', 'event', 1, 1 from queue_pg.job(%s)"
)


async def make(conn: psycopg.AsyncConnection, state: str) -> UUID:
    """A job in `state`, with all that the functions look at set so that only the state can decide."""
    delay = "1 second" if state == "scheduled" else None
    parents = await make_parent(conn) if state == "waiting" else None
    row = await (
        await conn.execute(
            "select queue_pg.submit('k', delay => %s::interval, max_attempts => 5,"
            " expires_at => queue_pg.now() + '1 day', depends_on => %s)",
            (delay, parents),
        )
    ).fetchone()
    assert row is not None
    job_id: UUID = row[0]
    if state not in ("scheduled", "waiting", "queued"):
        await conn.execute("select queue_pg.claim('first', '{default}')")
    await conn.execute(REACHED, (job_id,))
    if state == "completed":
        await conn.execute("select queue_pg.complete(%s, 1)", (job_id,))
    if state == "failed":
        await conn.execute("select queue_pg.fail(%s, 1, '{}', false)", (job_id,))
    if state == "cancelled":
        await conn.execute("select queue_pg.cancel(%s)", (job_id,))
    assert (await read(conn, job_id))[0] == state
    return job_id


async def make_parent(conn: psycopg.AsyncConnection, on_unsuccessful: str = "cancel") -> str:
    """A running job in a queue of its own, as `depends_on` takes it. Nothing else than `settle` ends it."""
    await conn.execute("select queue_pg.submit('p', queue => 'parents', timeout => '300 days')")
    row = await (await conn.execute("select id from queue_pg.claim('p', '{parents}', lease => '1 day')")).fetchone()
    assert row is not None
    await conn.execute("update queue_pg.jobs set lease_expires_at = 'infinity' where id = %s", row)
    return json.dumps([{"job": str(row[0]), "name": "p", "on_unsuccessful": on_unsuccessful}])


async def read(conn: psycopg.AsyncConnection, job_id: UUID) -> tuple[str, int, int]:
    row = await (
        await conn.execute("select state::text, attempt, lease_token from queue_pg.job(%s)", (job_id,))
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", [*(a for a in ACTIONS if a not in VARIANTS), "signal"])
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
        silent = action in ("promote", "claim", "reap", "expire", "settle") or (state, action) == (
            "cancelled",
            "cancel",
        )
        silent = silent or (action == "signal" and state in ("scheduled", "waiting", "queued", "running"))
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
        ("wait (over)", "select queue_pg.signal(%s, 'go')", None),
        ("signal (waited for)", "select queue_pg.wait(%s, 1)", None),
        ("fail (last attempt)", "update queue_pg.jobs set max_attempts = 1 where id = %s", "x"),
        ("fail (at once)", "select %s", "x"),
        ("snooze (over)", "select %s", None),
        ("reap (third loss)", "update queue_pg.jobs set lease_losses = 2 where id = %s", "lease_lost"),
        ("reap (past timeout)", "update queue_pg.jobs set timeout = '90 s' where id = %s", "timeout"),
        (
            "reap (past timeout, last attempt)",
            "update queue_pg.jobs set timeout = '90 s', max_attempts = 1 where id = %s",
            "timeout",
        ),
    ],
)
async def test_the_variants(
    conn: psycopg.AsyncConnection, clock: Clock, action: str, arrange: str, code: str | None
) -> None:
    job_id = await make(conn, "running")
    await conn.execute(arrange, (job_id,))
    [state] = {state for state, known in EDGES if known == action}
    before = await read(conn, job_id)
    assert before[0] == state
    clock.advance(100)
    await conn.execute(SQL[VARIANTS[action]], {"id": job_id, "token": 1})
    to, change = EDGES[state, action]
    assert await read(conn, job_id) == (to, before[1] if change == "same" else before[1] - 1, 1)
    row = await (await conn.execute("select error ->> 'code' from queue_pg.job(%s)", (job_id,))).fetchone()
    assert row == (code,)


@pytest.mark.parametrize(
    ("action", "policy", "outcome", "delay", "payload", "code"),
    [
        ("settle (run_at to come)", "cancel", "complete", "1 hour", "{}", None),
        ("settle (cancel)", "cancel", "discard", None, "{}", "parent_failed"),
        ("settle (cancel)", "cancel", "cancel", None, "{}", "parent_cancelled"),
        ("settle (fail)", "fail", "discard", None, "{}", "parent_failed"),
        ("settle (fail)", "fail", "cancel", None, "{}", "parent_cancelled"),
        ("settle", "run", "discard", None, "{}", None),
        ("settle (template)", "cancel", "complete", None, '"{{ parents.p.output.text }}"', "template_error"),
    ],
)
async def test_how_the_end_of_a_parent_settles_its_child(
    conn: psycopg.AsyncConnection,
    action: str,
    policy: str,
    outcome: str,
    delay: str | None,
    payload: str,
    code: str | None,
) -> None:
    submit = "select queue_pg.submit('k', %s::jsonb, delay => %s::interval, depends_on => %s)"
    row = await (await conn.execute(submit, (payload, delay, await make_parent(conn, policy)))).fetchone()
    assert row is not None
    assert (await read(conn, row[0]))[0] == "waiting"
    await conn.execute(SETTLE.format(outcome))
    assert await read(conn, row[0]) == (EDGES["waiting", action][0], 0, 0)
    found = await (await conn.execute("select error ->> 'code' from queue_pg.job(%s)", row)).fetchone()
    assert found == (code,)


async def test_the_end_of_its_last_subtask_settles_a_task(conn: psycopg.AsyncConnection) -> None:
    job_id = await make(conn, "running")
    await conn.execute("select queue_pg.plan(%s, 1, '{a}', queue => 'parents')", (job_id,))
    before = await read(conn, job_id)
    assert before[0] == "waiting"
    await conn.execute("select queue_pg.claim('w', '{parents}')")
    await conn.execute(SETTLE.format("complete"))
    assert await read(conn, job_id) == (EDGES["waiting", "settle (subtasks)"][0], *before[1:])


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_retry_of_a_child_whose_parents_live(conn: psycopg.AsyncConnection, clock: Clock, state: str) -> None:
    submit = "select queue_pg.submit('k', expires_at => queue_pg.now() + '1 minute', depends_on => %s)"
    row = await (await conn.execute(submit, (await make_parent(conn),))).fetchone()
    assert row is not None
    if state == "cancelled":
        await conn.execute("select queue_pg.cancel(%s)", row)
    else:
        clock.advance(61)
        await conn.execute("select queue_pg.expire()")
    assert (await read(conn, row[0]))[0] == state
    await conn.execute("select queue_pg.retry(%s)", row)
    assert await read(conn, row[0]) == (EDGES[state, "retry (parents live)"][0], 0, 0)
    await conn.execute(SETTLE.format("complete"))
    assert (await read(conn, row[0]))[0] == "queued"


@pytest.mark.parametrize(
    ("action", "outcome", "delay"),
    [
        ("settle (shared)", "complete", None),
        ("settle (next)", "discard", None),
        ("settle (next)", "cancel", None),
        ("settle (next, later)", "discard", "1 hour"),
    ],
)
async def test_how_the_end_of_shared_work_settles_those_that_wait(
    conn: psycopg.AsyncConnection, action: str, outcome: str, delay: str | None
) -> None:
    await conn.execute("select queue_pg.submit('k', queue => 'parents', cache => true)")
    await conn.execute("select queue_pg.claim('p', '{parents}')")
    submit = "select queue_pg.submit('k', delay => %s::interval, cache => true)"
    row = await (await conn.execute(submit, (delay,))).fetchone()
    assert row is not None
    assert (await read(conn, row[0]))[0] == "waiting"
    await conn.execute(SETTLE.format(outcome))
    assert await read(conn, row[0]) == (EDGES["waiting", action][0], 0, 0)


@pytest.mark.parametrize("state", ["queued", "scheduled"])
async def test_one_that_can_start_sooner_overtakes(conn: psycopg.AsyncConnection, state: str) -> None:
    delay = "1 hour" if state == "scheduled" else None
    row = await (
        await conn.execute("select queue_pg.submit('k', delay => %s::interval, cache => true)", (delay,))
    ).fetchone()
    assert row is not None
    assert (await read(conn, row[0]))[0] == state
    await conn.execute(SQL["submit"])
    assert await read(conn, row[0]) == (EDGES[state, "submit (overtakes)"][0], 0, 0)


@pytest.mark.parametrize(("state", "retry"), [("failed", False), ("cancelled", None)])
async def test_retry_of_a_job_whose_work_another_does(
    conn: psycopg.AsyncConnection, state: str, retry: bool | None
) -> None:
    row = await (await conn.execute("select queue_pg.submit('k', cache => true)")).fetchone()
    assert row is not None
    await conn.execute("select queue_pg.claim('w', '{default}')")
    if retry is None:
        await conn.execute("select queue_pg.cancel(%s)", row)
    else:
        await conn.execute("select queue_pg.fail(%s, 1, '{}', %s)", (row[0], retry))
    assert (await read(conn, row[0]))[0] == state
    await conn.execute(SQL["submit"])
    await conn.execute("select queue_pg.retry(%s)", row)
    assert await read(conn, row[0]) == (EDGES[state, "retry (shared)"][0], 0, 1)


def test_the_table_is_complete() -> None:
    assert len(EDGES) >= 19
    assert {VARIANTS.get(action, action) for action in ACTIONS} == set(SQL)
