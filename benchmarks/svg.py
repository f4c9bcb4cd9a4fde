"""Plots as SVG, small and without a library: bars with whiskers, and lines. Colours are readable on light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.model import Plot
from benchmarks.stats import Spread

WIDTH = 720
LABELS = 190  # room for the names beside bars
ROW = 26
TOP = 40
INK = "#7d8590"
GRID = "#7d859040"
COLOURS = ("#2f81f7", "#e5793a", "#3fa45b", "#a371f7", "#d29922", "#e5534b", "#1f9ea8", "#8b949e")
OWN, OTHER = COLOURS[0], "#8b949e"


def bars(title: str, unit: str, values: Mapping[str, Spread], *, digits: int = 0) -> str:
    """Draw one bar for each name, with a whisker from the lowest to the highest run."""
    height = TOP + ROW * len(values) + 12
    top = max((value.high for value in values.values()), default=1.0) or 1.0
    scale = (WIDTH - LABELS - 110) / top
    parts = [_text(0, 20, f"{title}{f' ({unit})' if unit else ''}", size=14, weight="600")]
    for row, (name, value) in enumerate(values.items()):
        y = TOP + ROW * row
        middle = y + (ROW - 8) / 2
        end, low, high = (LABELS + scale * at for at in (value.median, value.low, value.high))
        colour = OWN if name.startswith("queue-pg") else OTHER
        parts += [
            _text(LABELS - 8, middle + 4, name, anchor="end"),
            _rect(LABELS, y, max(1.0, end - LABELS), ROW - 8, colour),
        ]
        if high > low:
            parts.append(
                f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"'
                f' stroke="{INK}" stroke-width="1.5" fill="none"/>'
            )
        parts.append(_text(max(end, high) + 8, middle + 4, f"{value.median:,.{digits}f}"))
    return _document(height, title, parts)


def lines(plot: Plot) -> str:
    """Draw lines over a common x axis; both axes begin at zero."""
    height, left, right, bottom = 300, 78, 16, 44
    legend = 18 * -(-len(plot.lines) // 3)
    top = TOP + legend + 8
    height += legend + 8
    xs = [x for line in plot.lines.values() for x in line.x] or [1.0]
    ys = [y for line in plot.lines.values() for y in line.y] or [1.0]
    x_top, y_ticks = max(xs) or 1.0, ticks(max(ys))
    y_top = y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (WIDTH - left - right) * x / x_top, height - bottom - (height - bottom - top) * y / y_top

    parts = [_text(0, 20, plot.title, size=14, weight="600")]
    for tick in y_ticks:
        _, y = place(0, tick)
        parts.append(f'<path d="M{left} {y:.1f}H{WIDTH - right}" stroke="{GRID}"/>')
        parts.append(_text(left - 6, y + 4, number(tick), anchor="end"))
    for tick in ticks(x_top):
        if tick <= x_top * 1.001:
            parts.append(_text(place(tick, 0)[0], height - bottom + 16, number(tick), anchor="middle"))
    parts.append(_text((left + WIDTH - right) / 2, height - 8, plot.x_label, anchor="middle"))
    parts.append(_text(left - 6, top - 8, plot.y_label, anchor="start"))
    for index, (name, line) in enumerate(plot.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*pair) for pair in zip(line.x, line.y, strict=True)))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = left + 210 * (index % 3), TOP - 2 + 18 * (index // 3)
        parts.append(_rect(x, y - 9, 10, 10, colour))
        parts.append(_text(x + 15, y, name))
    return _document(height, plot.title, parts)


def ticks(top: float) -> list[float]:
    """Return round numbers from zero to at least `top`, some four to six."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 5 >= top)
    return [step * n for n in range(math.ceil(round(top / step, 9)) + 1)]


def number(value: float) -> str:
    """Write a number of an axis shortly."""
    for limit, sign in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{sign}"
    return f"{value:g}"


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
        f' fill="{INK}">{escape(text)}</text>'
    )


def _document(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' font-family="system-ui, sans-serif" role="img" aria-label="{escape(title, quote=True)}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
