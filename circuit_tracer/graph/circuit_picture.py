"""A picture of what a person pinned: a box a node or supernode, tokens below and outputs above, arrows for direct effects.

An arrow's number is the share of the target's input: the sum of the edges from members to members, over the sum of the
absolute edges that enter the target's members from outside of them, in the whole graph. It is the number that the viewer
shows for the same pins.

Letters: N nodes of the graph, B boxes.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.files.node_ids import node_ids
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.picture import NEGATIVE, POSITIVE, STYLE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 1.55, 0.62  # of a box, inches
_GAP, _RISE = 0.3, 0.75  # between boxes of a row, and between rows
_LABEL_WIDTH, _LABEL_LINES = 19, 3
_NUMBERED = 0.05  # smaller shares get no number
_SUPERNODE = "#eef2f9"


@dataclass(frozen=True)
class Box:
    """One pinned node, or a supernode of several."""

    text: str
    nodes: tuple[int, ...]
    kind: NodeKind
    row: float  # mean row of its nodes: tokens 0, layer l at l + 1, outputs above
    column: float  # mean position

    @property
    def several(self) -> bool:
        return len(self.nodes) > 1


def circuit_figure(
    graph: Graph,
    view: View,
    labels: Mapping[tuple[int, int], str] | None = None,
    least_share: float = 0.02,
    numbers: bool = True,
) -> Figure:
    """The pinned nodes and supernodes of a view as a matplotlib figure.

    labels: text by (layer, feature index); those of the view come first. least_share: arrows of a smaller share are left
    out. numbers: write the shares beside the arrows. Raises InputError for nodes that the graph does not have.
    """
    boxes = _boxes(graph, view, labels or {})
    share_BB = _shares(graph, boxes)
    places, width, height = _places(boxes)
    figure, axes = new_figure(max(3.0, width), max(2.0, height))
    arrows = [
        (float(share_BB[target, source]), source, target)
        for target in range(len(boxes))
        for source in range(len(boxes))
        if source != target and abs(float(share_BB[target, source])) >= least_share
    ]
    for share, source, target in sorted(arrows, key=lambda arrow: abs(arrow[0])):
        _arrow(axes, places[source], places[target], share, numbers)
    for box, place in zip(boxes, places, strict=True):
        _draw(axes, box, place)
    prompt = graph.input_string.replace("$", r"\$")
    axes.set_title("\n".join(textwrap.wrap(prompt, max(30, int(width * 11)))), fontsize=8, color="#444444")
    axes.set(xlim=(-_WIDTH / 2 - 0.2, width - _WIDTH / 2 - 0.2), ylim=(-_HEIGHT, height - _HEIGHT))
    axes.set_aspect("equal")
    axes.axis("off")
    return figure


def _boxes(graph: Graph, view: View, labels: Mapping[tuple[int, int], str]) -> list[Box]:
    place = {name: node for node, name in enumerate(node_ids(graph))}
    if missing := [name for name in view.nodes if name not in place]:
        raise InputError(f"the view pins nodes that this graph does not have: {', '.join(missing[:5])}")
    grouped = {name for _, members in view.supernodes for name in members}
    groups = [(name, members) for name, members in view.supernodes]
    groups += [("", (name,)) for name in view.pinned if name not in grouped]
    boxes = []
    for name, members in groups:
        nodes = tuple(place[member] for member in members)
        text = name or view.labels.get(members[0]) or _text(graph, nodes[0], labels)
        rows = [_row(graph, node) for node in nodes]
        columns = [int(graph.nodes.position[node]) for node in nodes]
        kind = NodeKind(int(graph.nodes.kind[nodes[0]]))
        boxes.append(Box(text, nodes, kind, sum(rows) / len(rows), sum(columns) / len(columns)))
    return boxes


def _row(graph: Graph, node: int) -> int:
    kind, layer = NodeKind(int(graph.nodes.kind[node])), int(graph.nodes.layer[node])
    return {NodeKind.TOKEN: 0, NodeKind.TARGET: graph.n_layers + 1}.get(kind, layer + 1)


def _text(graph: Graph, node: int, labels: Mapping[tuple[int, int], str]) -> str:
    nodes, tokens = graph.nodes, graph.token_strings
    kind, layer, position = NodeKind(int(nodes.kind[node])), int(nodes.layer[node]), int(nodes.position[node])
    word = tokens[position].strip() if tokens else str(int(graph.input_tokens[position]))
    if kind is NodeKind.TOKEN:
        return f"“{word}”"
    if kind is NodeKind.TARGET:
        rank = node - nodes.layout.target_start
        return f"“{graph.targets.label[rank].strip()}” {float(graph.targets.weight[rank]):.2f}"
    if kind is NodeKind.ERROR:
        return f"error L{layer} @ {word}"
    feature = int(nodes.feature[node])
    return labels.get((layer, feature)) or f"L{layer}/{feature} @ {word}"


def _shares(graph: Graph, boxes: list[Box]) -> Tensor:
    """(B, B) share of the target's (row's) outside input that comes from the source (column)."""
    n_boxes, edges = len(boxes), graph.edges
    owner = torch.full((graph.n_nodes,), -1, dtype=torch.long)
    for number, box in enumerate(boxes):
        owner[list(box.nodes)] = number
    target, source = owner[edges.target.cpu()], owner[edges.source.cpu()]
    weight = edges.weight.cpu().double()
    outside = (target >= 0) & (target != source)
    mass_B = torch.zeros(n_boxes, dtype=torch.float64).index_add_(0, target[outside], weight[outside].abs())
    inside = outside & (source >= 0)
    flat = torch.zeros(n_boxes * n_boxes, dtype=torch.float64)
    flat.index_add_(0, target[inside] * n_boxes + source[inside], weight[inside])
    return flat.view(n_boxes, n_boxes) / mass_B.clamp(min=1e-30)[:, None]


def _places(boxes: list[Box]) -> tuple[list[tuple[float, float]], float, float]:
    """Middle of each box, and width and height of all, in inches. Boxes of about one layer share a row, sorted by position."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for number, box in enumerate(boxes):
        rows[round(box.row)].append(number)
    step = _WIDTH + _GAP
    columns = {column: order for order, column in enumerate(sorted({round(box.column) for box in boxes}))}
    places = [(0.0, 0.0)] * len(boxes)
    for level, row in enumerate(sorted(rows)):
        right = -step
        for number in sorted(rows[row], key=lambda each: (boxes[each].column, boxes[each].text)):
            right = max(right + step, columns[round(boxes[number].column)] * step)
            places[number] = (right, level * (_HEIGHT + _RISE))
    left = min(x for x, _ in places)
    places = [(x - left, y) for x, y in places]
    width = max(x for x, _ in places) + _WIDTH + 0.4
    return places, width, (len(rows) - 1) * (_HEIGHT + _RISE) + 2 * _HEIGHT


def _draw(axes: Any, box: Box, place: tuple[float, float]) -> None:
    from matplotlib.patches import FancyBboxPatch

    colour = STYLE[box.kind][1]
    corner = (place[0] - _WIDTH / 2, place[1] - _HEIGHT / 2)
    for shift in (0.06, 0.0) if box.several else (0.0,):  # a supernode is drawn as a pile
        axes.add_patch(
            FancyBboxPatch(
                (corner[0] + shift, corner[1] + shift), _WIDTH, _HEIGHT, boxstyle="round,pad=0,rounding_size=0.09",
                facecolor=_SUPERNODE if box.several else "white", edgecolor=colour, linewidth=1.3, zorder=4,
            )
        )  # fmt: skip
    lines = textwrap.wrap(box.text, _LABEL_WIDTH, max_lines=_LABEL_LINES, placeholder=" …") or [""]
    text = "\n".join(lines).replace("$", r"\$")
    axes.text(place[0], place[1], text, ha="center", va="center", fontsize=8, color="#222222", zorder=5)


def _arrow(axes: Any, start: tuple[float, float], stop: tuple[float, float], share: float, number: bool) -> None:
    from matplotlib.patches import FancyArrowPatch

    colour = POSITIVE if share > 0 else NEGATIVE
    level = abs(start[1] - stop[1]) < 1e-9
    side = _HEIGHT / 2
    through = abs(start[0] - stop[0]) < 1e-9 and abs(start[1] - stop[1]) > _HEIGHT + 1.5 * _RISE  # other boxes
    bend = -0.35 if level else 0.25 if through else 0.0
    begin = (start[0], start[1] + side)
    end = (stop[0], stop[1] + side if level else stop[1] - side)
    axes.add_patch(
        FancyArrowPatch(
            begin, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=0.5 + 4 * min(1.0, abs(share)) ** 0.5,
            alpha=0.3 + 0.6 * min(1.0, abs(share)), connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=1,
            zorder=2,
        )
    )  # fmt: skip
    if number and abs(share) >= _NUMBERED:
        aside = bend * (end[1] - begin[1]) / 2 if through else 0.0
        middle = (begin[0] * 0.45 + end[0] * 0.55 + aside, begin[1] * 0.45 + end[1] * 0.55 + (0.2 if level else 0))
        axes.text(
            *middle, f"{share:+.0%}", fontsize=6, color=colour, ha="center", va="center", zorder=3,
            bbox={"boxstyle": "square,pad=0.08", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
