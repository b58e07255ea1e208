"""The legend under a picture: kinds of boxes and arrows that occur in it, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Sequence

from circuit_tracer.circuits.pictures.canvas import Canvas, text_size, wrapped
from circuit_tracer.circuits.pictures.looks import LOOKS, draw_arrow, draw_marks, draw_outline
from circuit_tracer.graph.nodes import NodeKind

_SIZE, _LINE = 7.0, 0.2  # points, inches
_SAMPLE = 0.26  # width of a box or arrow
_WORDS = {
    "token": "token",
    "detects": "detects something in the input",
    "says": "promotes an output",
    "mixed": "features of no one kind",
    "error": "what the dictionary leaves out",
    "logit": "output",
    "feature": "feature: larger and darker the more influence",
    "small error": "what the dictionary leaves out",
    "end": "token or output",
    "raises": "raises its target",
    "lowers": "lowers its target",
}


def legend_size(items: Sequence[str], notes: Sequence[str], width: float) -> float:
    """Height of the legend of a picture so wide, inches."""
    return _LINE * (len(_lines(items, width)) + sum(len(wrapped(note, _SIZE, width)) for note in notes))


def draw_legend(
    canvas: Canvas, items: Sequence[str], notes: Sequence[str], left: float, top: float, width: float
) -> None:
    """Draw it below ``top``: names of ``_WORDS`` side by side, notes under them, a line each."""
    y = top - _LINE / 2
    for row in _lines(items, width):
        x = left
        for item in row:
            _draw_sample(canvas, item, x, y)
            canvas.text(x + _SAMPLE + 0.07, y, _WORDS[item], _SIZE, canvas.palette.muted, ha="left")
            x += _wide(item)
        y -= _LINE
    for line in (line for note in notes for line in wrapped(note, _SIZE, width)):
        canvas.text(left, y, line, _SIZE, canvas.palette.muted, ha="left")
        y -= _LINE


_MARKS = {"feature": NodeKind.FEATURE, "small error": NodeKind.ERROR, "end": NodeKind.TOKEN}


def _draw_sample(canvas: Canvas, item: str, x: float, y: float) -> None:
    role = next((role for role in LOOKS if role == item), None)
    if role is not None:
        draw_outline(canvas, role, (x, y - 0.055, x + _SAMPLE, y + 0.055))
        return
    if item in _MARKS:
        middle = [x + _SAMPLE / 2], [y]
        draw_marks(canvas, _MARKS[item], *middle, [0.6])
        return
    ends = (x, y), (x + _SAMPLE, y)
    draw_arrow(canvas, [(ends[0], ends[0], ends[1], ends[1])], 0.25 if item == "raises" else -0.25)


def _lines(items: Sequence[str], width: float) -> list[list[str]]:
    lines: list[list[str]] = []
    used = width
    for item in items:
        if used + _wide(item) > width:
            lines.append([])
            used = 0.0
        lines[-1].append(item)
        used += _wide(item)
    return lines


def _wide(item: str) -> float:
    return _SAMPLE + 0.07 + text_size(_WORDS[item], _SIZE)[0] + 0.22
