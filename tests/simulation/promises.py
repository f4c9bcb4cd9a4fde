"""What must hold besides the account of tests/faults: what only somebody sees who looks into all processes at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from queue_pg_workers.leases import FENCE_SECONDS

from tests.faults.ledgers import Run

# Until a handler hears of it that it is to stop.
PATIENCE_SECONDS: Final = FENCE_SECONDS + 0.1


@dataclass(frozen=True, slots=True)
class Probe:
    """A job submitted in peace, while workers were idle: when it was acknowledged, and how soon it had to begin."""

    number: int
    acked_at: float
    within_seconds: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run. Times of `runs` and `dead_at_ns` are nanoseconds, of the rest seconds.

    `stopped`: index of a run to when its code was over that did not come to its end. `stuck`: process number to when
    it stood still, or its event loop did. `most`: process name to how many handlers it ran at once.
    """

    runs: Sequence[Run]
    stopped: Mapping[int, int] = field(default_factory=dict[int, int])
    dead_at_ns: Mapping[int, int] = field(default_factory=dict[int, int])
    stuck: Sequence[tuple[int, float, float]] = ()
    most: Mapping[str, int] = field(default_factory=dict[str, int])
    concurrency: int = 1
    probes: Sequence[Probe] = ()
    # By job, the lines of its log.
    said: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


def find_broken_promises(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield (invariant, job, text) for what was promised and is not so."""
    yield from _slots(facts)
    yield from _overlaps(facts)
    yield from _probes(facts)
    yield from _said_twice(facts)


def _said_twice(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """P6: what a handler has said once is in the job's log once."""
    for job, lines in facts.said.items():
        for line, times in Counter(lines).items():
            if times > 1:
                yield "P6", job, f"{line!r} is in its log {times} times"


def _slots(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """W1: a worker runs no more handlers at once than it has slots."""
    for name, most in facts.most.items():
        if most > facts.concurrency:
            yield "W1", "-", f"{name} ran {most} handlers at once, it has {facts.concurrency} slots"


def _overlaps(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """W2: when a job runs again, its handler before has been stopped, unless its process stood still."""
    own: dict[str, list[int]] = defaultdict(list)
    for index, run in enumerate(facts.runs):
        own[run.job].append(index)
    for job, indexes in own.items():
        for earlier in indexes:
            for later in indexes:
                first, second = facts.runs[earlier], facts.runs[later]
                if first.token >= second.token:
                    continue
                end = first.end_ns or facts.stopped.get(earlier) or facts.dead_at_ns.get(first.pid)
                late = (float("inf") if end is None else end / 1e9) - second.begin_ns / 1e9
                if late > PATIENCE_SECONDS and not _stood_still(facts, first.pid, second.begin_ns / 1e9):
                    yield "W2", job, f"ran with token {first.token} for {late:.3f} s after it began with {second.token}"


def _stood_still(facts: Facts, process: int, at: float) -> bool:
    return any(number == process and begin - 1.0 <= at <= end + PATIENCE_SECONDS for number, begin, end in facts.stuck)


def _probes(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """L3: in peace a job begins as soon as promised, and keeps its lease."""
    for probe in facts.probes:
        runs = [run for run in facts.runs if run.number == probe.number]
        if not runs:
            yield "L3", "-", f"probe {probe.number} has not run"
            continue
        waited = runs[0].begin_ns / 1e9 - probe.acked_at
        if waited > probe.within_seconds:
            yield "L3", runs[0].job, f"probe {probe.number} began after {waited:.3f} s, not {probe.within_seconds:g}"
        if len(runs) > 1:
            yield "L3", runs[0].job, f"probe {probe.number} lost its lease in peace, it ran {len(runs)} times"
