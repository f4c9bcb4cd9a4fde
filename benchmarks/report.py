"""Turn results into `docs/benchmarks.md` and its plots. Nothing else writes them, and a test compares."""

from __future__ import annotations

from pathlib import Path

from benchmarks import svg
from benchmarks.measures.catalogue import MEASURES, Measure
from benchmarks.model import Metric, Record, Target
from benchmarks.results import Results
from benchmarks.stats import Spread, Verdict, judge, spread

DOCS = Path(__file__).resolve().parents[1] / "docs"
INTRODUCTION = """\
# Benchmarks

Written by `make bench` from its own figures; a test holds this page against them. One measure alone:
`make bench ARGS=drain`; the others keep their figures. `make bench ARGS=--list` names them all.

Everything runs on one machine: PostgreSQL, workers, clients. Contestants take turns inside one run, and each has a
fresh database. A figure is the median over the runs, with the lowest and the highest in brackets; a ratio is taken
inside each run, then the median. Absolute figures drift with the machine, so targets are ratios where they can be."""


def write(results: Results, folder: Path = DOCS) -> None:
    """Write the page and the plots; plots of measures that are gone are removed."""
    files = render(results)
    plots = folder / "benchmarks"
    plots.mkdir(exist_ok=True)
    for old in plots.glob("*.svg"):
        if f"benchmarks/{old.name}" not in files:
            old.unlink()
    for name, text in files.items():
        (folder / name).write_text(text)


def render(results: Results) -> dict[str, str]:
    """Return all files by their path below docs."""
    files: dict[str, str] = {}
    sections = [INTRODUCTION, _summary(results), _machine(results)]
    for name, measure in MEASURES.items():
        if name in results.measures:
            sections.append(_section(measure, results.measures[name], files))
    files["benchmarks.md"] = "\n\n".join(sections) + "\n"
    return files


def verdict_lines(measure: Measure, record: Record) -> str:
    """Say for a person at a terminal how the targets were met."""
    verdicts = (judge(target, record) for target in measure.TARGETS)
    return "\n".join(
        f"  {_mark(verdict):7} {verdict.target.text}: {_figure(verdict)} (target {_wanted(verdict.target)})"
        for verdict in verdicts
    )


def _summary(results: Results) -> str:
    rows = ["## Targets", "", "| measure | target | wanted | figure | |", "|---|---|---|---|---|"]
    for name, measure in MEASURES.items():
        record = results.measures.get(name)
        for target in measure.TARGETS:
            verdict = judge(target, record) if record else Verdict(target, None)
            rows.append(
                f"| [{name}](#{name.replace('_', '-')}) | {target.text} | {_wanted(target)} | {_figure(verdict)} "
                f"| {_mark(verdict)} |"
            )
    return "\n".join(rows)


def _machine(results: Results) -> str:
    rows = ["## Where", "", "| | |", "|---|---|"]
    rows += [f"| {name} | {value} |" for name, value in results.machine.items()]
    server = dict(results.server)
    rows.append(f"| PostgreSQL | {server.pop('PostgreSQL', 'unknown')} |")
    rows.append("| its settings | " + ", ".join(f"`{name} = {value}`" for name, value in server.items()) + " |")
    rows.append("| peers | " + ", ".join(f"{name} {version}" for name, version in results.peers.items()) + " |")
    return "\n".join(rows)


def _section(measure: Measure, record: Record, files: dict[str, str]) -> str:
    times = "once" if record.runs == 1 else f"{record.runs} times"
    parts = [
        f"## {measure.NAME.replace('_', '-')}",
        f"**{measure.TITLE}**, {times} on {record.measured_at}, commit {record.commit}, {record.seconds:.0f} s.",
        measure.METHOD,
        _table(measure, record),
    ]
    for metric in measure.METRICS:
        shown = {
            name: spread(values[metric.name]) for name, values in record.figures.items() if values.get(metric.name)
        }
        if metric.plot and shown:
            files[f"benchmarks/{measure.NAME}-{metric.name}.svg"] = svg.bars(
                metric.label, metric.unit, shown, digits=metric.digits
            )
            parts.append(f"![{metric.label}](benchmarks/{measure.NAME}-{metric.name}.svg)")
    for name, plot in record.plots.items():
        files[f"benchmarks/{measure.NAME}-{name}.svg"] = svg.lines(plot)
        parts.append(f"![{plot.title}](benchmarks/{measure.NAME}-{name}.svg)")
    if record.settings:
        parts.append("\n".join(f"- {name}: {text}." for name, text in record.settings.items()))
    if record.notes:
        parts.append("\n".join(f"- {note}" for note in record.notes))
    parts += [f"{title}:\n\n```text\n{text}\n```" for title, text in record.texts.items()]
    return "\n\n".join(parts)


def _table(measure: Measure, record: Record) -> str:
    shown = [metric for metric in measure.METRICS if any(metric.name in values for values in record.figures.values())]
    heads = [f"{metric.label} ({metric.unit})" if metric.unit else metric.label for metric in shown]
    rows = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(shown)]
    for name, values in record.figures.items():
        cells = (_cell(metric, values.get(metric.name, [])) for metric in shown)
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(metric: Metric, values: list[float]) -> str:
    return _spread(spread(values), metric.digits) if values else "-"


def _spread(value: Spread, digits: int) -> str:
    median = f"{value.median:,.{digits}f}"
    low, high = f"{value.low:,.{digits}f}", f"{value.high:,.{digits}f}"
    return median if low == high else f"{median} ({low}-{high})"


def _figure(verdict: Verdict) -> str:
    if verdict.spread is None:
        return "not measured"
    text = _spread(verdict.spread, 0 if verdict.spread.median >= 100 else 2)
    if verdict.target.unit:
        text += f" {verdict.target.unit}"
    if len(verdict.target.pairs) > 1 and verdict.pair is not None:
        text += f", worst: {verdict.pair[0]}"
    return text


def _wanted(target: Target) -> str:
    sign, limit = (">=", target.at_least) if target.at_least is not None else ("<=", target.at_most)
    return f"{sign} {limit:,g}{' x' if target.relation == 'ratio' else ''}{f' {target.unit}' if target.unit else ''}"


def _mark(verdict: Verdict) -> str:
    return "met" if verdict.met else "missed" if verdict.spread is not None else "open"
