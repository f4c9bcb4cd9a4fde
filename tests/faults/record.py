"""All that a run is judged by, kept in its folder: who does not believe a verdict can judge the run again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from tests.faults.checker import Account, Expectation, Violation, check
from tests.faults.ledgers import Edge, Evidence, Stored, read_runs, read_submissions
from tests.faults.parts import BatchRow, CommandLine, Parts, StepRun, find_broken

# Beside the files of those who submitted and of those who ran: what the trigger saw, and the rows at the end.
EDGES: Final = "edges.jsonl.gz"
STORED: Final = "stored.jsonl.gz"
# What the fault allows, and the rows of batches, steps, artifacts and events.
EXPECTED: Final = "expected.json"
PARTS: Final = "parts.json"


@dataclass(frozen=True, slots=True)
class Record:
    """A run that has come to rest."""

    evidence: Evidence
    expectation: Expectation
    parts: Parts

    def keep(self, folder: Path) -> None:
        """Add to the folder what is not in it: submissions and executions were written there as they happened."""
        _write(folder / EDGES, Edge, self.evidence.edges)
        _write(folder / STORED, Stored, self.evidence.stored)
        (folder / EXPECTED).write_text(json.dumps(asdict(self.expectation), default=sorted))
        (folder / PARTS).write_text(json.dumps(asdict(self.parts)))

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Return what `keep` has written. Raises FileNotFoundError where it has not."""
        names: dict[str, str] = {}

        def once(value: Any) -> Any:
            # One string for each name: there may be millions of edges.
            return names.setdefault(value, value) if isinstance(value, str) else value

        edges = [Edge(*map(once, line)) for line in _read(folder / EDGES)]
        stored = [Stored(*map(once, line)) for line in _read(folder / STORED)]
        evidence = Evidence(read_submissions(folder), read_runs(folder), edges, stored)
        expected = json.loads((folder / EXPECTED).read_text())
        expected["dead_at_ns"] = {int(pid): moment for pid, moment in expected["dead_at_ns"].items()}
        expected["caps"] = {name: (frozenset(numbers), most) for name, (numbers, most) in expected["caps"].items()}
        return cls(evidence, Expectation(**expected), _parts(json.loads((folder / PARTS).read_text())))

    def account(self) -> Account:
        """Hold the run against every invariant, those of its batches, steps, artifacts and events too."""
        found = check(self.evidence, self.expectation)
        evidence = self.evidence
        broken = [Violation(*one) for one in find_broken(self.parts, evidence.runs, evidence.stored, evidence.edges)]
        return Account({**found.figures, **_counts(self.parts)}, [*found.violations, *broken])


def _write(path: Path, kind: type[Edge] | type[Stored], rows: Iterable[Edge | Stored]) -> None:
    values = attrgetter(*(field.name for field in fields(kind)))
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(f"{json.dumps(values(row))}\n" for row in rows)


def _read(path: Path) -> Iterator[list[Any]]:
    with gzip.open(path, "rt") as file:
        yield from map(json.loads, file)


def _parts(kept: dict[str, Any]) -> Parts:
    return Parts(
        kept["families"],
        kept["members"],
        [StepRun(**step) for step in kept["steps"]],
        kept["kept"],
        [BatchRow(**batch) for batch in kept["batches"]],
        kept["makers"],
        {job: tuple(artifact) for job, artifact in kept["artifacts"].items()},
        kept["events"],
        # The first records have none.
        [CommandLine(**line) for line in kept.get("commands", ())],
    )


def _counts(parts: Parts) -> dict[str, int]:
    """Return how much there was of each part, where a mixture was submitted."""
    if not parts.members:
        return {}
    return {
        "families": len(parts.families),
        "batches": len(parts.members),
        "steps": len(parts.steps),
        "artifacts": len(parts.makers),
        "commands": sum(line.word == "begin" for line in parts.commands),
    }
