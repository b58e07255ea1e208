"""How boxes and arrows look: one look a role; green arrows raise their target, purple ones with a bar lower it."""

from __future__ import annotations

from collections.abc import Sequence

from circuit_tracer.circuits.pictures.canvas import Canvas
from circuit_tracer.circuits.supernodes import Role
from circuit_tracer.graph.nodes import NodeKind

Point = tuple[float, float]
Cubic = tuple[Point, Point, Point, Point]  # of Bézier

_ROUND = 0.07  # radius of corners, inches
_PILE = 0.035  # by which the second sheet of a pile looks out
_SAMPLES = 14  # points of a piece of an arrow
_SHORT = 0.045  # that a bar stands before its target
_FULL = 0.4  # a share of this much has the full colour, as on the page

# fill, edge (names of the palette), width of the edge, round corners, dashes
LOOKS: dict[Role, tuple[str, str, float, bool, str]] = {
    "token": ("band", "muted", 0.7, False, "-"),
    "detects": ("panel", "accent", 1.1, True, "-"),
    "says": ("target", "accent", 1.1, True, "-"),
    "mixed": ("node", "muted", 1.0, True, "-"),
    "error": ("panel", "muted", 0.8, True, "--"),
    "logit": ("target", "ink", 1.4, False, "-"),
}


# marker, and whether it is filled, of nodes where each is drawn by itself
MARKS: dict[NodeKind, tuple[str, bool]] = {
    NodeKind.FEATURE: ("o", True),
    NodeKind.ERROR: ("D", False),
    NodeKind.TOKEN: ("s", True),
    NodeKind.TARGET: ("s", True),
}


def draw_outline(canvas: Canvas, role: Role, area: tuple[float, float, float, float], several: bool = False) -> None:
    """A box from (left, bottom) to (right, top); of several nodes it is a pile of two sheets."""
    from matplotlib.patches import FancyBboxPatch

    fill, edge, width, rounded, dashes = LOOKS[role]
    left, bottom, right, top = area
    for shift in (_PILE, 0.0) if several else (0.0,):
        canvas.axes.add_patch(
            FancyBboxPatch(
                (left + shift, bottom + shift), right - left, top - bottom,
                boxstyle=f"round,pad=0,rounding_size={_ROUND}" if rounded else "square,pad=0",
                facecolor=getattr(canvas.palette, fill), edgecolor=getattr(canvas.palette, edge),
                linewidth=width, linestyle=dashes, zorder=5,
            )
        )  # fmt: skip


def draw_arrow(canvas: Canvas, curve: Sequence[Cubic], share: float) -> None:
    """An arrow along pieces that join; width and strength by its share."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    if share < 0:
        curve = [*curve[:-1], _before_the_end(curve[-1])]
    points = [curve[0][0], *(point for piece in curve for point in piece[1:])]
    path = Path(points, [Path.MOVETO, *[Path.CURVE4] * (3 * len(curve))])
    width = max(0.5, 4.5 * min(1.0, abs(share)) ** 0.5)
    head = "-|>,head_length=0.5,head_width=0.25" if share > 0 else "-[,widthB=0.55,lengthB=0"
    canvas.axes.add_patch(
        FancyArrowPatch(
            path=path, arrowstyle=head, mutation_scale=7 + 1.5 * width, linewidth=width, joinstyle="miter",
            color=canvas.palette.positive if share > 0 else canvas.palette.negative, capstyle="butt",
            alpha=0.35 + 0.65 * min(1.0, abs(share) / _FULL) ** 0.5, zorder=2 + min(1.0, abs(share)),
        )
    )  # fmt: skip


def _before_the_end(piece: Cubic) -> Cubic:
    """A piece that stops short of its end, so that a bar there is seen."""
    start, first, second, (x, y) = piece
    long = ((x - second[0]) ** 2 + (y - second[1]) ** 2) ** 0.5 or 1.0
    return start, first, second, (x + (second[0] - x) / long * _SHORT, y + (second[1] - y) / long * _SHORT)


def upright(start: Point, stop: Point) -> Cubic:
    """A piece that leaves and arrives straight up."""
    half = (start[1] + stop[1]) / 2
    return start, (start[0], half), (stop[0], half), stop


def sampled(curve: Sequence[Cubic]) -> list[Point]:
    """Points along a curve, in its order."""
    found = []
    for a, b, c, d in curve:
        for step in range(_SAMPLES):
            t = step / (_SAMPLES - 1)
            parts = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            found.append(tuple(sum(w * p[axis] for w, p in zip(parts, (a, b, c, d), strict=True)) for axis in (0, 1)))
    return [(x, y) for x, y in found]


def draw_marks(
    canvas: Canvas, kind: NodeKind, x: Sequence[float], y: Sequence[float], strength: Sequence[float]
) -> None:
    """Nodes of one kind by small signs; strength: 0 to 1, of which the size and the fill of features tell."""
    marker, filled = MARKS[kind]
    palette = canvas.palette
    fixed = palette.ink if kind in (NodeKind.TOKEN, NodeKind.TARGET) else palette.panel
    fills = [mixed(palette.node, palette.accent, part) if kind is NodeKind.FEATURE else fixed for part in strength]
    canvas.axes.scatter(
        x, y, marker=marker, s=[7 + 50 * part if filled else 6 + 24 * part for part in strength], c=fills,
        edgecolors=palette.muted, linewidths=0.5 if filled else 0.6, zorder=5,
    )  # fmt: skip


def mixed(one: str, other: str, part: float) -> str:
    """A colour between two of #rrggbb."""
    pairs = ((int(one[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(start + (end - start) * part):02x}" for start, end in pairs)
