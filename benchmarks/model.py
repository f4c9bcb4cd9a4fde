"""What a measure is made of: its metrics, its targets, and the record that a run of it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Relation = Literal["ratio", "difference", "value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One column of a measure's table. `digits` are those after the point."""

    name: str
    label: str
    unit: str = ""
    digits: int = 0
    plot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the figures shall show; all `pairs` of (contestant, the one it is held against) have to.

    `ratio` and `difference` are taken inside each run, then the median over the runs counts. `value` stands alone.
    """

    text: str
    metric: str
    pairs: Sequence[tuple[str, str]]
    relation: Relation = "ratio"
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def met_by(self, figure: float) -> bool:
        """Tell whether a figure is on the right side."""
        return (self.at_least is None or figure >= self.at_least) and (self.at_most is None or figure <= self.at_most)


@dataclass(slots=True)
class Line:
    """One line of a plot over time or progress."""

    x: list[float] = field(default_factory=list[float])
    y: list[float] = field(default_factory=list[float])


@dataclass(slots=True)
class Plot:
    """Lines that share two axes; `name` becomes part of the file's name."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, Line] = field(default_factory=dict[str, Line])


@dataclass(slots=True)
class Record:
    """The figures of one measure: contestant, metric, one value per run. In the order in which they were added."""

    quick: bool = False
    measured_at: str = ""
    commit: str = ""
    seconds: float = 0.0
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])
    settings: dict[str, str] = field(default_factory=dict[str, str])
    plots: dict[str, Plot] = field(default_factory=dict[str, Plot])
    notes: list[str] = field(default_factory=list[str])
    texts: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def runs(self) -> int:
        """How often it ran; long measures run once whatever was asked."""
        return max((len(values) for metrics in self.figures.values() for values in metrics.values()), default=0)

    def add(self, contestant: str, **values: float) -> None:
        """Add one run's figures of a contestant."""
        metrics = self.figures.setdefault(contestant, {})
        for metric, value in values.items():
            metrics.setdefault(metric, []).append(value)

    def note(self, text: str) -> None:
        """Add a sentence for the report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """Read what `to_json` wrote."""
        record = cls(**data)
        for name, plot in data["plots"].items():
            record.plots[name] = Plot(**plot)
            record.plots[name].lines = {label: Line(**line) for label, line in plot["lines"].items()}
        return record
