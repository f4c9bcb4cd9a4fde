"""Every fault of the plan, a few hits each; `make faults` is the same for hours."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.__main__ import main
from tests.faults.arena import Verdict, run
from tests.faults.checker import Expectation, check
from tests.faults.ledgers import ACKED, Evidence
from tests.faults.logs import complaints
from tests.faults.plan import FAULTS, fault
from tests.faults.record import STORED, Record


@pytest.mark.parametrize("name", [one.name for one in FAULTS])
def test_nothing_is_lost_and_nothing_is_unexplained(name: str, tmp_path: Path) -> None:
    one = fault(name)
    if (reason := one.obstacle()) is not None:
        pytest.skip(reason)
    seed = random.randrange(2**32)
    verdict = run(one, seed=seed, folder=tmp_path / name, size=one.short)
    told = f"seed {seed}, {verdict.hits}, {verdict.figures}\n{complaints(tmp_path / name)}"
    assert verdict.violations == [], told
    assert verdict.figures["lost"] == verdict.figures["duplicates_unexplained"] == 0


def test_a_run_that_was_tampered_with_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real ledgers of a real run, each spoilt in one place."""
    one = fault("F1")
    verdict: Verdict = run(one, seed=1, folder=tmp_path / "F1", size=replace(one.short, hits=2))
    assert verdict.violations == []
    evidence = Record.load(tmp_path / "F1").evidence

    def broken(tampered: Evidence) -> set[str]:
        return {violation.invariant for violation in check(tampered, Expectation(unwitnessed=["command"])).violations}

    assert broken(evidence) == set()
    dropped = evidence.stored[len(evidence.stored) // 2]
    assert "S1" in broken(replace(evidence, stored=[row for row in evidence.stored if row is not dropped]))
    assert "S5" in broken(replace(evidence, runs=[*evidence.runs, evidence.runs[0]]))
    flipped = replace(dropped, state="failed")
    assert "S4" in broken(replace(evidence, stored=[flipped if row is dropped else row for row in evidence.stored]))

    def recheck() -> tuple[int, str]:
        return main(["--recheck", "--folder", str(tmp_path)]), capsys.readouterr().out

    code, told = recheck()
    assert (code, told.splitlines()) == (
        0,
        [f"{tmp_path}/F1: {len(evidence.stored):,} jobs, 0 lost, 0 done twice without a reason"],
    )
    late = tmp_path / "F1" / "verdict.json"
    late.write_text(replace(verdict, violations=["L1 -: took too long"]).as_json())
    assert recheck() == (1, f"{told}  BROKEN by its verdict: L1 -: took too long\n")
    late.write_text(verdict.as_json())
    stored = tmp_path / "F1" / STORED
    lines = gzip.decompress(stored.read_bytes()).splitlines(keepends=True)
    acked = {submission.id for submission in evidence.submissions if submission.word == ACKED}
    [index, job] = next((index, job) for index, line in enumerate(lines) if (job := json.loads(line)[0]) in acked)
    stored.write_bytes(gzip.compress(b"".join(lines[:index] + lines[index + 1 :])))
    code, told = recheck()
    assert code == 1
    assert f"DIFFERS jobs: {len(lines) - 1}, its verdict says {len(lines)}" in told
    assert f"BROKEN S1 {job}: was acknowledged; stored: []" in told
    stored.unlink()
    assert recheck() == (1, f"{tmp_path}/F1: stored.jsonl.gz is missing\n")


def test_a_recheck_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["F1", "--recheck", "--folder", str(tmp_path)]) == 1
    assert "there is no such run" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--hours", "--minutes"])
@pytest.mark.parametrize("value", ["-1", "inf", "nan", "x"])
def test_a_length_of_time_that_is_none_is_told(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["F1", f"{option}={value}"])
    assert ended.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err
