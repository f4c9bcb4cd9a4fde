"""What other parts promise, held against the same ledgers: families, batches, steps, artifacts, events, commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.faults.ledgers import Edge, Run, Stored, read_lines

# What a `maker` leaves (fault_tasks.py).
MADE: Final = ("out.txt", 5)
# Where commands write down that they begin and end (mixture.py), in the order in which that happens.
COMMANDS: Final = "commands.txt"


@dataclass(frozen=True, slots=True)
class StepRun:
    """One execution of a step, as its function wrote it down."""

    job: str
    name: str
    token: int


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch at the end, and how many jobs were submitted to tell of it."""

    id: str
    state: str
    total: int
    completed: int
    failed: int
    cancelled: int
    told: int


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What one process of a command has written: `begin`, or `end`."""

    job: str
    pid: int
    word: str


@dataclass(frozen=True, slots=True)
class Parts:
    """What is known of the parts. `families`: (parent, child) by their numbers; `members`: batch to the numbers of its
    jobs; `kept`: job to step to the token that did it, as its result says; `events`: job to (how many, the newest)."""

    families: Sequence[tuple[int, int]] = ()
    members: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    steps: Sequence[StepRun] = ()
    kept: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    batches: Sequence[BatchRow] = ()
    makers: Sequence[str] = ()
    artifacts: Mapping[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    events: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    commands: Sequence[CommandLine] = ()


def find_broken(
    parts: Parts, runs: Sequence[Run], stored: Sequence[Stored], edges: Sequence[Edge]
) -> Iterator[tuple[str, str, str]]:
    """Yield (invariant, job, text) for what was promised and is not so."""
    yield from _families(parts, runs, stored)
    yield from _batches(parts, stored)
    yield from _steps(parts)
    yield from _steps_again(parts, edges)
    yield from _commands(parts, stored)
    for job in parts.makers:
        if parts.artifacts.get(job) != MADE:
            yield "P4", job, f"has completed; its artifact is {parts.artifacts.get(job)}"
    for job, (count, newest) in parts.events.items():
        if count != newest:
            yield "P5", job, f"has {count} events, the newest is number {newest}"


def _families(parts: Parts, runs: Sequence[Run], stored: Sequence[Stored]) -> Iterator[tuple[str, str, str]]:
    tokens = {job.number: job.token for job in stored if job.state == "completed" and job.number is not None}
    ends = {run.number: run.end_ns for run in runs if run.token == tokens.get(run.number)}
    begins: dict[int, int] = {}
    for run in runs:
        begins[run.number] = min(run.begin_ns, begins.get(run.number, run.begin_ns))
    for parent, child in parts.families:
        end, begin = ends.get(parent), begins.get(child)
        if begin is not None and (end is None or begin < end):
            yield "P1", f"number {child}", f"began before its parent, number {parent}, had ended"


def _batches(parts: Parts, stored: Sequence[Stored]) -> Iterator[tuple[str, str, str]]:
    states = {job.number: job.state for job in stored}
    rows = {row.id: row for row in parts.batches}
    for batch, numbers in parts.members.items():
        row = rows.get(batch)
        if row is None:
            yield "P2", batch, "was closed and is nowhere"
            continue
        found = [states.get(number) for number in numbers]
        counts = tuple(found.count(state) for state in ("completed", "failed", "cancelled"))
        if (row.total, row.completed, row.failed, row.cancelled) != (len(numbers), *counts):
            yield "P2", batch, f"counts {row}, its jobs are {found}"
        if row.state not in {"completed", "failed"} or row.told != 1:
            yield "P2", batch, f"is {row.state}, and was told of {row.told} times"


def _steps(parts: Parts) -> Iterator[tuple[str, str, str]]:
    seen: set[StepRun] = set()
    for step in parts.steps:
        if step in seen:
            yield "P3", step.job, f"step {step.name} was done twice with token {step.token}"
        seen.add(step)
        kept = parts.kept.get(step.job, {}).get(step.name)
        if kept is not None and step.token > kept:
            yield "P3", step.job, f"step {step.name} was done with token {step.token}, its result is that of {kept}"


def _steps_again(parts: Parts, edges: Sequence[Edge]) -> Iterator[tuple[str, str, str]]:
    """A step that was done by an attempt which ended in order, to sleep or to be retried, is never done again."""
    tokens: dict[tuple[str, str], list[int]] = {}
    for step in parts.steps:
        tokens.setdefault((step.job, step.name), []).append(step.token)
    stepped = {job for job, _ in tokens}
    in_order = {
        (edge.job, edge.token)
        for edge in edges
        if edge.job in stepped and (edge.what, edge.before, edge.after) == ("changed", "running", "scheduled")
    }
    for (job, name), own in tokens.items():
        for earlier, later in pairwise(sorted(own)):
            if earlier != later and (job, earlier) in in_order:
                yield "P3", job, f"step {name} was done with token {earlier}, and again with {later}"


def _commands(parts: Parts, stored: Sequence[Stored]) -> Iterator[tuple[str, str, str]]:
    """Those that completed came to their end; none went on when the next one of its job had begun."""
    newest: dict[str, int] = {}
    ended: set[str] = set()
    for line in parts.commands:
        if line.word == "begin":
            newest[line.job] = line.pid
            continue
        ended.add(line.job)
        if newest.get(line.job) != line.pid:
            yield "P7", line.job, f"process {line.pid} went on when {newest.get(line.job)} had begun"
    for job in stored:
        if job.kind == "command" and job.state == "completed" and job.id not in ended:
            yield "P7", job.id, "has completed; its command did not come to its end"


def read_parts(folder: Path, connection: psycopg.Connection[Any]) -> Parts:
    """Return what files and tables say of the parts."""
    families: list[tuple[int, int]] = []
    members: dict[str, Sequence[int]] = {}
    for path in sorted(folder.glob("parts-*.jsonl")):
        for word, first, *rest in read_lines(path):
            if word == "family":
                families.append((first, rest[0]))
            else:
                members[first] = rest
    steps = [StepRun(*line) for path in sorted(folder.glob("steps-*.jsonl")) for line in read_lines(path)]
    return Parts(
        families,
        members,
        steps,
        dict(
            _rows(connection, "select id::text, result -> 'steps' from queue_pg.finished_jobs where result ? 'steps'")
        ),
        [BatchRow(*row) for row in _rows(connection, _BATCHES)],
        [row[0] for row in _rows(connection, _MAKERS)],
        {
            row[0]: (row[1], row[2])
            for row in _rows(connection, "select job_id::text, name, size from queue_pg.artifacts")
        },
        {row[0]: (row[1], row[2]) for row in _rows(connection, _EVENTS)},
        list(_read_commands(folder / COMMANDS)),
    )


def _read_commands(path: Path) -> Iterator[CommandLine]:
    if path.exists():
        for line in path.read_text().splitlines():
            job, pid, word = line.split()
            yield CommandLine(job, int(pid), word)


_MAKERS: Final = (
    "select id::text from queue_pg.finished_jobs where kind in ('maker', 'command') and state = 'completed'"
)
_BATCHES: Final = """
select b.id::text, b.state, b.total, b.completed, b.failed, b.cancelled, (
  select count(*) from queue_pg.finished_jobs j where j.kind = 'told' and j.payload -> 'batch' ->> 'id' = b.id::text)
from queue_pg.batch_progress b
"""
_EVENTS: Final = """
select j.id::text, count(*), max(e.seq)
from (select id from queue_pg.finished_jobs where kind in ('maker', 'flaky', 'nap', 'stepped') order by id limit 500) j
cross join lateral queue_pg.events(j.id) e group by j.id
"""


def _rows(connection: psycopg.Connection[Any], statement: str) -> list[tuple[Any, ...]]:
    return connection.execute(statement.encode()).fetchall()
