"""Running one statement on a connection that belongs to the caller, inside the caller's transaction.

Taken are psycopg connections, SQLAlchemy connections and sessions (any of its Postgres drivers) and Django's
connections. They are told apart by what they can do, so that none of those libraries is imported here. Nothing is
committed or rolled back: the job exists if and only if the caller's transaction commits.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import dict_row

ACCEPTED_ASYNC = "a psycopg AsyncConnection or an SQLAlchemy AsyncConnection or AsyncSession"
ACCEPTED_SYNC = "a psycopg Connection, an SQLAlchemy Connection or Session, or Django's connection"

Row = Mapping[str, Any]


async def fetch_async(conn: Any, query: bytes, params: Mapping[str, str]) -> list[Row]:
    """Run `query`, which takes text parameters in the psycopg style, and return its rows."""
    if isinstance(conn, AsyncConnection):
        own = cast("AsyncConnection[object]", conn)
        async with AsyncCursor(own, row_factory=dict_row) as cursor:
            await cursor.execute(query, params)
            return list(await cursor.fetchall())
    if _is_alchemy_session(conn) and inspect.iscoroutinefunction(conn.connection):
        conn = await conn.connection()
    if hasattr(conn, "exec_driver_sql") and inspect.iscoroutinefunction(conn.exec_driver_sql):
        result = await conn.exec_driver_sql(*_in_style_of(conn, query, params))
        return [dict(row) for row in result.mappings()]
    if _is_sync(conn):
        raise TypeError(
            f"connection: this Queue is async and got a blocking {_name(conn)}; give it {ACCEPTED_ASYNC}, "
            "or submit with SyncQueue"
        )
    raise TypeError(f"connection: got {_name(conn)}; give {ACCEPTED_ASYNC}")


def fetch_sync(conn: Any, query: bytes, params: Mapping[str, str]) -> list[Row]:
    """Run `query`, which takes text parameters in the psycopg style, and return its rows."""
    if isinstance(conn, Connection):
        own = cast("Connection[object]", conn)
        with Cursor(own, row_factory=dict_row) as cursor:
            cursor.execute(query, params)
            return list(cursor.fetchall())
    if _is_alchemy_session(conn) and not inspect.iscoroutinefunction(conn.connection):
        conn = conn.connection()
    if hasattr(conn, "exec_driver_sql") and not inspect.iscoroutinefunction(conn.exec_driver_sql):
        result = conn.exec_driver_sql(*_in_style_of(conn, query, params))
        return [dict(row) for row in result.mappings()]
    if _is_django(conn):
        with conn.cursor() as cursor:
            cursor.execute(query.decode(), params)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    if isinstance(conn, AsyncConnection) or hasattr(conn, "sync_connection") or hasattr(conn, "sync_session"):
        raise TypeError(
            f"connection: this SyncQueue blocks and got an async {_name(conn)}; give it {ACCEPTED_SYNC}, "
            "or submit with Queue"
        )
    raise TypeError(f"connection: got {_name(conn)}; give {ACCEPTED_SYNC}")


def _in_style_of(conn: Any, query: bytes, params: Mapping[str, str]) -> tuple[str, Any]:
    """Return query and parameters as the SQLAlchemy driver in use wants them."""
    text = query.decode()
    dialect = conn.dialect
    if dialect.name != "postgresql":
        raise TypeError(f"connection: it is connected to {dialect.name}; jobs live in Postgres")
    if dialect.paramstyle == "pyformat":
        return text, dict(params)
    names = re.findall(r"%\((\w+)\)s", text)
    values = tuple(params[name] for name in names)
    if dialect.paramstyle == "format":
        return re.sub(r"%\(\w+\)s", "%s", text), values
    if dialect.paramstyle in ("numeric_dollar", "numeric"):
        mark = "$" if dialect.paramstyle == "numeric_dollar" else ":"
        for number, name in enumerate(names, 1):
            text = text.replace(f"%({name})s", f"{mark}{number}", 1)
        return text, values
    raise TypeError(f"connection: the SQLAlchemy driver {dialect.driver} is not supported")


def _is_alchemy_session(conn: Any) -> bool:
    return hasattr(conn, "get_bind") and callable(getattr(conn, "connection", None))


def _is_django(conn: Any) -> bool:
    return getattr(conn, "vendor", None) == "postgresql" and hasattr(conn, "settings_dict")


def _is_sync(conn: Any) -> bool:
    return (
        isinstance(conn, Connection)
        or _is_alchemy_session(conn)
        or hasattr(conn, "exec_driver_sql")
        or _is_django(conn)
    )


def _name(conn: Any) -> str:
    return f"{type(conn).__module__}.{type(conn).__qualname__}"
