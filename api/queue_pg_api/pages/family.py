"""The jobs around a job as a picture: layers from left to right, each job right of all that it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from uuid import UUID

from queue_pg.looking import Edge, Family, Relative

WIDTH, HEIGHT = 172, 46
GAP_ACROSS, GAP_DOWN = 56, 14
MARGIN = 4
# Sweeps that bring each job near those that it is joined to.
SWEEPS = 4


@dataclass(frozen=True, slots=True)
class Box:
    """A job, and where it is drawn."""

    job: Relative
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Line:
    """An edge, as the path of an SVG."""

    path: str
    loose: bool  # whatever becomes of the parent, the child runs


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be drawn."""

    width: int
    height: int
    boxes: Sequence[Box]
    lines: Sequence[Line]


def draw(family: Family) -> Picture:
    """Lay out a family, which has no circles."""
    layers = _ordered(_layers(family), family.edges)
    tallest = max((len(layer) for layer in layers), default=0)
    height = 2 * MARGIN + max(tallest * (HEIGHT + GAP_DOWN) - GAP_DOWN, 0)
    boxes: dict[UUID, Box] = {}
    for across, layer in enumerate(layers):
        top = (height - (len(layer) * (HEIGHT + GAP_DOWN) - GAP_DOWN)) // 2
        for down, job_id in enumerate(layer):
            x, y = MARGIN + across * (WIDTH + GAP_ACROSS), top + down * (HEIGHT + GAP_DOWN)
            boxes[job_id] = Box(family.relatives[job_id], x, y)
    lines = [Line(_path(boxes[edge.parent], boxes[edge.child]), edge.on_unsuccessful == "run") for edge in family.edges]
    width = 2 * MARGIN + max(len(layers) * (WIDTH + GAP_ACROSS) - GAP_ACROSS, 0)
    return Picture(width, height, list(boxes.values()), lines)


def _path(parent: Box, child: Box) -> str:
    from_x, from_y = parent.x + WIDTH, parent.y + HEIGHT // 2
    to_x, to_y = child.x, child.y + HEIGHT // 2
    bend = (to_x - from_x) // 2
    return f"M{from_x} {from_y}C{from_x + bend} {from_y} {to_x - bend} {to_y} {to_x} {to_y}"


def _layers(family: Family) -> list[list[UUID]]:
    """Put each job one layer right of the last of its parents, by as many rounds as there are layers."""
    place = dict.fromkeys(family.relatives, 0)
    for _ in family.relatives:
        moved = False
        for edge in family.edges:
            if place[edge.child] <= place[edge.parent]:
                place[edge.child] = place[edge.parent] + 1
                moved = True
        if not moved:
            break
    layers: list[list[UUID]] = [[] for _ in range(max(place.values(), default=-1) + 1)]
    for job_id, layer in place.items():
        layers[layer].append(job_id)
    return layers


def _ordered(layers: list[list[UUID]], edges: Sequence[Edge]) -> list[list[UUID]]:
    """Order each layer by the middle of what its jobs are joined to, to and fro, so that fewer lines cross."""
    joined: dict[UUID, list[UUID]] = {}
    for edge in edges:
        joined.setdefault(edge.parent, []).append(edge.child)
        joined.setdefault(edge.child, []).append(edge.parent)
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            rows = {job_id: row for each in layers for row, job_id in enumerate(each)}
            layer.sort(key=lambda job_id: _middle(job_id, joined, rows))
    return layers


def _middle(job_id: UUID, joined: Mapping[UUID, Sequence[UUID]], rows: Mapping[UUID, int]) -> float:
    near = [rows[other] for other in joined.get(job_id, ())]
    return fmean(near) if near else rows[job_id]
