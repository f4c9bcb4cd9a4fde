"""What docs/reliability.md publishes is what `make faults` has written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.arena import Verdict
from tests.faults.checker import Expectation
from tests.faults.ledgers import Evidence, Stored
from tests.faults.parts import Parts
from tests.faults.plan import FAULTS
from tests.faults.record import Record


def verdict(name: str, *violations: str, seed: int = 7, **figures: float) -> Verdict:
    common = {"jobs": 600, "executions": 601, "acked": 600, "lost": 0, "shutdown_max_s": 0.5}
    again = {"duplicates_after_losses": 1, "executions_as_asked": 2_000, "duplicates_unexplained": 0}
    more = {**again, "leases_lost": 5, "given_up": 3, "recovery_p50_s": 0.25, "recovery_max_s": 2}
    hits = {"worker kills": 12, "kills of who fires": 1}
    return Verdict(name, seed, 90.0, hits, {**common, **more, **figures}, list(violations), "abc", "18")


def test_the_page_has_what_was_written_down() -> None:
    assert report.published(report.PAGE.read_text()) == report.render(*report.load())


def test_the_published_runs_came_to_what_they_are_about() -> None:
    shown = {fault.name: fault.shows for fault in FAULTS}
    _, verdicts = report.load()
    assert [one.fault for one in verdicts] == [fault.name for fault in FAULTS]
    missed = [(one.fault, name) for one in verdicts for name in shown[one.fault] if not one.figures.get(name)]
    assert missed == []


def keep(folder: Path, verdict: Verdict, evidence: Evidence) -> None:
    folder.mkdir()
    (folder / "verdict.json").write_text(verdict.as_json())
    Record(evidence, Expectation(), Parts()).keep(folder)


def test_runs_are_gathered_in_the_order_of_the_plan(tmp_path: Path) -> None:
    for name, seed in (("F14b", 7), ("F10", 7), ("F2", 7), ("F1", 8)):
        keep(tmp_path / f"{name}-{seed}", verdict(name, seed=seed), Evidence([], [], [], []))
    keep(tmp_path / "F3-7-short", verdict("F3"), Evidence([], [], [], []))
    assert [one.fault for one in report.gather(tmp_path, 7)] == ["F2", "F10", "F14b"]


def test_what_is_gathered_is_judged_again(tmp_path: Path) -> None:
    """By the checker of today: it may see more than that of the day of the run."""
    stuck = Stored("a", None, "queued", 0, 0, None, None, live=True)
    keep(tmp_path / "F1-7", verdict("F1", "L2 -: seen by the run"), Evidence([], [], [], [stuck]))
    [found] = report.gather(tmp_path, 7)
    assert found.figures["jobs"] == 1
    assert found.figures["shutdown_max_s"] == 0.5
    assert list(found.violations) == [
        "L2 -: seen by the run",
        "S3 a: came into being unnoticed",
        "L1 a: is still queued",
    ]


def test_sums_and_rows(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write([verdict("F1"), verdict("F9", recovery_p99_s=1.5)], tmp_path / "results.json", page)
    section = report.published(page.read_text())
    assert page.read_text() == f"before\n{report.BEGIN}\n{section}{report.END}\nafter\n"
    assert section == report.render(*report.load(tmp_path / "results.json"))
    assert "Seed 7, 3 minutes, commit abc, PostgreSQL 18; " in section
    assert "| jobs | 1,200 | 1,000,000, **not reached** |" in section
    assert "| workers killed | 26 | 2,000, **not reached** |" in section
    assert "| acknowledged jobs lost | 0 | 0 |" in section
    assert "| promises broken | 0 | 0 |" in section
    assert "None of 1,200 acknowledged jobs was lost: were one in 400 lost" in section
    assert (
        "| F9 | 1.5 | 12 worker kills, 1 kills of who fires | 600 | 0 | 3 | 5 | 1 / 0 | 2,000"
        " | 0.25 s / 1.50 s / 2.00 s | 0.50 s |" in section
    )
    assert "| 0.25 s / - / 2.00 s |" in section
    assert "until as much is done" not in section
    assert f"Not made: {', '.join(fault.name for fault in FAULTS if fault.name not in ('F1', 'F9'))}." in section


def test_a_total_that_is_reached_is_not_marked() -> None:
    assert "| jobs | 1,000,000 | 1,000,000 |" in report.render({}, [verdict("F1", jobs=1_000_000)])


def test_times_are_told_beside_what_is_promised() -> None:
    section = report.render({}, [verdict("F1"), verdict("F5", back_p50_s=0.75, back_max_s=16)])
    assert (
        "| until as much is done as before Postgres went, middle / max | F5 | 0.75 s / 16.00 s"
        " | 10 s in the middle (seen for 16 s) |"
    ) in section


def test_what_was_broken_is_published() -> None:
    section = report.render({}, [verdict("F1"), verdict("F5", "S1 x: is gone", lost=2)])
    assert "| promises broken | 1 | 0 |" in section
    assert "- F5 S1 x: is gone" in section
    assert "2 of 1,200 acknowledged jobs were lost." in section


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        report.embed("nothing", "section")
