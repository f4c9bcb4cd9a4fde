"""Connections as the library makes them: autocommit, found dead early, never waited for in vain, safe behind PgBouncer.

Session settings travel as start-up options, never as SET: behind a transaction pooler a SET stays on a server
connection that the next client gets. A pooler that refuses the options (`unsupported startup parameter`) is asked
without them from then on; nothing depends on them, since every call is one statement in a transaction of its own, and
statements that acknowledge something pin `synchronous_commit` inside that transaction (see sql/finish.sql).
Statements are not prepared by name, which a pooler could not follow, unless `prepare_if_direct` finds that there is
none; the SQL functions keep their plans anyway.
"""

from __future__ import annotations

import select
from typing import Any, Final, Self, TypeVar

from psycopg import AsyncConnection, Connection, OperationalError, conninfo
from psycopg.abc import PQGen
from psycopg_pool import AsyncConnectionPool

from queue_pg.dsn import normalise_dsn
from queue_pg.patience import answer_seconds, within
from queue_pg.statements import statement

T = TypeVar("T")

# Three keepalives within the time after which the kernel gives up: for one that is lost no connection is.
KEEPALIVES: Final[dict[str, str | int]] = {
    "keepalives": 1,
    "keepalives_idle": 6,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
# Who may create operators and functions in a schema on the path would have us run them, with all that we may.
SAFE_PATH: Final = "-c search_path=pg_catalog,pg_temp"
SESSION_OPTIONS: Final = (
    f"{SAFE_PATH} -c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres"
    " -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s"
)
CONNECT_TIMEOUT_SECONDS: Final = 10
# How often a statement runs before it is prepared.
PREPARE_AFTER: Final = 2


def connect_arguments(dsn: str, *, application: str = "queue-pg", options: str = SESSION_OPTIONS) -> dict[str, Any]:
    """Return the keyword arguments for psycopg's connect; what the DSN itself says wins."""
    given = conninfo.conninfo_to_dict(normalise_dsn(dsn))
    defaults: dict[str, Any] = {
        "application_name": application,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "client_encoding": "UTF8",
        **KEEPALIVES,
    }
    defaults.update(given)
    # Later options win over earlier ones, so those of the DSN come last.
    defaults["options"] = f"{options} {given.get('options') or ''}".strip()
    return {**defaults, "autocommit": True, "prepare_threshold": None}


def connect(dsn: str, *, application: str = "queue-pg") -> LibraryConnection:
    """Open one blocking connection as described above."""
    return LibraryConnection.connect(**connect_arguments(dsn, application=application))


async def connect_async(dsn: str, *, application: str = "queue-pg") -> LibraryAsyncConnection:
    """Open one async connection as described above."""
    return await LibraryAsyncConnection.connect(**connect_arguments(dsn, application=application))


async def prepare_if_direct(conn: AsyncConnection[Any]) -> None:
    """Have statements that come again prepared, if the process that answers is the one that was connected to.

    Worth a round trip on a connection that runs the same few statements all its life: parsing and planning one that
    calls a function takes Postgres as long as running it.
    """
    row = await (await conn.execute(statement("backend_pid"))).fetchone()
    if row is not None and row[0] == conn.info.backend_pid:
        conn.prepare_threshold = PREPARE_AFTER


def make_async_pool(
    dsn: str, *, min_size: int = 1, max_size: int = 10, timeout_seconds: float = 10, application: str = "queue-pg"
) -> AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]:
    """Make a pool, not yet open. It keeps no more than `max_size` connections and outlives restarts of Postgres."""
    return AsyncConnectionPool(
        "",
        connection_class=LibraryAsyncConnection,
        kwargs=connect_arguments(dsn, application=application),
        min_size=min_size,
        max_size=max_size,
        timeout=timeout_seconds,
        open=False,
        name=application,
    )


class LibraryAsyncConnection(AsyncConnection[tuple[Any, ...]]):
    """Connects without start-up options where a pooler refuses them, and waits `answer_seconds` for each answer."""

    answer_seconds: float | None = None

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        connection = await cls._connect_somehow(conninfo, **kwargs)
        connection.answer_seconds = answer_seconds(kwargs.get("options") or "")
        return connection

    @classmethod
    async def _connect_somehow(cls, conninfo: str, **kwargs: Any) -> Self:
        try:
            return await super().connect(conninfo, **_acceptable(kwargs))
        except OperationalError as error:
            if not _options_refused(error, kwargs):
                raise
        kwargs["options"] = ""
        return await super().connect(conninfo, **kwargs)

    async def wait(self, gen: PQGen[T], *arguments: Any, **options: Any) -> T:
        if self.answer_seconds is not None:
            gen = within(gen, self.pgconn, self.answer_seconds)
        return await super().wait(gen, *arguments, **options)


class LibraryConnection(Connection[tuple[Any, ...]]):
    """Connects without start-up options where a pooler refuses them, and waits `answer_seconds` for each answer."""

    answer_seconds: float | None = None

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        connection = cls._connect_somehow(conninfo, **kwargs)
        connection.answer_seconds = answer_seconds(kwargs.get("options") or "")
        return connection

    @classmethod
    def _connect_somehow(cls, conninfo: str, **kwargs: Any) -> Self:
        try:
            return super().connect(conninfo, **_acceptable(kwargs))
        except OperationalError as error:
            if not _options_refused(error, kwargs):
                raise
        kwargs["options"] = ""
        return super().connect(conninfo, **kwargs)

    def wait(self, gen: PQGen[T], *arguments: Any, **options: Any) -> T:
        if self.answer_seconds is not None:
            gen = within(gen, self.pgconn, self.answer_seconds)
        return super().wait(gen, *arguments, **options)


_refusing: Final[set[tuple[object, object]]] = set()


def _acceptable(kwargs: dict[str, Any]) -> dict[str, Any]:
    refused = (kwargs.get("host"), kwargs.get("port")) in _refusing
    return {**kwargs, "options": ""} if refused else kwargs


def _options_refused(error: OperationalError, kwargs: dict[str, Any]) -> bool:
    if "unsupported startup parameter" not in str(error):
        return False
    _refusing.add((kwargs.get("host"), kwargs.get("port")))
    return True


def is_closed(conn: AsyncConnection[Any] | Connection[Any]) -> bool:
    """Return whether the server has closed this idle connection, without asking it anything.

    A restarted Postgres leaves every kept connection dead, and the first statement on one would fail with its outcome
    unknown. An idle connection is readable only if the server said goodbye or sent a notice.
    """
    if conn.closed:
        return True
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    try:
        while poll.poll(0):
            conn.pgconn.consume_input()
            conn.pgconn.is_busy()  # parses what has come
    except OperationalError:
        return True
    return conn.closed
