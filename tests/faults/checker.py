"""The account of a run: every invariant, held against the ledgers alone.

The names S1 to S8 and L1 are those of docs/reliability.md. What may happen to a job is read from docs/states.md, so the
checker knows nothing that a reader does not.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.ledgers import ACKED, FAILED, UNKNOWN, Edge, Evidence, Run, Stored, Submission

STATES_PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "states.md"
_ROW: Final = re.compile(r"^\| (\w+) \| \w+(?: \([^)]+\))? \| (\w+) \| (?:same|\+1|-1|0) \| ", re.MULTILINE)
LEGAL: Final = frozenset((row[1], row[2]) for row in _ROW.finditer(STATES_PAGE.read_text()))
BEGINNINGS: Final = frozenset({"queued", "scheduled", "waiting", "completed"})
ENDS: Final = frozenset({"completed", "failed", "cancelled"})
# So many lost leases end a job (docs/workers.md).
MOST_LOSSES: Final = 3


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that a run has broken, and for which job."""

    invariant: str
    job: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.job}: {self.text}"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a run may look like. `excused`: the worker ids that were killed, stopped or cut off, None when any may lose
    a lease. `may_remain`: states besides the ends that jobs may rest in. `caps`: limit name to (numbers of its jobs,
    most at once). `may_fail`: kinds of jobs that may end without being completed, None: all; who has lost as many
    leases as are allowed always may. `unwitnessed`: kinds that others do than the handlers that write it down,
    None: all. `forgets`: jobs that have ended, and that no application has an acknowledgement of, may be gone.
    `forsaken`: jobs of which a primary that failed knew more than the standby that took over; what was acknowledged of
    them may be lost, and leases of theirs are given twice."""

    excused: Collection[str] | None = None
    may_remain: Collection[str] = ()
    caps: Mapping[str, tuple[Collection[int], int]] = field(default_factory=dict[str, tuple[Collection[int], int]])
    dead_at_ns: Mapping[int, int] = field(default_factory=dict[int, int])
    may_fail: Collection[str] | None = ()
    unwitnessed: Collection[str] | None = ()
    forgets: bool = False
    forsaken: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """What became of all jobs."""

    figures: Mapping[str, int]
    violations: Sequence[Violation]


def check(evidence: Evidence, expectation: Expectation) -> Account:
    """Hold a run that has come to rest against every invariant."""
    edges: dict[str, list[Edge]] = defaultdict(list)
    for edge in evidence.edges:
        edges[edge.job].append(edge)
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        runs[run.job].append(run)
    everything = [
        *_submissions(evidence),
        *(found for job, own in edges.items() for found in _history(job, own)),
        *_rows(evidence.stored, edges, _forgettable(evidence, edges) if expectation.forgets else frozenset()),
        *_executions(runs, edges),
        *_witnesses(evidence, expectation.unwitnessed),
        *_failures(evidence.stored, expectation.may_fail),
        *_losses(evidence.edges, expectation.excused),
        *_unique(evidence.stored),
        *_rest(evidence.stored, expectation.may_remain),
        *_caps(evidence.runs, expectation),
    ]
    excused = [one for one in everything if one.invariant in {"S1", "S5"} and one.job in expectation.forsaken]
    violations = [one for one in everything if one not in excused]
    words = Counter(submission.word for submission in evidence.submissions)
    again = Counter(way for job, own in runs.items() for way in _reasons(own, edges.get(job, ())))
    unfinished = [job for job in evidence.stored if job.state in ENDS - {"completed"}]
    given_up = sum(_is_given_up(job) for job in unfinished)
    unexplained = sum(violation.invariant == "S5" for violation in violations)
    figures = {
        "jobs": len(evidence.stored),
        "acked": words[ACKED],
        "failed": words[FAILED],
        "unknown": words[UNKNOWN],
        "executions": len(evidence.runs),
        "cut_short": sum(run.end_ns is None for run in evidence.runs),
        "leases_lost": sum(_is_loss(own, index) for own in edges.values() for index in range(len(own))),
        "lost": len({violation.job for violation in violations if violation.invariant in {"S1", "L1"}}),
        "duplicates_after_losses": again[LOST],
        "executions_as_asked": again[ASKED],
        "duplicates_unexplained": unexplained,
        "given_up": given_up,
        "failed_or_cancelled": len(unfinished) - given_up,
    }
    if expectation.forsaken:
        figures["lost_with_the_primary"] = sum(one.invariant == "S1" for one in excused)
        figures["executions_it_had_alone"] = sum(one.invariant == "S5" for one in excused)
    return Account(figures, violations)


def _submissions(evidence: Evidence) -> Iterator[Violation]:
    """S1: what was acknowledged is there, once. S2: what was refused is not; of what nobody knows, one at most is;
    of what was submitted at once, all or nothing."""
    stored: dict[int, list[Stored]] = defaultdict(list)
    for job in evidence.stored:
        if job.number is not None:
            stored[job.number].append(job)
    for submission in evidence.submissions:
        rows = stored[submission.number]
        name = submission.id or f"number {submission.number}"
        if submission.word == ACKED and (len(rows) != 1 or submission.id not in {None, rows[0].id}):
            yield Violation("S1", name, f"was acknowledged; stored: {[row.id for row in rows]}")
        elif submission.word == FAILED and rows:
            yield Violation("S2", name, f"was refused; stored: {[row.id for row in rows]}")
        elif submission.word == UNKNOWN and len(rows) > 1:
            yield Violation("S2", name, f"was submitted once; stored: {[row.id for row in rows]}")
    groups: dict[int, list[Submission]] = defaultdict(list)
    for submission in evidence.submissions:
        if submission.group is not None:
            groups[submission.group].append(submission)
    for group, members in groups.items():
        there = sum(bool(stored[member.number]) for member in members)
        if there not in {0, len(members)}:
            yield Violation("S2", f"group {group}", f"{there} of {len(members)} that were submitted at once are stored")
    known = {submission.number for submission in evidence.submissions}
    for number, rows in stored.items():
        if number not in known:
            yield Violation("S2", rows[0].id, "nobody has submitted it")


def _history(job: str, edges: Sequence[Edge]) -> Iterator[Violation]:
    """S3: every change is a legal one. S4: one end for each life, by the newest lease. S6: leases do not overlap."""
    state: str | None = None
    token = 0
    removed: Edge | None = None
    for edge in edges:
        if removed is not None and edge.xid != removed.xid:
            yield Violation("S3", job, f"was removed as {removed.before} and is nowhere")
            removed = None
            state = None
        match edge.what:
            case "made":
                if (state is not None and state not in ENDS) or edge.after not in BEGINNINGS:
                    yield Violation("S3", job, f"was made as {edge.after} while it was {state}")
                if state is not None and (state, edge.after) not in LEGAL:
                    yield Violation("S3", job, f"went from {state} to {edge.after}")
                state = edge.after
            case "changed" | "renewed":
                if edge.before != state:
                    yield Violation("S3", job, f"was {state} and changed as {edge.before}")
                if edge.what == "changed" and edge.before != edge.after and (edge.before, edge.after) not in LEGAL:
                    yield Violation("S3", job, f"went from {edge.before} to {edge.after}")
                if edge.what == "changed" and edge.after == "running" and edge.token <= token:
                    yield Violation("S6", job, f"was claimed with token {edge.token} after {token}")
                if edge.after != "running" and edge.token != token:
                    yield Violation("S4", job, f"token went from {token} to {edge.token} without a claim")
                state = edge.after
            case "removed":
                removed = edge
            case "ended":
                if (state or "queued", edge.after) not in LEGAL and not (state is None and edge.after in BEGINNINGS):
                    yield Violation("S3", job, f"ended as {edge.after} while it was {state}")
                if state in ENDS:
                    yield Violation("S4", job, f"ended as {edge.after} after it had ended as {state}")
                if edge.token != token:
                    yield Violation("S4", job, f"ended with token {edge.token}, its newest is {token}")
                state, removed = edge.after, None
            case "taken back":
                if edge.before != state or state not in ENDS:
                    yield Violation("S3", job, f"was taken back as {edge.before} while it was {state}")
            case _:
                yield Violation("S3", job, f"its end was {edge.what}")
        token = max(token, edge.token)
    if removed is not None:
        yield Violation("S3", job, f"was removed as {removed.before} and is nowhere")


def _forgettable(evidence: Evidence, edges: Mapping[str, Sequence[Edge]]) -> Collection[str]:
    acked = {submission.id for submission in evidence.submissions}
    return {job for job, own in edges.items() if job not in acked and own[-1].what in {"ended", "taken back"}}


def _rows(
    stored: Sequence[Stored], edges: Mapping[str, Sequence[Edge]], forgettable: Collection[str]
) -> Iterator[Violation]:
    """S4: what a row says is what its last edge said, and a result is of the lease that ended it."""
    seen: set[str] = set()
    for job in stored:
        if job.id in seen:
            yield Violation("S4", job.id, "is there twice")
        seen.add(job.id)
        own = edges.get(job.id)
        if not own:
            yield Violation("S3", job.id, "came into being unnoticed")
            continue
        last = next((edge for edge in reversed(own) if edge.after is not None), own[-1])
        if (last.after, max(edge.token for edge in own)) != (job.state, job.token):
            yield Violation("S4", job.id, f"is {job.state} with token {job.token}; its last edge: {last.after}")
        if job.state == "completed" and job.told is not None and job.told != job.token:
            yield Violation("S4", job.id, f"was ended by token {job.token} with the result of {job.told}")
    for job_id, own in edges.items():
        if job_id not in seen and own[-1].what != "removed" and job_id not in forgettable:
            yield Violation("S1", job_id, f"was {own[-1].after} and is gone")


# Why a job was run again: its lease was lost; it was retried, slept, was handed back.
LOST, ASKED = "lost", "asked"


def _ways_out(history: Sequence[Edge]) -> Mapping[int, str]:
    """Return how each lease ended that another may follow, by its token."""
    ways: dict[int, str] = {}
    for index, edge in enumerate(history):
        if edge.what == "changed" and edge.before == "running" and edge.after != "running":
            ways[edge.token] = LOST if _is_loss(history, index) else ASKED
        elif edge.what == "taken back":
            ways[edge.token] = ASKED
    return ways


def _reasons(own: Sequence[Run], history: Sequence[Edge]) -> Iterator[str]:
    """Yield for each execution after the first why there was one more, where that is known."""
    ways = _ways_out(history)
    for token in sorted({run.token for run in own})[:-1]:
        if token in ways:
            yield ways[token]


def _executions(runs: Mapping[str, Sequence[Run]], edges: Mapping[str, Sequence[Edge]]) -> Iterator[Violation]:
    """S5: each execution has a lease of its own; one more than the first follows the end of the lease before, and what
    has come to its end is not handed back."""
    for job, own in runs.items():
        history = edges.get(job, ())
        claimed = {edge.token for edge in history if edge.what == "changed" and edge.after == "running"}
        for token, times in Counter(run.token for run in own).items():
            if token not in claimed:
                yield Violation("S5", job, f"ran with token {token}, which no claim gave")
            if times > 1:
                yield Violation("S5", job, f"ran {times} times with token {token}")
        ways = _ways_out(history)
        tokens = sorted({run.token for run in own})
        for earlier, later in itertools.pairwise(tokens):
            if earlier not in ways:
                yield Violation("S5", job, f"ran with token {later}; nothing has ended the lease {earlier}")
        ended = {run.token for run in own if run.end_ns is not None}
        for index, edge in enumerate(history):
            handed_back = (edge.what, edge.before, edge.after) == ("changed", "running", "queued")
            if handed_back and edge.token in ended and not _is_loss(history, index):
                yield Violation(
                    "S5", job, f"was handed back with token {edge.token}, with which it had come to its end"
                )


def _witnesses(evidence: Evidence, unwitnessed: Collection[str] | None) -> Iterator[Violation]:
    """S4: what is completed has come to its end in a handler, with the lease that completed it."""
    ended = {(run.job, run.token) for run in evidence.runs if run.end_ns is not None}
    for job in evidence.stored:
        excused = unwitnessed is None or job.kind in unwitnessed
        if job.state == "completed" and (job.id, job.token) not in ended and not excused:
            yield Violation("S4", job.id, f"was completed with token {job.token}; no handler came to its end with it")


def _is_given_up(job: Stored) -> bool:
    return job.state == "failed" and job.losses >= MOST_LOSSES


def _failures(stored: Sequence[Stored], may_fail: Collection[str] | None) -> Iterator[Violation]:
    """L4: who is not meant to fail is completed, but for those who have lost too many leases."""
    for job in stored:
        if job.state in ENDS - {"completed"} and not (may_fail is None or job.kind in may_fail or _is_given_up(job)):
            yield Violation("L4", job.id, f"({job.kind}) is {job.state}, with {job.losses} lost leases")


def _is_loss(own: Sequence[Edge], index: int) -> bool:
    return (
        index > 0
        and own[index].what in {"changed", "removed"}
        and own[index].before == "running"
        and (own[index].losses > own[index - 1].losses)
    )


def _losses(edges: Sequence[Edge], excused: Collection[str] | None) -> Iterator[Violation]:
    """S6: a lease is taken away only when it is over, and (where that is known) only from those who were disturbed."""
    last: dict[str, Edge] = {}
    for edge in edges:
        before = last.get(edge.job)
        last[edge.job] = edge
        if before is None or edge.before != "running" or edge.losses <= before.losses:
            continue
        if edge.lease_before is None or edge.at < edge.lease_before:
            yield Violation("S6", edge.job, f"lease {edge.token} was taken away before it was over")
        if excused is not None and before.worker is not None and before.worker not in excused:
            yield Violation("S5", edge.job, f"lease {edge.token} was taken from {before.worker}, whom nobody disturbed")


def _unique(stored: Sequence[Stored]) -> Iterator[Violation]:
    """S8: a unique key names one job."""
    owners: dict[str, str] = {}
    for job in stored:
        if job.unique_key is not None and owners.setdefault(job.unique_key, job.id) != job.id:
            yield Violation("S8", job.id, f"has the unique key {job.unique_key} of {owners[job.unique_key]}")


def _rest(stored: Sequence[Stored], may_remain: Collection[str]) -> Iterator[Violation]:
    """L1: in the end every job has ended."""
    for job in stored:
        if job.live and job.state not in may_remain:
            yield Violation("L1", job.id, f"is still {job.state}")


def _caps(runs: Sequence[Run], expectation: Expectation) -> Iterator[Violation]:
    """S7: never more at once than allowed. What a killed process ran was over when it was killed."""
    for name, (numbers, most) in expectation.caps.items():
        moments: list[tuple[int, int, str]] = []
        for run in runs:
            if run.number not in numbers:
                continue
            end = run.end_ns or run.left_ns or expectation.dead_at_ns.get(run.pid)
            if end is not None:
                moments += [(run.begin_ns, 1, run.job), (end, -1, run.job)]
        running = 0
        for _, step, job in sorted(moments, key=lambda moment: moment[:2]):
            running += step
            if running > most:
                yield Violation("S7", job, f"is number {running} of limit {name}, which allows {most}")


def describe(violations: Sequence[Any], *, most: int = 20) -> str:
    """Return the first of them for a person to read."""
    lines = [str(violation) for violation in violations[:most]]
    if len(violations) > most:
        lines.append(f"... and {len(violations) - most} more")
    return "\n".join(lines)
