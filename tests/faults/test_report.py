"""What docs/reliability.md publishes is what `make faults` has written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.arena import Verdict


def verdict(name: str, *violations: str, seed: int = 7, **figures: float) -> Verdict:
    common = {"jobs": 600, "executions": 601, "acked": 600, "lost": 0, "shutdown_max_s": 0.5}
    more = {"duplicates_explained": 1, "duplicates_unexplained": 0, "recovery_p50_s": 0.25, "recovery_max_s": 2}
    hits = {"worker kills": 12, "kills of who fires": 1}
    return Verdict(name, seed, 90.0, hits, {**common, **more, **figures}, list(violations), "abc", "18")


def test_the_page_has_what_was_written_down() -> None:
    assert report.published(report.PAGE.read_text()) == report.render(*report.load())


def test_runs_are_gathered_in_the_order_of_the_plan(tmp_path: Path) -> None:
    for name, seed in (("F14b", 7), ("F10", 7), ("F2", 7), ("F1", 8)):
        (tmp_path / f"{name}-{seed}").mkdir()
        (tmp_path / f"{name}-{seed}" / "verdict.json").write_text(verdict(name, seed=seed).as_json())
    (tmp_path / "F3-7-short").mkdir()
    (tmp_path / "F3-7-short" / "verdict.json").write_text(verdict("F3").as_json())
    assert [one.fault for one in report.gather(tmp_path, 7)] == ["F2", "F10", "F14b"]


def test_sums_and_rows(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write([verdict("F1"), verdict("F9", recovery_p99_s=1.5)], tmp_path / "results.json", page)
    section = report.published(page.read_text())
    assert page.read_text() == f"before\n{report.BEGIN}\n{section}{report.END}\nafter\n"
    assert section == report.render(*report.load(tmp_path / "results.json"))
    assert "Seed 7, 3 minutes, commit abc, PostgreSQL 18; " in section
    assert "| jobs | 1,200 | 1,000,000 |" in section
    assert "| workers killed | 26 | 2,000 |" in section
    assert "| acknowledged jobs lost | 0 | 0 |" in section
    assert "| promises broken | 0 | 0 |" in section
    assert "None of 1,200 acknowledged jobs was lost: were one in 400 lost" in section
    assert (
        "| F9 | 1.5 | 12 worker kills, 1 kills of who fires | 600 | 0 | 1 / 0 | 0.25 s / 1.50 s / 2.00 s | 0.50 s |"
        in section
    )
    assert "| 0.25 s / - / 2.00 s |" in section
    assert "until as much is done" not in section


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
