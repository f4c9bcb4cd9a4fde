"""Every cause for which a job may not run, each with its sentence, until when, and who holds it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_pg.schema import migrations_root
from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection[Any]

WORKER = "select queue_pg.register_worker('w', 'h', 1, '0', '{{default}}', '{{k}}', {0})"
CLAIM = "select queue_pg.claim('w', '{default}')"

# By reason: what is done before the job is submitted, with what it is, and what is done after it; whether a time is
# known, and somebody named.
CAUSES: dict[str, tuple[list[str], str, list[str], bool, bool]] = {
    "paused": (["select queue_pg.pause_queue('default', queue_pg.now() + '1 h')"], "", [], True, True),
    "limit_paused": (
        ["select queue_pg.pause_limit('key', 'a', queue_pg.now() + '1 h')"],
        "limit_key => 'a'",
        [],
        True,
        True,
    ),
    "limit_full": (
        ["select queue_pg.set_limit('queue', 'default', 1)", "select queue_pg.submit('k')", CLAIM],
        "",
        [],
        False,
        True,
    ),
    "limit_rate": (
        [
            "select queue_pg.set_limit('key', 'a', rate => 1, per => 'day')",
            "select queue_pg.submit('k', limit_key => 'a')",
            CLAIM,
        ],
        "limit_key => 'a'",
        [],
        True,
        True,
    ),
    "parents": (
        [],
        "depends_on => jsonb_build_array(queue_pg.submit('k'))",
        [],
        False,
        True,
    ),
    "shared": (["select queue_pg.submit('k', cache => true)"], "cache => true", [], False, True),
    "scheduled": ([], "delay => '1 hour'", [], True, False),
    "due": (
        [],
        "delay => '1 hour'",
        ["update queue_pg.jobs set run_at = queue_pg.now() - interval '1 s'"],
        True,
        False,
    ),
    "retry": (
        [],
        "",
        [CLAIM, "select queue_pg.fail(id, 1, '{\"code\": \"boom\"}', delay => '1 h') from queue_pg.jobs"],
        True,
        False,
    ),
    "sleep": (
        [],
        "",
        [CLAIM, "select queue_pg.sleep(id, 1, 'nap', '1 hour'), queue_pg.wait(id, 1) from queue_pg.jobs"],
        True,
        False,
    ),
    "event": (
        [],
        "",
        [CLAIM, "select queue_pg.wait_for_event(id, 1, 'go', '1 hour'), queue_pg.wait(id, 1) from queue_pg.jobs"],
        True,
        True,
    ),
    "expired": (
        [],
        "expires_at => queue_pg.now() + '1 h'",
        ["update queue_pg.jobs set expires_at = queue_pg.now()"],
        True,
        False,
    ),
    "no_worker": ([], "", [], False, False),
    "behind": ([WORKER.format(2), "select queue_pg.submit('k')"], "", [], False, True),
    "no_free_slot": ([WORKER.format(0)], "", [], False, True),
    "next": ([WORKER.format(2)], "", [], False, True),
    "running": ([], "", [CLAIM], True, True),
    "lease_expired": (
        [],
        "",
        [CLAIM, "update queue_pg.jobs set lease_expires_at = queue_pg.now() - interval '1 s'"],
        True,
        True,
    ),
    "finished": ([], "", ["select queue_pg.cancel(id) from queue_pg.jobs"], False, False),
}


async def why(conn: Connection, job: Any) -> tuple[str, str, Any, str | None]:
    found = await (
        await conn.execute("select reason, detail, until, held_by from queue_pg.why_waiting(%s)", (job,))
    ).fetchone()
    assert found is not None
    return found


@pytest.mark.parametrize("reason", CAUSES)
async def test_each_cause_is_told(conn: Connection, reason: str) -> None:
    before, terms, after, has_time, has_holder = CAUSES[reason]
    for statement in before:
        await conn.execute(statement)
    [(job,)] = await (await conn.execute(f"select queue_pg.submit('k'{', ' if terms else ''}{terms})")).fetchall()
    for statement in after:
        await conn.execute(statement)
    found, detail, until, held_by = await why(conn, job)
    assert found == reason
    assert re.fullmatch(r"[A-Z0-9].*\.", detail)
    assert (until is not None, held_by is not None) == (has_time, has_holder)


@asynccontextmanager
async def locking(dsn: str, job: Any) -> AsyncIterator[Connection]:
    async with await Connection.connect(dsn, application_name="a report") as other:
        await other.execute("select from queue_pg.jobs where id = %s for update", (job,))
        yield other
        await other.rollback()


async def test_a_row_that_somebody_has_locked(conn: Connection, dsn: str) -> None:
    await conn.execute(WORKER.format(2))
    [(job,)] = await (await conn.execute("select queue_pg.submit('k')")).fetchall()
    async with locking(dsn, job) as other:
        reason, detail, until, held_by = await why(conn, job)
        assert (reason, until, held_by) == ("locked", None, f"pid {other.info.backend_pid} (a report)")
        assert detail == f"A transaction has locked its row: {held_by}."
    assert (await why(conn, job))[0] == "next"


async def test_parents_that_have_ended_while_the_child_was_locked(conn: Connection, dsn: str) -> None:
    [(parent,)] = await (await conn.execute("select queue_pg.submit('k')")).fetchall()
    [(child,)] = await (
        await conn.execute("select queue_pg.submit('k', depends_on => jsonb_build_array(%s::text))", (parent,))
    ).fetchall()
    await conn.execute(CLAIM)
    async with locking(dsn, child):
        await conn.execute("select queue_pg.complete(%s, 1)", (parent,))
        reason, detail, *_ = await why(conn, child)
        assert reason == "parents"
        assert "maintenance releases it" in detail
    await conn.execute("select queue_pg.maintain()")
    assert (await why(conn, child))[0] == "no_worker"


async def test_a_tenant_has_its_own_causes(conn: Connection) -> None:
    await conn.execute("select queue_pg.pause_queue('default', org => 'acme')")
    await conn.execute("select queue_pg.pause_limit('key', 'a', org => 'acme')")
    [(acme, other)] = await (
        await conn.execute(
            "select queue_pg.submit('k', org => 'acme', limit_key => 'a'), queue_pg.submit('k', limit_key => 'a')"
        )
    ).fetchall()
    assert [(await why(conn, job))[0] for job in (acme, other)] == ["paused", "no_worker"]
    await conn.execute("select queue_pg.resume_queue('default', 'acme')")
    assert (await why(conn, acme))[0] == "limit_paused"


async def test_after_a_time_the_cause_is_another(conn: Connection, clock: Clock) -> None:
    [(job,)] = await (await conn.execute("select queue_pg.submit('k', delay => '1 hour')")).fetchall()
    clock.advance(3601)
    assert (await why(conn, job))[0] == "due"
    await conn.execute("select queue_pg.maintain()")
    assert (await why(conn, job))[0] == "no_worker"


def test_no_cause_is_left_out() -> None:
    """The functions know the causes that are tested here, and docs/limits.md has them all."""
    folder = Path(str(migrations_root())) / "functions"
    known: set[str] = set()
    for name in ("stats.sql", "limits.sql"):
        text = (folder / name).read_text()
        for function in re.findall(r"function queue_pg\.why_\w+\(.*?\n\$\$;", text, re.S):
            known |= set(re.findall(r"reason := '(\w+)'", function))
            for select in re.findall(r"return query select (.*?),\s", function, re.S):
                known |= set(re.findall(r"'(\w+)'", select))
            known |= set(re.findall(r"(?:then|else) '(\w+)' (?:when|else|end)", function))
    known -= {"waiting", "Key", "queue"}  # of the sentences
    assert known | {"sleep", "event"} == {*CAUSES, "locked"}
    docs = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    assert [cause for cause in sorted({*CAUSES, "locked"}) if f"`{cause}`" not in docs] == []
