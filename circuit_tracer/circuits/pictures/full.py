"""The picture of the whole pruned graph: tokens across, layers up, every node, the links that carry most.

Columns are as wide as their fullest layer needs, lines as high as the number of layers lets them be, so that a graph of 30
layers and 1,500 nodes fits on a page.

Letters: N nodes, E edges, P positions, L layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.circuits.pictures.boxes import Labels, node_name, target_name
from circuit_tracer.circuits.pictures.canvas import (
    Canvas,
    Rectangle,
    text_size,
    token_text,
    two_lines,
    wrapped,
)
from circuit_tracer.circuits.pictures.legend import draw_legend, legend_size
from circuit_tracer.circuits.pictures.looks import Point, draw_marks
from circuit_tracer.graph.figures import require_matplotlib
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import edge_influence
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.palette import palette_of
from circuit_tracer.graph.pruning import PruneResult, prune_graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE, _TOKEN, _NAME = 9.0, 7.5, 6.5  # points
_MARGIN, _SIDE, _HEAD = 0.22, 0.42, 0.95  # inches; _HEAD: for the names of outputs, which stand slanted
_SLOT, _COLUMN, _WIDEST = 0.115, 0.4, 15.0  # a node of a cell, the least column, all columns
_HIGHEST = 8.4  # all lines
_OUTPUT = 0.2  # between outputs
_WRITTEN = 0.75  # a column makes room for its token up to here; longer ones are turned
_IN_A_ROW = 8  # nodes of a cell; more stand in three
_ITEMS = ("feature", "small error", "end", "raises", "lowers")


@dataclass(frozen=True)
class _Layout:
    """Where nodes stand, in inches, by their number; left edges of columns (P + 1) and middles of lines (L + 2)."""

    place: dict[int, Point]
    columns: list[float]
    lines: list[float]


def graph_figure(
    graph: Graph,
    labels: Labels | None = None,
    *,
    theme: str = "light",
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    most_edges: int = 300,
    most_names: int = 10,
) -> Figure:
    """The pruned graph, all of its nodes, as a matplotlib figure.

    Args:
        graph: The attribution graph.
        labels: Text by (layer, feature index).
        theme: "light" or "dark".
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).
        most_edges: Only so many links are drawn, those that carry most influence, of which their width tells.
        most_names: Only the features of most influence are named.

    Returns:
        The matplotlib figure.

    Raises:
        CircuitTracerError: Without matplotlib.
    """
    require_matplotlib()
    pruned = prune_graph(graph, node_threshold, edge_threshold)
    chosen = torch.where(pruned.node_mask)[0].tolist()
    columns, lines, width, height = _grid(graph, chosen)
    notes = _notes(pruned, most_edges)
    turned = any(text_size(name, _TOKEN)[0] > _WRITTEN - 0.1 for name in _token_names(graph))
    under = 0.85 if turned else 0.4  # the tokens
    foot = legend_size(_ITEMS, notes, width - 2 * _MARGIN) + _MARGIN + under
    title = wrapped(graph.input_string, _TITLE, width - 2 * _MARGIN, True)
    head = 0.2 * len(title) + _MARGIN + _HEAD
    canvas = Canvas(width, foot + height + head, palette_of(theme))
    layout = _place(graph, chosen, columns, [foot + y for y in lines])
    _draw_frame(canvas, graph, layout)
    _draw_links(canvas, graph, pruned, layout, most_edges)
    _draw_nodes(canvas, graph, pruned.influence.cpu(), layout)
    _name_outputs(canvas, graph, layout)
    _name_features(canvas, graph, pruned.influence.cpu(), layout, labels or {}, most_names)
    for number, line in enumerate(title):
        y = foot + height + head - _MARGIN - 0.2 * number
        canvas.text(_MARGIN, y, line, _TITLE, ha="left", weight="bold")
    draw_legend(canvas, _ITEMS, notes, _MARGIN, foot - under, width - 2 * _MARGIN)
    return canvas.figure


def _grid(graph: Graph, chosen: Sequence[int]) -> tuple[list[float], list[float], float, float]:
    """Edges of columns, middles of lines above the lowest, and the width and height of all."""
    fullest = [1] * graph.n_pos
    for (position, line), members in _cells(graph, chosen).items():
        if line <= graph.n_layers:
            fullest[position] = max(fullest[position], _slots(len(members)))
    slot = min(_SLOT, _WIDEST / sum(fullest))
    columns = [_MARGIN + _SIDE]
    for count, token in zip(fullest, _token_names(graph), strict=True):
        written = text_size(token, _TOKEN)[0] + 0.1
        columns.append(columns[-1] + max(_COLUMN, slot * (count + 1), written if written <= _WRITTEN else 0.0))
    step = min(0.55, max(0.17, _HIGHEST / (graph.n_layers + 2)))
    lines = [step * (line + 0.5) for line in range(graph.n_layers + 2)]
    least = _MARGIN + _SIDE + _OUTPUT * len(graph.targets) + 1.2
    return columns, lines, max(columns[-1] + 2 * _MARGIN + 0.5, least, 5.0), step * (graph.n_layers + 2)


def _slots(count: int) -> int:
    """Of a cell with so many nodes side by side; many stand in three rows."""
    return count if count <= _IN_A_ROW else -(-count // 3)


def _token_names(graph: Graph) -> list[str]:
    return [two_lines(token_text(token), _TOKEN, 0.9)[0] for token in graph.token_texts]


def _cells(graph: Graph, chosen: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """Nodes by (position, line): tokens on line 0, layer l on l + 1, outputs on L + 1."""
    cells: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    kinds, layers, positions = (
        column.tolist() for column in (graph.nodes.kind, graph.nodes.layer, graph.nodes.position)
    )
    for node in chosen:
        line = graph.n_layers + 1 if kinds[node] == NodeKind.TARGET else layers[node] + 1
        cells[positions[node], line].append(node)
    return cells


def _place(graph: Graph, chosen: Sequence[int], columns: list[float], lines: list[float]) -> _Layout:
    """Nodes of a cell side by side about the middle of their column; outputs far enough apart for their names."""
    place = {}
    last = 0.0
    for (position, line), members in sorted(_cells(graph, chosen).items()):
        left, right = columns[position], columns[position + 1]
        outputs = line == graph.n_layers + 1
        slots = len(members) if outputs else _slots(len(members))
        room = min((right - left) / (slots + 1), 0.3)
        step = max(_OUTPUT, room) if outputs else room
        start = (left + right) / 2 - step * (slots - 1) / 2
        if outputs:
            start = max(start if position + 1 < graph.n_pos else min(start, right - step * slots), last)
            last = start + step * slots
        rise = 0.3 * (lines[1] - lines[0]) if slots < len(members) else 0.0
        for at, node in enumerate(members):
            row = at % 3 - 1 if rise else 0
            place[node] = (start + step * ((at // 3 + row / 3) if rise else at), lines[line] + rise * row)
    return _Layout(place, columns, lines)


def _draw_frame(canvas: Canvas, graph: Graph, layout: _Layout) -> None:
    """Columns with their tokens, lines with their layers."""
    from matplotlib.patches import Rectangle as Patch

    columns, lines = layout.columns, layout.lines
    bottom, top = lines[0] - 0.14, lines[-1] + 0.14
    for position, name in enumerate(_token_names(graph)):
        left, right = columns[position], columns[position + 1]
        if position % 2 == 0:
            colour = canvas.palette.band
            canvas.axes.add_patch(
                Patch((left, bottom), right - left, top - bottom, color=colour, linewidth=0, zorder=0)
            )
        turned = text_size(name, _TOKEN)[0] > right - left
        style = {"rotation": 45, "ha": "right", "va": "top", "rotation_mode": "anchor"} if turned else {"va": "top"}
        canvas.text((left + right) / 2 + 0.05 * turned, bottom - 0.07, name, _TOKEN, **style)
    every = 1 if lines[1] - lines[0] >= 0.2 else 2
    for line, y in enumerate(lines):
        name = "prompt" if line == 0 else "output" if line == len(lines) - 1 else f"L{line - 1}"
        if line in (0, len(lines) - 1) or (line - 1) % every == 0:
            canvas.text(columns[0] - 0.07, y, name, 6.0, canvas.palette.muted, ha="right")


def _draw_links(canvas: Canvas, graph: Graph, pruned: PruneResult, layout: _Layout, most: int) -> None:
    from matplotlib.collections import LineCollection

    edges = pruned.pruned_edges
    carried = edge_influence(edges, pruned.influence, graph.target_weights).cpu()
    which = torch.argsort(carried, descending=True, stable=True)[:most].flip(0)
    places = zip(edges.source.cpu()[which].tolist(), edges.target.cpu()[which].tolist(), strict=True)
    shown = carried[which]
    parts = (shown / shown.max().clamp(min=1e-30)).sqrt().tolist() if len(shown) else []
    raises = (edges.weight.cpu()[which] > 0).tolist()
    palette = canvas.palette
    canvas.axes.add_collection(
        LineCollection(
            [[layout.place[source], layout.place[target]] for source, target in places],
            colors=[palette.positive if up else palette.negative for up in raises],
            linewidths=[0.3 + 2.6 * part for part in parts], alpha=[0.12 + 0.75 * part**1.5 for part in parts], zorder=2,
        )
    )  # fmt: skip


def _draw_nodes(canvas: Canvas, graph: Graph, influence: Tensor, layout: _Layout) -> None:
    """The most influential last."""
    order = sorted(layout.place, key=lambda node: float(influence[node]))
    for kind in (NodeKind.ERROR, NodeKind.FEATURE, NodeKind.TOKEN, NodeKind.TARGET):
        nodes = [node for node in order if int(graph.nodes.kind[node]) == kind]
        strongest = max((float(influence[node]) for node in nodes), default=0.0)
        parts = [(float(influence[node]) / strongest) ** 0.5 if strongest else 0.3 for node in nodes]
        fixed = kind in (NodeKind.TOKEN, NodeKind.TARGET)
        x, y = [layout.place[node][0] for node in nodes], [layout.place[node][1] for node in nodes]
        draw_marks(canvas, kind, x, y, [0.25] * len(nodes) if fixed else parts)


def _name_outputs(canvas: Canvas, graph: Graph, layout: _Layout) -> None:
    first = graph.nodes.layout.target_start
    for rank in range(len(graph.targets)):
        x, y = layout.place[first + rank]
        name = two_lines(target_name(graph, rank), _TOKEN, 1.1)
        canvas.text(
            x, y + 0.1, " ".join(name[:1] if len(graph.targets) > 1 else name), _TOKEN, rotation=55, ha="left", va="bottom",
            rotation_mode="anchor", weight="bold" if rank == 0 else "normal",
        )  # fmt: skip


def _name_features(canvas: Canvas, graph: Graph, influence: Tensor, layout: _Layout, labels: Labels, most: int) -> None:
    """Names beside the features of most influence, where they cover no other name and few other nodes, with a line there."""
    n_features = graph.nodes.layout.n_features
    features = sorted((node for node in layout.place if node < n_features), key=lambda node: -float(influence[node]))
    points = np.array(list(layout.place.values()))
    named = [Rectangle.around(x, y, 0.1, 0.1) for x, y in (layout.place[node] for node in features[:most])]
    for node in features[:most]:
        x, y = layout.place[node]
        lines = two_lines(node_name(graph, node, labels), _NAME, 1.6)
        width, height = max(text_size(line, _NAME)[0] for line in lines), 0.115 * len(lines)
        area = min(
            (
                Rectangle.around(x + dx * (width / 2 + 0.08), y + dy, width + 0.05, height)
                for dx in (0.0, 1.0, -1.0, 0.6, -0.6)
                for dy in (0.0, 0.18, -0.18, 0.32, -0.32, 0.5, -0.5)
                if dx or dy
            ),
            key=lambda at: (
                sum(at.overlap(other) for other in named) * 1e4
                + at.holds(points)
                + 4 * abs((at.bottom + at.top) / 2 - y)
                + 50 * (at.bottom < layout.lines[0] + 0.06)
                + 50 * (at.left < layout.columns[0]) + 50 * (at.right > canvas.width - 0.05)
            ),
        )  # fmt: skip
        named.append(area)
        middle = (area.left + area.right) / 2, (area.bottom + area.top) / 2
        canvas.axes.plot([x, middle[0]], [y, middle[1]], color=canvas.palette.ink, linewidth=0.5, zorder=6)
        canvas.text(
            *middle, "\n".join(lines), _NAME, zorder=7,
            bbox={"boxstyle": "square,pad=0.12", "facecolor": canvas.palette.panel, "edgecolor": "none", "alpha": 0.88},
        )  # fmt: skip


def _notes(pruned: PruneResult, most: int) -> list[str]:
    n_edges = len(pruned.pruned_edges)
    links = f"the {most:,} of {n_edges:,} links that carry most influence" if n_edges > most else f"{n_edges:,} links"
    return [f"{int(pruned.node_mask.sum()):,} nodes; {links}; width: influence that a link carries"]
