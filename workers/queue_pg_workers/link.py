"""One connection of a worker that comes back by itself and never hangs for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from queue_pg.connections import prepare_if_direct
from queue_pg.surroundings import REAL, Surroundings

T = TypeVar("T")
Connection = psycopg.AsyncConnection[tuple[Any, ...]]

STATEMENT_SECONDS = 30.0
CANCEL_SECONDS = 1.0


def primary_dsn(dsn: str) -> str:
    """Return `dsn` such that a standby is refused: during a failover a worker must not take it for the database."""
    if conninfo_to_dict(dsn).get("target_session_attrs") == "read-write":
        return dsn
    return make_conninfo(dsn, target_session_attrs="primary")


class Link:
    """Runs one statement at a time, connecting when there is no connection; any failure drops the connection."""

    def __init__(self, dsn: str, *, application: str, surroundings: Surroundings = REAL) -> None:
        self._dsn = dsn
        self._application = application
        self._surroundings = surroundings
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._deadline: float | None = None
        self._patience = STATEMENT_SECONDS
        self._statements = 0
        self._cancelling: asyncio.Task[None] | None = None

    async def run(
        self, statement: Callable[[Connection], Awaitable[T]], *, timeout_seconds: float = STATEMENT_SECONDS
    ) -> T:
        """Run a statement. Raise psycopg.Error; after psycopg.OperationalError it may or may not have been done."""
        async with self._lock:
            connection = self._connection
            if connection is None or connection.closed:
                async with asyncio.timeout_at(self._deadline):
                    connection = await self._connect()
                self._connection = connection
                self._patience = STATEMENT_SECONDS
            loop = asyncio.get_running_loop()
            until = loop.time() + min(timeout_seconds, self._patience)
            watchdog = loop.call_at(min(until, self._deadline or until), self._surroundings.sever, connection)
            done = False
            try:
                result = await statement(connection)
                done = True
                return result
            except psycopg.Error as error:
                # The connection outlives what the server refused to do, such as storing broken data.
                done = error.sqlstate is not None and not connection.closed
                raise
            finally:
                self._statements += 1
                watchdog.cancel()
                if not done:
                    await self._drop()

    def interrupt_in(self, seconds: float) -> None:
        """Have the server give up the statement that runs now, should it still run then, and cut it off if it does not.

        One that was only cut off may come to its end there all the same, and then nobody knows what it has done.
        """
        if self._lock.locked() and self._connection is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, self._cancel, self._connection, self._statements)
            loop.call_later(2 * seconds, self._cut, self._connection, self._statements)

    def expect_answers_within(self, seconds: float) -> None:
        """From now on, cut off statements that take longer, the one that runs now too: this line may be dead.

        A line made after that is not, so its statements have their usual time.
        """
        self._patience = seconds
        if self._lock.locked() and self._connection is not None:
            asyncio.get_running_loop().call_later(seconds, self._cut, self._connection, self._statements)

    def cut(self) -> None:
        """Cut off the statement that runs now, if one does."""
        if self._lock.locked() and self._connection is not None:
            self._surroundings.sever(self._connection)

    def hurry(self, seconds: float) -> None:
        """From now on, spend no more than this many seconds in all; for a worker that has been asked to end."""
        self._deadline = asyncio.get_running_loop().time() + seconds
        if self._connection is not None:
            asyncio.get_running_loop().call_at(self._deadline, self._surroundings.sever, self._connection)

    async def close(self) -> None:
        await self._drop()

    async def _connect(self) -> Connection:
        connection = await self._surroundings.connect_async(self._dsn, application=self._application)
        connection.answer_seconds = STATEMENT_SECONDS
        try:
            await prepare_if_direct(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _cancel(self, connection: Connection, statement: int) -> None:
        if self._connection is connection and self._statements == statement:
            self._cancelling = asyncio.create_task(_cancel(connection))

    def _cut(self, connection: Connection, statement: int) -> None:
        if self._connection is connection and self._statements == statement:
            self._surroundings.sever(connection)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _cancel(connection: Connection) -> None:
    # Whether it was heard shows in the statement's own end.
    with contextlib.suppress(psycopg.Error, OSError):
        await connection.cancel_safe(timeout=CANCEL_SECONDS)
