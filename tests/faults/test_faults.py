"""Every fault of the plan, a few hits each; `make faults` is the same for hours."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import ledgers
from tests.faults.arena import Verdict, run
from tests.faults.checker import Expectation, check
from tests.faults.ledgers import Evidence
from tests.faults.plan import FAULTS, fault


@pytest.mark.parametrize("name", [one.name for one in FAULTS])
def test_nothing_is_lost_and_nothing_is_unexplained(name: str, tmp_path: Path) -> None:
    one = fault(name)
    if (reason := one.obstacle()) is not None:
        pytest.skip(reason)
    seed = random.randrange(2**32)
    verdict = run(one, seed=seed, folder=tmp_path / name, size=one.short)
    assert verdict.violations == [], f"seed {seed}, {verdict.hits}, {verdict.figures}"
    assert verdict.figures["lost"] == verdict.figures["duplicates_unexplained"] == 0


def test_a_run_that_was_tampered_with_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ledgers of a real run, each spoilt in one place."""
    kept: list[Evidence] = []

    def keep(folder: Path, dsn: str) -> Evidence:
        kept.append(_read(folder, dsn))
        return kept[-1]

    _read = ledgers.read_evidence
    monkeypatch.setattr(ledgers, "read_evidence", keep)
    one = fault("F1")
    verdict: Verdict = run(one, seed=1, folder=tmp_path / "F1", size=replace(one.short, hits=2))
    assert verdict.violations == []
    [evidence] = kept

    def broken(tampered: Evidence) -> set[str]:
        return {violation.invariant for violation in check(tampered, Expectation()).violations}

    assert broken(evidence) == set()
    dropped = evidence.stored[len(evidence.stored) // 2]
    assert "S1" in broken(replace(evidence, stored=[row for row in evidence.stored if row is not dropped]))
    assert "S5" in broken(replace(evidence, runs=[*evidence.runs, evidence.runs[0]]))
    flipped = replace(dropped, state="failed")
    assert "S4" in broken(replace(evidence, stored=[flipped if row is dropped else row for row in evidence.stored]))
