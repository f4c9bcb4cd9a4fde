"""Database errors become the errors of queue_pg.errors."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import psycopg_pool
import pytest

from queue_pg import (
    DatabaseUnavailable,
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    LeaseLost,
    NewJob,
    Queue,
    QueuePgError,
    SchemaError,
    UniqueKeyConflict,
)
from queue_pg.sqlstates import translate_error, translated
from queue_pg.store import translate_error as by_store

ID = UUID("01990000-0000-7000-8000-000000000000")


async def raised(conn: psycopg.AsyncConnection, query: str, *params: Any) -> QueuePgError:
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute(query, params)
    made = translate_error(caught.value)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ("(kind) values ('')", "kind"),
        ("(kind, queue) values ('k', repeat('q', 201))", "queue"),
        ("(kind, org) values ('k', '')", "org"),
        ("(kind, max_attempts) values ('k', 0)", "max_attempts"),
        ("(kind, timeout) values ('k', '366 days')", "timeout"),
        ("(kind, run_at) values ('k', 'infinity')", "run_at"),
        ("(kind, expires_at) values ('k', '10000-01-01')", "expires_at"),
        ("(kind, created_at) values ('k', '-infinity')", "created_at"),
        ("(kind, tags) values ('k', array_fill('t'::text, array[65]))", "tags"),
        ("(kind, metadata) values ('k', '[]')", "metadata"),
        ("(kind, payload) values ('k', '{\"n\": 1e131071}')", "payload"),
        ("(kind, traceparent) values ('k', repeat('x', 256))", "traceparent"),
        ("(payload) values ('{}')", "kind"),
    ],
)
async def test_constraints_name_the_field(conn: psycopg.AsyncConnection, values: str, field: str) -> None:
    error = await raised(conn, f"insert into queue_pg.jobs {values}")
    assert isinstance(error, InvalidJob)
    assert error.field == field
    assert "breaks the rule" not in error.reason or field == "created_at"


@pytest.mark.parametrize("text", ['{"a": "\\u0000"}', '{"a": "\\ud800"}', "{", '{"n": 1e200000}', "[" * 100_000])
async def test_json_that_postgres_refuses(conn: psycopg.AsyncConnection, text: str) -> None:
    assert isinstance(await raised(conn, "select queue_pg.submit('k', %s::text::jsonb)", text), InvalidJob)


async def test_raised_by_the_sql_functions(conn: psycopg.AsyncConnection) -> None:
    missing = await raised(conn, "select queue_pg.cancel(%s)", ID)
    assert isinstance(missing, JobNotFound)
    assert missing.job_id == ID

    row = await (await conn.execute("select queue_pg.submit('k', unique_key => 'x')")).fetchone()
    assert row is not None
    wrong = await raised(conn, "select queue_pg.retry(%s)", row[0])
    assert isinstance(wrong, InvalidTransition)
    assert (wrong.job_id, wrong.action, wrong.state) == (row[0], "retry", "queued")

    lost = await raised(conn, "select queue_pg.complete(%s, 1)", row[0])
    assert isinstance(lost, LeaseLost)
    assert (lost.job_id, lost.state) == (row[0], "queued")

    for query in (
        "select queue_pg.submit('other', unique_key => 'x')",
        "insert into queue_pg.jobs (kind, unique_key) values ('k', 'x')",
    ):
        taken = await raised(conn, query)
        assert isinstance(taken, UniqueKeyConflict)
        assert (taken.unique_key, taken.job_id) == ("x", row[0])

    invalid = await raised(conn, "select queue_pg.submit_many('{}')")
    assert isinstance(invalid, InvalidJob)
    assert invalid.field == "jobs"


async def test_other_errors(conn: psycopg.AsyncConnection, empty_dsn: str) -> None:
    assert isinstance(await raised(conn, "select * from queue_pg.nothing"), SchemaError)
    assert isinstance(await raised(conn, "select queue_pg.nothing()"), SchemaError)
    await conn.execute("set statement_timeout = 1")
    assert isinstance(await raised(conn, "select pg_sleep(10)"), DatabaseUnavailable)
    await conn.execute("set statement_timeout = 0")
    await conn.execute("create role guest")
    await conn.execute("set role guest")
    try:
        forbidden = await raised(conn, "select queue_pg.job(%s)", ID)
        assert forbidden.hint is not None
        assert "Grant" in forbidden.hint
    finally:
        await conn.execute("reset role")
        await conn.execute("drop role guest")
    await conn.execute("set default_transaction_read_only = on")
    assert isinstance(await raised(conn, "select queue_pg.submit('k')"), DatabaseUnavailable)
    assert type(await raised(conn, "select 1/0")) is QueuePgError
    assert isinstance(await raised(conn, "select pg_terminate_backend(pg_backend_pid())"), DatabaseUnavailable)
    assert isinstance(await raised(conn, "select 1"), DatabaseUnavailable)  # the connection is closed
    assert by_store is translate_error


def test_what_comes_from_no_database_passes() -> None:
    assert translate_error(ValueError("x")) is None
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError
    ours = JobNotFound(ID)
    assert translate_error(ours) is ours
    with pytest.raises(JobNotFound) as caught, translated():
        raise ours
    assert caught.value is ours
    for error in (psycopg_pool.PoolTimeout("x"), psycopg_pool.PoolClosed("x"), psycopg.OperationalError("x")):
        assert isinstance(translate_error(error), DatabaseUnavailable)


DIE_AT_COMMIT = """
create function public.die() returns trigger language plpgsql as $$
begin
  perform pg_terminate_backend(pg_backend_pid());
  return null;
end $$;
create constraint trigger die after insert on queue_pg.jobs deferrable initially deferred
  for each row execute function public.die()
"""


async def test_a_connection_lost_at_commit_leaves_the_outcome_unknown(dsn: str, conn: psycopg.AsyncConnection) -> None:
    await conn.execute(DIE_AT_COMMIT)
    async with Queue(dsn, notify=False) as queue:
        for submit in (queue.submit("k"), queue.submit_many([NewJob(kind="k")])):
            with pytest.raises(DatabaseUnavailable, match="outcome is unknown") as caught:
                await submit
            assert caught.value.hint is not None
            assert "unique_key" in caught.value.hint
        # With a unique key repeating is safe, and nothing is said about outcomes.
        with pytest.raises(DatabaseUnavailable) as caught:
            await queue.submit("k", unique_key="x")
        assert "unknown" not in caught.value.message
        await conn.execute("drop trigger die on queue_pg.jobs")
        assert (await queue.submit("k", unique_key="x")).unique_key == "x"


def test_details_that_are_no_json_do_no_harm() -> None:
    class Odd(psycopg.errors.CheckViolation):
        pass

    assert isinstance(translate_error(Odd("new row violates")), InvalidJob)
