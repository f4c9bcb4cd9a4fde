"""The harness's own SQL, one statement or script a file in `sql/`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import LiteralString

Query = LiteralString | bytes

_FOLDER = Path(__file__).parent / "sql"


@cache
def statement(name: str) -> bytes:
    """Return the text of `sql/<name>.sql`. Bytes, because psycopg takes them as a query that nobody has formatted."""
    return (_FOLDER / f"{name}.sql").read_bytes()
