"""The library's SQL: one statement a file in `sql/`, named in a comment so that pg_stat_activity shows who asks."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def statement(name: str) -> bytes:
    """Return the text of `sql/<name>.sql`. Bytes, because psycopg takes them as a query that nobody has formatted."""
    return (files("queue_pg") / "sql" / f"{name}.sql").read_bytes()
