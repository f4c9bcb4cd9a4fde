"""What docs/security.md says about rights in the database."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql

Connection = psycopg.AsyncConnection

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.fixture
async def role(conn: Connection) -> AsyncIterator[str]:
    """A role without rights; conn can become it."""
    name = f"app_{uuid4().hex}"
    await conn.execute(sql.SQL("create role {} nologin").format(sql.Identifier(name)))
    try:
        yield name
    finally:
        await conn.execute("reset role")
        await conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


async def become(conn: Connection, role: str) -> None:
    await conn.execute(sql.SQL("set role {}").format(sql.Identifier(role)))


async def grant(conn: Connection, role: str) -> None:
    [granted] = re.findall(r"```sql\n(grant usage .*?)```", PAGE.read_text(), re.DOTALL)
    await conn.execute(granted.replace("to app;", f'to "{role}";'))


async def value(conn: Connection, statement: str) -> Any:
    row = await (await conn.execute(statement)).fetchone()
    return row and row[0]


async def test_nobody_has_any_right_until_it_is_granted(conn: Connection, role: str) -> None:
    await become(conn, role)
    for statement in ("select * from queue_pg.jobs", "select queue_pg.submit('k')", "select queue_pg.now()"):
        with pytest.raises(errors.InsufficientPrivilege):
            await conn.execute(statement)


async def test_a_role_that_may_insert_submits_and_does_nothing_else(conn: Connection, role: str) -> None:
    await conn.execute("select queue_pg.submit('secret', '{\"a\": 1}')")
    await grant(conn, role)
    await become(conn, role)
    await conn.execute("insert into queue_pg.jobs (kind, payload, priority) values ('k', '{}', 5)")
    for statement in (
        "insert into queue_pg.jobs (kind, state) values ('k', 'running')",
        "insert into queue_pg.jobs (kind, lease_token) values ('k', 7)",
        "select payload from queue_pg.jobs",
        "select payload from queue_pg.all_jobs",
        "select * from queue_pg.events(gen_random_uuid())",
        "update queue_pg.jobs set priority = 9",
        "delete from queue_pg.jobs",
        "select queue_pg.claim('w', '{default}')",
        "select queue_pg.cancel(j.id) from queue_pg.jobs j",
        "select queue_pg.configure(max_attempts => 9)",
        "select queue_pg.maintain()",
        "select queue_pg.pause_queue('default')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            await conn.execute(statement)
    await conn.execute("reset role")
    assert await value(conn, "select count(*) from queue_pg.jobs where kind = 'k'") == 1


async def test_no_function_lends_its_owners_rights(conn: Connection) -> None:
    found = await conn.execute(
        "select p.proname from pg_proc p where p.pronamespace = 'queue_pg'::regnamespace and p.prosecdef"
    )
    assert await found.fetchall() == []
