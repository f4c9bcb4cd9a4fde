"""The two HTTP services that are compared: queue-pg's, and a route that does one bare INSERT."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.children import Child, Command, started
from benchmarks.contestants.base import outside, python_module
from benchmarks.contestants.queue_pg import COMMAND
from benchmarks.server import Database


@dataclass(frozen=True, slots=True)
class Api:
    """A service that listens."""

    child: Child
    port: int


@contextmanager
def queue_pg_api(database: Database) -> Generator[Api]:
    """Run `queue-pg serve` on a free port."""
    environment = {"DATABASE_URL": database.dsn, "LOG_LEVEL": "WARNING"}
    with _listening(outside([COMMAND, "serve", "--port", "0"], environment)) as api:
        yield api


@contextmanager
def bare_api(database: Database) -> Generator[Api]:
    """Run the bare route on a free port."""
    with _listening(
        python_module("benchmarks.contestants.bare_api", environment={"DATABASE_URL": database.dsn})
    ) as api:
        yield api


@contextmanager
def _listening(command: Command) -> Generator[Api]:
    with started(command) as child:

        def port() -> int | None:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", child.log.read_text())
            return int(found.group(1)) if found else None

        child.wait_for(lambda: port() is not None, seconds=30, what="the address of the API")
        found = port()
        assert found is not None
        yield Api(child, found)
