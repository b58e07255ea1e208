"""A picture of a pruned graph: tokens across, layers up, edges by share of their target's input.

Letters: L layers, P positions.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.files import atomic_write
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.pruning import prune_graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[NodeKind, tuple[str, str]] = {  # marker, colour
    NodeKind.FEATURE: ("o", "#3b6fb6"),
    NodeKind.ERROR: ("D", "#b9b9b9"),
    NodeKind.TOKEN: ("s", "#4c9a5b"),
    NodeKind.TARGET: ("s", "#c0504d"),
}
POSITIVE, NEGATIVE = "#7a4b9a", "#c77f2e"
_STAGGER = 0.24  # rows by which neighbours in a cell are lifted, so that their labels do not cover each other
_LABEL_WIDTH = 18
_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same graph gives the same file


@dataclass(frozen=True)
class _Layout:
    node: list[int]  # graph index of each drawn node
    x: list[float]
    y: list[float]


def draw_graph(
    graph: Graph,
    path: str | Path,
    labels: Mapping[tuple[int, int], str] | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    most_features: int = 24,
    most_edges: int = 120,
) -> Path:
    """Draw the pruned graph into an SVG, PNG or PDF file (by suffix) and return its path; see ``graph_figure``."""
    return save_figure(
        graph_figure(graph, labels, node_threshold, edge_threshold, most_features, most_edges), Path(path)
    )


def graph_figure(
    graph: Graph,
    labels: Mapping[tuple[int, int], str] | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    most_features: int = 24,
    most_edges: int = 120,
) -> Figure:
    """The pruned graph as a matplotlib figure.

    labels: text by (layer, feature index). At most `most_features` features, those of largest influence, and
    `most_edges` edges, those of largest share of their target's input, are drawn. Raises CircuitTracerError without
    matplotlib.
    """
    layout = _place(graph, _chosen_nodes(graph, node_threshold, edge_threshold, most_features))
    figure, axes = new_figure(max(7.0, 1.35 * graph.n_pos), 0.95 * (graph.n_layers + 3))
    _draw_edges(axes, graph, layout, most_edges)
    _draw_nodes(axes, graph, layout, labels or {})
    _draw_frame(axes, graph)
    return figure


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """An empty figure of so many inches, and its axes. Touches neither the backend nor other settings of matplotlib's."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise CircuitTracerError("pictures need matplotlib: pip install 'circuit-tracing[plot]'") from error
    figure = matplotlib.figure.Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format that the suffix names; the same figure gives the same file."""
    import matplotlib

    kind = path.suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path} ends in .{kind}, which is no format of pictures; end it in .svg, .pdf or .png")
    with matplotlib.rc_context({"svg.hashsalt": "circuit-tracing"}), atomic_write(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight", metadata=_NO_DATE.get(kind))
    return path


def _chosen_nodes(graph: Graph, node_threshold: float, edge_threshold: float, most_features: int) -> list[int]:
    mask = prune_graph(graph, node_threshold, edge_threshold).node_mask.cpu()
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights).cpu()
    kind = graph.nodes.kind.cpu()
    features = torch.nonzero(mask & (kind == NodeKind.FEATURE)).flatten()
    features = features[torch.argsort(influence[features], descending=True)[:most_features]]
    others = torch.nonzero(mask & (kind != NodeKind.FEATURE) & (kind != NodeKind.ERROR)).flatten()
    errors = torch.nonzero(mask & (kind == NodeKind.ERROR)).flatten()
    errors = errors[torch.argsort(influence[errors], descending=True)[: max(0, most_features // 4)]]
    return sorted([*features.tolist(), *others.tolist(), *errors.tolist()])


def _place(graph: Graph, chosen: list[int]) -> _Layout:
    """Tokens at the bottom, targets on top, layer l in row l + 1; nodes of one cell side by side."""
    nodes, cells = graph.nodes, defaultdict(list)
    rows = {NodeKind.TOKEN: 0.0, NodeKind.TARGET: graph.n_layers + 1.0}
    for node in chosen:
        kind = NodeKind(int(nodes.kind[node]))
        cells[int(nodes.position[node]), rows.get(kind, float(nodes.layer[node]) + 1)].append(node)
    x, y, order = [], [], []
    for (position, row), members in cells.items():
        for slot, node in enumerate(members):
            offset = (slot - (len(members) - 1) / 2) * min(0.42, 0.84 / len(members))
            order.append(node)
            x.append(position + offset)
            y.append(row + _STAGGER * (slot % 3))
    return _Layout(order, x, y)


def _draw_edges(axes: Any, graph: Graph, layout: _Layout, most: int) -> None:
    place = {node: i for i, node in enumerate(layout.node)}
    drawn = []
    for target in layout.node:
        source, weight = graph.edges.row(target)
        total = float(weight.abs().sum())
        drawn += [
            (abs(float(w)) / total, float(w), int(s), target)
            for s, w in zip(source, weight, strict=True)
            if int(s) in place
        ]
    for share, edge, start, stop in sorted(drawn, reverse=True)[:most]:
        a, b = place[start], place[stop]
        axes.plot(
            [layout.x[a], layout.x[b]], [layout.y[a], layout.y[b]], color=POSITIVE if edge > 0 else NEGATIVE,
            linewidth=0.3 + 3 * share**0.5, alpha=min(0.9, 0.22 + share), zorder=1, solid_capstyle="round",
        )  # fmt: skip


def _draw_nodes(axes: Any, graph: Graph, layout: _Layout, labels: Mapping[tuple[int, int], str]) -> None:
    nodes = graph.nodes
    for node, x, y in zip(layout.node, layout.x, layout.y, strict=True):
        kind = NodeKind(int(nodes.kind[node]))
        marker, colour = STYLE[kind]
        axes.scatter([x], [y], marker=marker, s=46, color=colour, edgecolors="white", linewidths=0.8, zorder=5)
        text = _text(graph, node, kind, labels)
        if text:
            axes.annotate(
                text, (x, y), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7, zorder=4, linespacing=0.95,
                bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )  # fmt: skip


def _text(graph: Graph, node: int, kind: NodeKind, labels: Mapping[tuple[int, int], str]) -> str:
    if kind is NodeKind.FEATURE:
        label = labels.get((int(graph.nodes.layer[node]), int(graph.nodes.feature[node])), "")
        return "\n".join(textwrap.wrap(label, _LABEL_WIDTH)[:2])
    if kind is NodeKind.TARGET:
        rank = node - graph.nodes.layout.target_start
        return f"{graph.targets.label[rank].strip()} {float(graph.targets.weight[rank]):.2f}"
    return ""


def _draw_frame(axes: Any, graph: Graph) -> None:
    tokens = graph.token_texts
    axes.set_xticks(range(graph.n_pos), [token.replace("$", r"\$") for token in tokens])
    axes.set_yticks(
        range(graph.n_layers + 2), ["token", *[f"layer {layer}" for layer in range(graph.n_layers)], "output"]
    )
    axes.set_xlim(-0.6, graph.n_pos - 0.4)
    axes.set_ylim(-0.4, graph.n_layers + 1.6)
    axes.grid(axis="y", color="#eeeeee", zorder=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
