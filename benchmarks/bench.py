"""What measures are given: the server, the peers, and how much to do."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.children import Child, Failed, started
from benchmarks.contestants.base import Contestant
from benchmarks.marks import Marks, new_marks
from benchmarks.model import Record
from benchmarks.server import Database, Server

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bench:
    """One invocation. `quick` is for development and tests: tiny numbers, no meaning."""

    server: Server
    runs: int
    quick: bool = False
    peers: bool = True

    def pick(self, full: T, quick: T) -> T:
        """Return what a full or a quick run takes."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """Tell the person who waits."""
        sys.stderr.write(f"  {text}\n")
        sys.stderr.flush()

    @contextmanager
    def working(
        self, contestant: Contestant, database: Database, *, jobs: int = 0, stamps: bool = False
    ) -> Generator[tuple[Child, Marks]]:
        """Prepare a contestant's schema and jobs, settle the server, and run its worker as long as the block lasts."""
        contestant.prepare(database, jobs)
        database.settle()
        with self.worker(contestant, database, stamps=stamps) as working:
            yield working

    @contextmanager
    def worker(
        self, contestant: Contestant, database: Database, *, stamps: bool = False
    ) -> Generator[tuple[Child, Marks]]:
        """Run a contestant's worker as long as the block lasts."""
        with new_marks() as marks, started(contestant.worker(database, marks, stamps=stamps)) as child:
            contestant.ready(database, child)
            yield child, marks

    @contextmanager
    def tolerant(self, contestant: Contestant, record: Record) -> Generator[None]:
        """Let a peer fail without ending the measure; the report says so. queue-pg and the raw loop may not fail."""
        try:
            yield
        except Failed as error:
            if contestant.name.startswith(("queue-pg", "raw")):
                raise
            record.note(f"{contestant.name} failed: {str(error)[:600]}")
            self.say(f"{contestant.name} failed: {error}")
