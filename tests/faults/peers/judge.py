"""What became of the jobs of a cell, by its ledgers alone; the same questions for every queue.

Every queue here promises that what it has accepted is done at least once. So what counts is what was lost and what is
stuck; work that was done again is counted, and told apart by whether anything had happened to who did it before.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.ledgers import ACKED, Run, read_lines

EVERYBODY: Final = -1
JOBS, WORKERS = "jobs", "workers"
# A worker whose connections were cut may miss heartbeats, and lose what it takes a little later.
LINGERS_NS: Final = 10 * 10**9


@dataclass(frozen=True, slots=True)
class Told:
    """How a submission ended for the one who made it; `id` only of those acknowledged."""

    number: int
    word: str
    id: str | None
    began_ns: int
    ended_ns: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """Something bad that lasted from `begin_ns` to `end_ns`, and the process that it happened to, or EVERYBODY.

    `measured`: whose recovery it shows, that of the JOBS that ran there, that of the WORKERS, or none.
    """

    what: str
    begin_ns: int
    end_ns: int
    pid: int
    measured: str | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """What the queue itself says of a job that has not succeeded."""

    id: str
    state: str
    live: bool


@dataclass(frozen=True, slots=True)
class Ledgers:
    """All that is known of a cell. `places`: processes of workers, and in whose place each was started."""

    submissions: Sequence[Told]
    runs: Sequence[Run]
    hits: Sequence[Hit]
    left: Sequence[Left]
    places: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True, slots=True)
class Judgement:
    """The account, and the jobs by what became of them."""

    figures: Mapping[str, float]
    jobs: Mapping[str, Sequence[str]]


def judge(ledgers: Ledgers) -> Judgement:
    """Account for every job."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(ledgers.runs, key=lambda run: run.begin_ns):
        runs[run.job].append(run)
    acked = [(told.number, told.id) for told in ledgers.submissions if told.word == ACKED and told.id is not None]
    live = {left.id for left in ledgers.left if left.live}
    given_up = {left.id for left in ledgers.left if not left.live}
    # By the number in the payload, not by the id: a queue may have given that twice.
    done = {run.number for run in ledgers.runs if run.end_ns is not None}
    missing = [job for number, job in acked if number not in done and job not in live]
    explained, unexplained = _tell_apart(runs, ledgers)
    recoveries = [*_taken_up(runs, ledgers.hits), *_back_at_work(ledgers)]
    jobs = {
        "lost": [job for job in missing if job not in given_up],
        "given up": [job for job in missing if job in given_up],
        "stuck": sorted(live),
        "unexplained": unexplained,
    }
    figures: dict[str, float] = {
        "jobs": len({*(job for _, job in acked), *runs, *live}),
        "acked": len(acked),
        "errors": sum(told.word != ACKED for told in ledgers.submissions),
        "executions": len(ledgers.runs),
        "lost": len(jobs["lost"]),
        "given_up": len(jobs["given up"]),
        "stuck": len(live),
        "explained": explained,
        "unexplained": len(unexplained),
        "recoveries": len(recoveries),
        "submission_max_s": round(
            max((told.ended_ns - told.began_ns for told in ledgers.submissions), default=0) / 1e9, 2
        ),
    }
    if recoveries:
        figures["recovery_p50_s"] = round(statistics.median(recoveries), 2)
        figures["recovery_max_s"] = round(max(recoveries), 2)
    return Judgement(figures, jobs)


def _tell_apart(runs: Mapping[str, Sequence[Run]], ledgers: Ledgers) -> tuple[int, list[str]]:
    """Return how many executions too many something explains, and the jobs of those that nothing does.

    Explained: between its submission (or shortly before) and the later execution something happened to the process of
    either. It need not be the earlier one: who was frozen between its claim and its first line begins when another has
    long done the job.
    """
    submitted = {told.number: told.began_ns for told in ledgers.submissions}
    explained = 0
    unexplained: list[str] = []
    for job, own in runs.items():
        for before, after in itertools.pairwise(own):
            since = submitted.get(before.number, before.begin_ns)
            if any(
                hit.pid in {before.pid, after.pid, EVERYBODY}
                and hit.begin_ns <= after.begin_ns
                and hit.end_ns + LINGERS_NS >= since
                for hit in ledgers.hits
            ):
                explained += 1
            else:
                unexplained.append(job)
    return explained, unexplained


def _taken_up(runs: Mapping[str, Sequence[Run]], hits: Sequence[Hit]) -> Iterator[float]:
    """Yield for each job that was torn the seconds until somebody else began it, or it was ended after all."""
    by_pid: dict[int, list[Run]] = defaultdict(list)
    for own in runs.values():
        for run in own:
            by_pid[run.pid].append(run)
    for hit in hits:
        for run in by_pid[hit.pid] if hit.measured == JOBS else ():
            if run.begin_ns <= hit.begin_ns and (run.end_ns is None or run.end_ns > hit.begin_ns):
                moments = [other.begin_ns for other in runs[run.job] if other.begin_ns > hit.begin_ns]
                if run.end_ns is not None:
                    moments.append(run.end_ns)
                if moments:
                    yield (min(moments) - hit.begin_ns) / 1e9


def _back_at_work(ledgers: Ledgers) -> Iterator[float]:
    """Yield for each worker that lost its connection the seconds until it, or who took its place, began a job."""
    begins: dict[int, list[int]] = defaultdict(list)
    for run in ledgers.runs:
        if run.pid in ledgers.places:
            begins[ledgers.places[run.pid]].append(run.begin_ns)
    for hit in ledgers.hits:
        if hit.measured != WORKERS:
            continue
        hurt = begins if hit.pid == EVERYBODY else {ledgers.places[hit.pid]} & begins.keys()
        for place in hurt:
            if later := [begin for begin in begins[place] if begin > hit.end_ns]:
                yield (min(later) - hit.end_ns) / 1e9


def read_submissions(folder: Path) -> list[Told]:
    """Return what applications have written."""
    return [Told(*line) for path in sorted(folder.glob("submissions-*.jsonl")) for line in read_lines(path)]


def write_hits(folder: Path, hits: Sequence[Hit], places: Mapping[int, int]) -> None:
    """Keep beside the other ledgers what they have to be judged by."""
    lines = [[hit.what, hit.begin_ns, hit.end_ns, hit.pid, hit.measured] for hit in hits]
    (folder / "hits.json").write_text(json.dumps({"hits": lines, "places": dict(places)}))
