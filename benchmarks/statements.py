"""The harness's own SQL, one statement or script a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import LiteralString, cast

_FOLDER = Path(__file__).parent / "sql"


@cache
def statement(name: str) -> LiteralString:
    """Return the text of `sql/<name>.sql`."""
    return cast("LiteralString", (_FOLDER / f"{name}.sql").read_text())
