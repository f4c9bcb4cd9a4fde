"""The harness's side of sse_client.py: starts it for some jobs and reads what it says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.children import Child, ChildFailed, started
from benchmarks.contestants.base import python_module


@dataclass(frozen=True, slots=True)
class Streams:
    """A client that follows jobs."""

    child: Child

    def figures(self, *, seconds: float) -> dict[str, float]:
        """Wait until the last stream has ended, and return what the client has found."""
        code = self.child.process.wait(seconds)
        if code != 0:
            raise ChildFailed(f"the client of the streams ended with code {code}: {self.child.tail()}")
        found: dict[str, float] = json.loads(self.child.log.read_text().splitlines()[-1])
        return found


@contextmanager
def following(port: int, job_ids: Sequence[str]) -> Generator[Streams]:
    """Follow each job by a stream of its own as long as the block lasts; begins when all have had their first event."""
    with tempfile.NamedTemporaryFile("w", prefix="queue-pg-bench-", suffix=".ids") as file:
        file.write("\n".join(job_ids))
        file.flush()
        with started(python_module("benchmarks.sse_client", str(port), file.name, environment={})) as child:
            child.wait_for(lambda: "ready" in child.log.read_text(), seconds=60, what="the first event of every stream")
            yield Streams(child)
