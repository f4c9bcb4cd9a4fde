"""How soon work goes on after a disturbance, read from the ledgers."""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.faults.ledgers import Edge, Run

# So many hits are a run in which there is time for calm around some, each time after so many.
MANY: Final = 10
MOST_MEASURED: Final = 20
CALM_SECONDS: Final = 8.0
AFTER_SECONDS: Final = 16.0
# What is back has to be so for this long.
SUSTAINED_SECONDS: Final = 3.0
STEP_SECONDS: Final = 0.1
PART: Final = 0.95
# What is promised: of throughput after a restart, and of the jobs of killed workers beyond their lease.
BACK_SECONDS: Final = 10.0
RECLAIM_SECONDS: Final = 2.0
_NANO: Final = 1e9


@dataclass(frozen=True, slots=True)
class Outage:
    """A time without a server, with calm before and after it; nanoseconds of the monotonic clock."""

    calm_ns: int
    down_ns: int
    up_ns: int
    until_ns: int


def back_after(runs: Sequence[Run], outages: Sequence[Outage]) -> Iterator[float]:
    """Yield for each outage after how many seconds as much was done as before, and went on so; infinity: never."""
    ends = sorted(run.end_ns for run in runs if run.end_ns is not None)

    def rate(begin: float, end: float) -> float:
        return (bisect.bisect_left(ends, end) - bisect.bisect_left(ends, begin)) / (end - begin)

    for outage in outages:
        # What has waited is done in a burst, before or after, which is not how it usually is.
        seconds = range(outage.calm_ns, outage.down_ns - int(_NANO) + 1, int(_NANO))
        enough = PART * statistics.median(rate(second, second + _NANO) for second in seconds)
        begin: float = outage.up_ns
        while begin + SUSTAINED_SECONDS * _NANO <= outage.until_ns:
            if min(rate(begin, begin + SUSTAINED_SECONDS * _NANO), rate(begin, outage.until_ns)) >= enough:
                yield (begin - outage.up_ns) / _NANO
                break
            begin += STEP_SECONDS * _NANO
        else:
            yield float("inf")


def reclaims(edges: Sequence[Edge], dead_at: Mapping[str, float]) -> dict[str, list[float]]:
    """Return for each killed worker after how many seconds each of its jobs was claimed by another."""
    found: dict[str, list[float]] = {worker: [] for worker in dead_at}
    last: dict[str, Edge] = {}
    orphans: dict[str, str] = {}
    for edge in edges:
        before = last.get(edge.job)
        last[edge.job] = edge
        owner = before.worker if before is not None and edge.losses > before.losses else None
        if edge.before == "running" and owner in found:
            orphans[edge.job] = str(owner)
        elif edge.what == "changed" and edge.after == "running" and edge.job in orphans:
            worker = orphans.pop(edge.job)
            found[worker].append(edge.at - dead_at[worker])
    return found


def percentile(values: Collection[float], part: float) -> float:
    """Return the value that so many are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def broken_back(seconds: Sequence[float]) -> str | None:
    """Say what is broken of the promise about throughput, if most outages show it."""
    if not seconds or statistics.median(seconds) <= BACK_SECONDS:
        return None
    return f"after a restart it took {statistics.median(seconds):.1f} s in the middle until as much was done as before"


def broken_reclaims(seconds: Sequence[float], lease_seconds: float) -> str | None:
    """Say what is broken of the promise about jobs of killed workers, if more than chance shows it."""
    late = percentile(seconds, 0.95)
    if late <= lease_seconds + RECLAIM_SECONDS:
        return None
    return f"of the jobs of killed workers one in 20 was claimed by others after {late:.1f} s or more"
