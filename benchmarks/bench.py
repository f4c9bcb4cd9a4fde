"""What measures are given: the server, the peers, and how much to do."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.children import Child, ChildFailed, started
from benchmarks.contestants.base import Contestant
from benchmarks.marks import Marks, new_marks
from benchmarks.model import Record
from benchmarks.server import Database, Server


@dataclass(frozen=True, slots=True)
class Bench:
    """One invocation. `quick` is for development and tests: tiny numbers, no meaning."""

    server: Server
    runs: int
    quick: bool = False
    peers: bool = True

    def size(self, full: int, quick: int) -> int:
        """Return how many, in full or in a quick run."""
        return quick if self.quick else full

    def size_of(self, full: Sequence[int], quick: Sequence[int]) -> Sequence[int]:
        """Return which numbers to go through, in full or in a quick run."""
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
        with new_marks() as marks, started(contestant.worker(database, marks, stamps=stamps)) as child:
            contestant.ready(database, child)
            yield child, marks

    @contextmanager
    def tolerant(self, contestant: Contestant, record: Record) -> Generator[None]:
        """Let a peer fail without ending the measure; the report says so. queue-pg and the raw loop may not fail."""
        try:
            yield
        except ChildFailed as error:
            if contestant.name.startswith(("queue-pg", "raw")):
                raise
            record.note(f"{contestant.name} failed: {str(error)[:600]}")
            self.say(f"{contestant.name} failed: {error}")
