"""How a long run goes: what was done by when, and the rate of each tenth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.children import Child
from benchmarks.marks import Marks
from benchmarks.model import Line

SAMPLE_SECONDS = 0.1


@dataclass(slots=True)
class Progress:
    """Samples of a worker's progress from its first job on, and of whatever else is to be followed.

    Jobs that had begun `before` do not count: the first one after them is the first.
    """

    marks: Marks
    jobs: int
    probe: Callable[[], dict[str, float]] | None = None
    probe_seconds: float = 1.0
    before: int = 0
    seconds: list[float] = field(default_factory=list[float])
    done: list[int] = field(default_factory=list[int])
    # What `probe` returned, over the jobs done by then.
    probed: dict[str, Line] = field(default_factory=dict[str, Line])
    _begin: float | None = None

    def sample(self) -> None:
        """Take a sample when it is time for one."""
        now = time.monotonic()
        if self._begin is None:
            if self.marks.begun() <= self.before:
                return
            first = self.marks.first_ns()
            self._begin = first / 1e9 if first is not None and not self.before else now
            self._add(0.0, 0)
        passed = now - self._begin
        if passed - self.seconds[-1] < SAMPLE_SECONDS:
            return
        done = self.marks.begun() - self.before
        if self.probe is not None and int(passed / self.probe_seconds) > int(self.seconds[-1] / self.probe_seconds):
            for name, value in self.probe().items():
                line = self.probed.setdefault(name, Line())
                line.x.append(done)
                line.y.append(value)
        self._add(passed, done)

    def finish(self, child: Child, *, seconds: float) -> None:
        """Sample until the last job has begun."""

        def all_begun() -> bool:
            self.sample()
            return self.marks.begun() - self.before >= self.jobs

        child.wait_for(all_begun, seconds=seconds, what=f"the last of {self.jobs} jobs", pause=0.01)
        assert self._begin is not None
        self._add(time.monotonic() - self._begin, self.jobs)

    @property
    def rate(self) -> float:
        """Jobs per second over all."""
        return self.jobs / self.seconds[-1]

    def tenths(self) -> list[float]:
        """Return jobs per second in each tenth of the jobs."""
        edges = [self._when(self.jobs * part / 10) for part in range(11)]
        return [self.jobs / 10 / (later - earlier) for earlier, later in pairwise(edges)]

    def line(self) -> Line:
        """Return the rate over the jobs, a point for each tenth at its middle."""
        return Line([self.jobs * (part + 0.5) / 10 for part in range(10)], self.tenths())

    def _add(self, seconds: float, done: int) -> None:
        self.seconds.append(seconds)
        self.done.append(done)

    def _when(self, count: float) -> float:
        """Return when so many jobs had begun, between two samples in proportion."""
        after = next(index for index, done in enumerate(self.done) if done >= count)
        if after == 0:
            return self.seconds[0]
        step = self.done[after] - self.done[after - 1]
        part = (count - self.done[after - 1]) / step
        return self.seconds[after - 1] + part * (self.seconds[after] - self.seconds[after - 1])
