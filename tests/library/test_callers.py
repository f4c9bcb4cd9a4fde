"""Submitting in the caller's transaction: the job exists if and only if the transaction commits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from psycopg.rows import dict_row

from queue_pg import InvalidJob, NewJob, Queue, QueuePgError, SyncQueue, UniqueKeyConflict


@pytest.fixture
async def queue(dsn: str) -> Any:
    async with Queue(dsn, notify=False) as queue:
        yield queue


@pytest.fixture
def sync_queue(dsn: str) -> Iterator[SyncQueue]:
    with SyncQueue(dsn, notify=False) as queue:
        yield queue


async def kinds(queue: Queue) -> list[str]:
    return [job.kind for job in (await queue.list()).jobs][::-1]


def sync_kinds(queue: SyncQueue) -> list[str]:
    return [job.kind for job in queue.list().jobs][::-1]


@pytest.fixture(params=["psycopg", "asyncpg"])
async def alchemy(dsn: str, request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param)
    engine = sqlalchemy.ext.asyncio.create_async_engine(dsn.replace("postgresql://", f"postgresql+{request.param}://"))
    yield engine
    await engine.dispose()


@pytest.fixture(params=["psycopg", "psycopg2"])
def sync_alchemy(dsn: str, request: pytest.FixtureRequest) -> Iterator[sqlalchemy.Engine]:
    pytest.importorskip(request.param)
    engine = sqlalchemy.create_engine(dsn.replace("postgresql://", f"postgresql+{request.param}://"))
    yield engine
    engine.dispose()


# --- psycopg ----------------------------------------------------------------------------------------------------------


async def test_psycopg_commits_and_rolls_back(queue: Queue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        job = await queue.submit("kept", {"a": 1}, connection=conn)
        many = await queue.submit_many([NewJob(kind="kept too"), NewJob(kind="and this")], connection=conn)
        assert await kinds(queue) == []
        assert conn.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        await conn.commit()
        assert await kinds(queue) == ["kept", "kept too", "and this"]
        assert await queue.get(job.id) == job
        assert len(many) == 2
        await queue.submit("lost", connection=conn)
        await conn.rollback()
        assert await kinds(queue) == ["kept", "kept too", "and this"]


async def test_a_nested_transaction_decides_for_itself(queue: Queue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        async with conn.transaction():
            await queue.submit("outer", connection=conn)
            async with conn.transaction():
                await queue.submit("inner", connection=conn)
                raise psycopg.Rollback
        await queue.submit("alone", connection=conn)
    assert await kinds(queue) == ["outer", "alone"]


async def test_the_callers_settings_do_not_matter(queue: Queue, dsn: str) -> None:
    options = "-c datestyle=German -c intervalstyle=sql_standard -c timezone=Asia/Kolkata -c bytea_output=escape"
    async with await psycopg.AsyncConnection.connect(
        dsn,
        options=options,
        row_factory=dict_row,
        cursor_factory=psycopg.AsyncRawCursor,
        autocommit=True,
    ) as conn:
        job = await queue.submit("k", {"a": 1}, delay=3600, timeout=90, connection=conn)
    assert await queue.get(job.id) == job


async def test_the_callers_durability_is_its_own(queue: Queue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, options="-c synchronous_commit=off") as conn:
        await queue.submit("k", connection=conn)
        assert await (await conn.execute("show synchronous_commit")).fetchone() == ("off",)


async def test_errors_leave_the_transaction_to_the_caller(queue: Queue, dsn: str) -> None:
    await queue.submit("k", {"a": 1}, unique_key="x")
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await queue.submit("before", connection=conn)
        with pytest.raises(InvalidJob):  # refused before Postgres was asked: the transaction goes on
            await queue.submit("k", {"a": "\x00"}, connection=conn)
        with pytest.raises(UniqueKeyConflict):
            async with conn.transaction():
                await queue.submit("k", {"a": 2}, unique_key="x", connection=conn)
        await conn.commit()
        with pytest.raises(UniqueKeyConflict):
            await queue.submit("k", {"a": 2}, unique_key="x", connection=conn)
        with pytest.raises(QueuePgError, match="aborted") as caught:
            await queue.submit("k", connection=conn)
        assert caught.value.hint is not None
        assert "Roll" in caught.value.hint
        await conn.rollback()
    assert await kinds(queue) == ["k", "before"]


def test_psycopg_blocking(sync_queue: SyncQueue, dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        sync_queue.submit("kept", connection=conn)
        assert sync_kinds(sync_queue) == []
        conn.commit()
        sync_queue.submit("lost", connection=conn)
        conn.rollback()
    assert sync_kinds(sync_queue) == ["kept"]


# --- SQLAlchemy -------------------------------------------------------------------------------------------------------


async def test_sqlalchemy_async(queue: Queue, alchemy: sqlalchemy.ext.asyncio.AsyncEngine) -> None:
    async with alchemy.begin() as conn:
        job = await queue.submit("by connection", {"a": ["ü", 1.5]}, tags=["t"], connection=conn)
        assert await kinds(queue) == []
    assert await queue.get(job.id) == job
    async with alchemy.connect() as conn:
        await queue.submit("lost", connection=conn)
        await conn.rollback()
    session = sqlalchemy.ext.asyncio.async_sessionmaker(alchemy)
    async with session.begin() as work:
        await queue.submit("by session", connection=work)
    async with session() as work:
        await queue.submit_many([NewJob(kind="lost")], connection=work)
        await work.rollback()
    assert await kinds(queue) == ["by connection", "by session"]


def test_sqlalchemy_blocking(sync_queue: SyncQueue, sync_alchemy: sqlalchemy.Engine) -> None:
    with sync_alchemy.begin() as conn:
        job = sync_queue.submit("by connection", {"a": 1}, connection=conn)
        assert sync_kinds(sync_queue) == []
    assert sync_queue.get(job.id) == job
    with sync_alchemy.connect() as conn:
        sync_queue.submit("lost", connection=conn)
    with sqlalchemy.orm.Session(sync_alchemy) as session, session.begin():
        sync_queue.submit("by session", connection=session)
    scoped = sqlalchemy.orm.scoped_session(sqlalchemy.orm.sessionmaker(sync_alchemy))
    sync_queue.submit_many([NewJob(kind="by scoped session")], connection=scoped)
    scoped.commit()
    sync_queue.submit("lost", connection=scoped)
    scoped.rollback()
    scoped.remove()
    assert sync_kinds(sync_queue) == ["by connection", "by session", "by scoped session"]


async def test_sqlalchemy_errors_are_translated_async(
    queue: Queue, alchemy: sqlalchemy.ext.asyncio.AsyncEngine
) -> None:
    job = await queue.submit("k", {"a": 1}, unique_key="x")
    async with alchemy.connect() as conn:
        with pytest.raises(UniqueKeyConflict) as caught:
            await queue.submit("k", {"a": 2}, unique_key="x", connection=conn)
        assert caught.value.job_id == job.id


def test_sqlalchemy_errors_are_translated(sync_queue: SyncQueue, sync_alchemy: sqlalchemy.Engine) -> None:
    job = sync_queue.submit("k", {"a": 1}, unique_key="x")
    with sync_alchemy.connect() as conn:
        with pytest.raises(UniqueKeyConflict) as caught:
            sync_queue.submit("k", {"a": 2}, unique_key="x", connection=conn)
        assert caught.value.job_id == job.id


def test_other_databases_are_refused(sync_queue: SyncQueue) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as conn, pytest.raises(TypeError, match="connected to sqlite"):
        sync_queue.submit("k", connection=conn)
    engine.dispose()


# --- Django -----------------------------------------------------------------------------------------------------------


@contextmanager
def django_connection(dsn: str, **options: Any) -> Iterator[Any]:
    import django
    import django.conf
    import django.db

    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    if not django.conf.settings.configured:
        django.conf.settings.configure(USE_TZ=False, TIME_ZONE="America/New_York", DATABASES={})
        django.setup()
    # Its own settings object per database, since tests share a process.
    handler = django.db.utils.ConnectionHandler(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts["dbname"],
                "USER": parts.get("user"),
                "PASSWORD": parts.get("password") or "",
                "HOST": parts.get("host"),
                "PORT": parts.get("port"),
                **options,
            }
        }
    )
    connection = handler["default"]
    try:
        yield connection
    finally:
        connection.close()


def test_django(sync_queue: SyncQueue, dsn: str) -> None:
    with django_connection(dsn) as connection:
        connection.set_autocommit(False)
        job = sync_queue.submit("kept", {"a": ["ü"]}, delay=60, connection=connection)
        assert sync_kinds(sync_queue) == []
        connection.commit()
        assert sync_queue.get(job.id) == job
        sync_queue.submit_many([NewJob(kind="lost")], connection=connection)
        connection.rollback()
        sync_queue.submit("k", {"a": 1}, unique_key="x", connection=connection)
        connection.commit()
        with pytest.raises(UniqueKeyConflict):
            sync_queue.submit("k", {"a": 2}, unique_key="x", connection=connection)
        connection.rollback()
    assert sync_kinds(sync_queue) == ["kept", "k"]


# --- what is no connection --------------------------------------------------------------------------------------------


async def test_a_connection_of_the_wrong_kind_is_told(
    queue: Queue,
    sync_queue: SyncQueue,
    dsn: str,
    alchemy: sqlalchemy.ext.asyncio.AsyncEngine,
    sync_alchemy: sqlalchemy.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn, alchemy.connect() as work:
        session = sqlalchemy.ext.asyncio.AsyncSession(alchemy)
        for wrong in (conn, work, session):
            with pytest.raises(TypeError, match="this SyncQueue blocks and got an async"):
                sync_queue.submit("k", connection=wrong)
        await session.close()
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with psycopg.connect(dsn) as plain, sync_alchemy.connect() as work, django_connection(dsn) as django:
        for wrong in (plain, work, sqlalchemy.orm.Session(sync_alchemy), django):
            with pytest.raises(TypeError, match=r"this Queue is async and got a blocking .*SyncQueue"):
                await queue.submit("k", connection=wrong)
    for nonsense in (dsn, 7, sync_alchemy):
        with pytest.raises(TypeError, match="connection: got"):
            await queue.submit("k", connection=nonsense)
        with pytest.raises(TypeError, match="connection: got"):
            sync_queue.submit("k", connection=nonsense)
    assert await kinds(queue) == []


def test_none_of_those_libraries_is_imported() -> None:
    code = (
        "import sys, queue_pg, queue_pg.testing, queue_pg.maintenance;"
        "print([name for name in ('sqlalchemy', 'django', 'starlette', 'typer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
