"""A picture of a circuit: a box a group of nodes, tokens below and outputs above, arrows for direct effects between groups.

An arrow's number is the share of its target's input (`circuit_tracer.graph.shares`), the one that the page and the terminal
show. Letters: N nodes of the graph, G boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from circuit_tracer.circuits.pictures.boxes import Box
from circuit_tracer.circuits.pictures.canvas import Canvas, Rectangle, text_size, two_lines, wrapped
from circuit_tracer.circuits.pictures.legend import draw_legend, legend_size
from circuit_tracer.circuits.pictures.looks import Cubic, Point, draw_arrow, draw_outline, sampled, upright
from circuit_tracer.circuits.pictures.placement import Placement, place
from circuit_tracer.circuits.pictures.stages import Arrow, stages
from circuit_tracer.graph.palette import Palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, FACTS, PERCENT, TITLE = 8.5, 6.0, 6.5, 9.0  # sizes of texts, points
_MOST_NAME = 2.5  # inches a line of a name
_MARGIN, _SIDE = 0.22, 0.62  # around all; for the names of stages
_NARROWEST = 5.4
_BETWEEN = 0.78  # lines of boxes
MOST_ARROWS = 60
WEAKEST = 0.01  # weaker arrows are not drawn even where they are the strongest
_BEFORE, _HEAD = 0.3, 0.2  # the target: where a number is wanted, and where the head is


@dataclass(frozen=True)
class _Shape:
    """A box as it is written: lines of its name, and its size."""

    lines: list[str]
    facts: str
    width: float
    height: float

    @classmethod
    def of(cls, box: Box) -> _Shape:
        bold = box.role == "logit"
        lines = two_lines(box.name, NAME, _MOST_NAME, bold)
        widths = [text_size(line, NAME, bold)[0] for line in lines] + [text_size(box.facts, FACTS)[0]]
        height = len(lines) * 0.145 + (0.115 if box.facts else 0.0) + 0.15
        return cls(lines, box.facts, max(0.55, max(widths) + 0.22), height)


def circuit_picture(
    boxes: Sequence[Box], share_GG: Tensor, title: str, notes: Sequence[str], palette: Palette, least_share: float
) -> Figure:
    """Boxes and the arrows among them. share_GG: row = target. notes: lines under the legend."""
    arrows = strongest(share_GG, least_share)
    shapes = [_Shape.of(box) for box in boxes]
    lines = stages(boxes, arrows)
    placed = place(boxes, [shape.width for shape in shapes], lines, arrows)
    heights = [max(shapes[at].height for at in line) for line in lines]
    crowd = max((sum(1 for _, target, _ in arrows if target == at) for at in range(len(boxes))), default=0)
    between = _BETWEEN + 0.05 * min(12, crowd)
    items = legend_items(boxes, arrows)
    side = _SIDE if len(lines) > 1 else _MARGIN
    width = max(placed.width + side + _MARGIN, _NARROWEST)
    prompt = wrapped(title, TITLE, width - 2 * _MARGIN, True)
    head = 0.2 * len(prompt) + _MARGIN
    foot = legend_size(items, notes, width - 2 * _MARGIN) + _MARGIN
    inner = sum(heights) + between * (len(lines) - 1) + 0.3
    canvas = Canvas(width, head + inner + foot, palette)
    middles = [foot + 0.1 + sum(heights[:at]) + between * at + heights[at] / 2 for at in range(len(lines))]
    left = side + max(0.0, (width - side - _MARGIN - placed.width) / 2)
    rectangles = [
        Rectangle.around(left + placed.x[at], middles[placed.line[at]], shape.width, shape.height)
        for at, shape in enumerate(shapes)
    ]
    for number, line in enumerate(prompt):
        canvas.text(_MARGIN, head + inner + foot - _MARGIN - 0.2 * number, line, TITLE, ha="left", weight="bold")
    _name_stages(canvas, boxes, lines, middles)
    curves = [_curve(arrow, at, placed, rectangles, left, middles, heights) for at, arrow in enumerate(arrows)]
    for (_, _, share), curve in zip(arrows, curves, strict=True):
        draw_arrow(canvas, curve, share)
    for box, shape, rectangle in zip(boxes, shapes, rectangles, strict=True):
        _draw_box(canvas, box, shape, rectangle)
    _write_percents(canvas, arrows, curves, rectangles)
    draw_legend(canvas, items, notes, _MARGIN, foot - 0.08, width - 2 * _MARGIN)
    return canvas.figure


def strongest(share_GG: Tensor, least: float) -> list[Arrow]:
    """Arrows of at least that share, the strongest ``MOST_ARROWS`` of them, and of each box the strongest in and out however
    weak; the weakest first.
    """
    sizes = share_GG.abs()
    strong = sorted(((float(sizes[t, s]), int(s), int(t)) for t, s in (sizes >= least).nonzero()), reverse=True)
    chosen = {(source, target) for size, source, target in strong[:MOST_ARROWS] if size > 0}
    for along, by_target in ((1, True), (0, False)):
        for at, other in enumerate(sizes.max(dim=along).indices.tolist() if len(sizes) else []):
            source, target = (other, at) if by_target else (at, other)
            if float(sizes[target, source]) >= min(WEAKEST, least) and sizes[target, source] > 0:
                chosen.add((source, target))
    arrows = [(source, target, float(share_GG[target, source])) for source, target in sorted(chosen)]
    return sorted(arrows, key=lambda arrow: abs(arrow[2]))


def legend_items(boxes: Sequence[Box], arrows: Sequence[Arrow]) -> list[str]:
    """Names of what the legend shows: kinds of boxes and arrows that are there."""
    roles = {box.role for box in boxes}
    signs = {"raises" if share > 0 else "lowers" for _, _, share in arrows}
    return [name for name in ("token", "detects", "says", "mixed", "error", "logit") if name in roles] + [
        name for name in ("raises", "lowers") if name in signs
    ]


def _name_stages(
    canvas: Canvas, boxes: Sequence[Box], lines: Sequence[Sequence[int]], middles: Sequence[float]
) -> None:
    for line, y in zip(lines, middles, strict=True):
        members = [boxes[at] for at in line]
        low, high = min(box.layers[0] for box in members), max(box.layers[1] for box in members)
        role = members[0].role
        name = {"token": "prompt", "logit": "output"}.get(role) or (f"L{low}" if low == high else f"L{low}–{high}")
        canvas.text(_MARGIN, y, name, FACTS + 0.5, canvas.palette.muted, ha="left")


def _curve(
    arrow: Arrow, number: int, placed: Placement, rectangles: Sequence[Rectangle], left: float,
    middles: Sequence[float], heights: Sequence[float],
) -> list[Cubic]:  # fmt: skip
    """An arrow from the upper edge of its source, along its lanes, to the lower edge of its target; boxes made by hand may
    have some that lead down, or along a line.
    """
    source, target, _ = arrow
    start, stop = (left + x for x in placed.ends[number])
    low, high = placed.line[source], placed.line[target]
    if low == high:
        first, last = (start, rectangles[source].top), (stop, rectangles[target].top)
        top = max(first[1], last[1]) + 0.4
        return [(first, (start, top), (stop, top), last)]
    up = high > low
    points = [(start, rectangles[source].top if up else rectangles[source].bottom)]
    for line, x in zip(range(low + 1, high) if up else range(low - 1, high, -1), placed.lanes[number], strict=True):
        half = heights[line] / 2 if up else -heights[line] / 2
        points += [(left + x, middles[line] - half), (left + x, middles[line] + half)]
    points.append((stop, rectangles[target].bottom if up else rectangles[target].top))
    return [upright(one, other) for one, other in pairwise(points)]


def _draw_box(canvas: Canvas, box: Box, shape: _Shape, rectangle: Rectangle) -> None:
    draw_outline(canvas, box.role, rectangle, several=len(box.nodes) > 1)
    x, y = (rectangle.left + rectangle.right) / 2, rectangle.top - 0.075 - 0.0725
    quiet = canvas.palette.muted
    for line in shape.lines:
        weight = "bold" if box.role == "logit" else "normal"
        canvas.text(x, y, line, NAME, quiet if box.role == "error" else None, weight=weight, zorder=6)
        y -= 0.145
    if shape.facts:
        canvas.text(x, y + 0.01, shape.facts, FACTS, quiet, zorder=6)


def _write_percents(
    canvas: Canvas, arrows: Sequence[Arrow], curves: Sequence[list[Cubic]], rectangles: Sequence[Rectangle]
) -> None:
    """Each arrow's share, near its target, where it covers no box and no other number, and as few arrows as can be."""
    paths = [sampled(curve) for curve in curves]
    points = np.array([point for path in paths for point in path]).reshape(-1, 2)
    owner = np.repeat(np.arange(len(paths)), [len(path) for path in paths])
    taken = list(rectangles)
    for number in sorted(range(len(arrows)), key=lambda at: -abs(arrows[at][2])):
        text = percent(arrows[number][2])
        width, height = text_size(text, PERCENT)
        others = points[owner != number]
        best = min(
            (
                (sum(area.overlap(each) for each in taken) * 1e4 + 2 * area.holds(others) + cost, area, x, y)
                for x, y, cost in _places(paths[number])
                for area in [Rectangle.around(x, y, width + 0.04, height)]
            ),
        )
        _, area, x, y = best
        taken.append(area)
        colour = canvas.palette.positive if arrows[number][2] > 0 else canvas.palette.negative
        canvas.text(
            x, y, text, PERCENT, colour, zorder=7,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": canvas.palette.panel, "edgecolor": "none"},
        )  # fmt: skip


def _places(path: Sequence[Point]) -> list[tuple[float, float, float]]:
    """Where along an arrow its number may stand, and how little that is wanted: best clear of the head at its target."""
    end = path[-1][1]
    return [(x, y, 8 * abs(abs(y - end) - _BEFORE) + (20 if abs(y - end) < _HEAD else 0)) for x, y in path[2:-2]]


def percent(share: float) -> str:
    """A share as pictures write it, with its sign; tenths below one percent."""
    return f"{share:+.0%}".replace("-", "−") if abs(share) >= 0.0095 else f"{share:+.1%}".replace("-", "−")
