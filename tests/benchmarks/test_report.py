"""The published figures are those of results.json, and rendering is what it should be."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import report, svg
from benchmarks.measures.catalogue import MEASURES
from benchmarks.model import Line, Plot, Record
from benchmarks.results import Results
from benchmarks.stats import Spread, percentile, spread

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_and_the_plots_are_made_of_the_results() -> None:
    rendered = report.render(Results.load())
    assert (DOCS / "benchmarks.md").read_text() == rendered.pop("benchmarks.md")
    published = {f"benchmarks/{path.name}": path.read_text() for path in (DOCS / "benchmarks").glob("*.svg")}
    assert published == rendered


def test_no_quick_run_is_published() -> None:
    assert not [name for name, record in Results.load().measures.items() if record.quick]


def _results() -> Results:
    drain = Record(measured_at="2030-01-01 00:00 UTC", commit="abc")
    for rate, wal in ((20_000.0, 900.0), (22_000.0, 910.0), (21_000.0, 905.0)):
        drain.add("queue-pg", rate=rate * 1.3, pg_us=30.0, wal=wal)
        drain.add("raw", rate=rate, pg_us=25.0, wal=800.0)
    drain.note("Peer X was not measured: it could not be installed.")
    drain.plots["tenths"] = Plot("Rate by tenth", "jobs", "jobs/s", {"a <b>": Line([0, 5, 10], [1.0, 2.5, 2.0])})
    return Results(machine={"CPU": "2 cores"}, server={"PostgreSQL": "18"}, measures={"drain": drain})


def test_the_page_shows_targets_medians_ranges_and_notes() -> None:
    files = report.render(_results())
    page = files["benchmarks.md"]
    assert "| [drain](#drain) | 1 process against the raw loop | >= 1.2 x | 1.30 | met |" in page
    assert "| [drain](#drain) | 1 process against PgQueuer | >= 3 x | not measured | open |" in page
    assert "| queue-pg | 27,300 (26,000-28,600) |" in page
    assert "- Peer X was not measured: it could not be installed." in page
    assert all(f"({name})" in page for name in files if name.endswith(".svg"))


def test_results_survive_the_disk(tmp_path: Path) -> None:
    results = _results()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    assert Results.load(tmp_path / "none.json") == Results()


def test_writing_replaces_the_plots(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gone.svg").touch()
    report.write(_results(), tmp_path)
    assert {path.name for path in (tmp_path / "benchmarks").iterdir()} == {
        "drain-rate.svg",
        "drain-pg_us.svg",
        "drain-wal.svg",
        "drain-tenths.svg",
    }


def test_every_plot_is_well_formed() -> None:
    plots = [text for name, text in report.render(_results()).items() if name.endswith(".svg")]
    plots.append(svg.lines(Plot("empty", "x", "y")))
    plots.append(svg.bars("none", "", {}))
    for text in plots:
        assert ElementTree.fromstring(text).tag.endswith("svg")  # noqa: S314 - our own


def test_bars_have_whiskers_where_runs_differ() -> None:
    assert svg.bars("t", "", {"a": Spread(2, 1, 3)}).count("<path") == 1
    assert svg.bars("t", "", {"a": Spread(2, 2, 2)}).count("<path") == 0


@pytest.mark.parametrize(
    ("top", "expected"),
    [(1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (9_000, [0, 2_000, 4_000, 6_000, 8_000, 10_000]), (0, [0, 1])],
)
def test_axes_have_round_numbers(top: float, expected: list[float]) -> None:
    assert svg.ticks(top) == pytest.approx(expected)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50, 99, 100)
    assert percentile([7.0], 99) == 7
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_says_what_it_does(name: str) -> None:
    measure = MEASURES[name]
    assert name == measure.NAME
    assert measure.TITLE
    assert len(measure.METHOD) > 100
