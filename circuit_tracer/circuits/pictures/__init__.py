"""Pictures of graphs and circuits, for papers and READMEs: SVG, PDF or PNG, on light or dark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from circuit_tracer.circuits.grouping import group_nodes
from circuit_tracer.circuits.keeping import kept_grouping
from circuit_tracer.circuits.naming import name_groups
from circuit_tracer.circuits.pictures.circuit import circuit_figure
from circuit_tracer.circuits.pictures.full import graph_figure
from circuit_tracer.errors import InputError
from circuit_tracer.features.kept import KeptRecords
from circuit_tracer.graph.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from circuit_tracer.circuits.pictures.boxes import Labels
    from circuit_tracer.circuits.supernodes import Grouping
    from circuit_tracer.graph.files.view import View
    from circuit_tracer.graph.graph import Graph

__all__ = ["circuit_figure", "draw", "graph_figure", "save_figure"]


def draw(
    graph: Graph,
    path: str | Path | None = None,
    style: Literal["circuit", "graph"] = "circuit",
    view: View | None = None,
    grouping: Grouping | None = None,
    labels: Labels | None = None,
    **options: Any,
) -> Figure:
    """The picture of a graph, written to ``path`` if there is one; see ``Graph.plot``.

    Args:
        graph: The attribution graph.
        path: An .svg, .pdf or .png to write; None: none.
        style: "circuit" for groups, "graph" for all nodes.
        view: What a person pinned, to be drawn.
        grouping: Default: the one that the graph keeps, or a new one. Groups without a name are named by labels and
            examples.
        labels: Of features, by (layer, index), before those that the graph keeps.
        **options: Those of ``circuit_figure`` or ``graph_figure``.

    Returns:
        The matplotlib figure.

    Raises:
        InputError: For a view or a grouping with style "graph".
    """
    called = {**graph.labels, **(labels or {})}
    if style == "graph":
        if view is not None or grouping is not None:
            raise InputError('a view or a grouping is drawn with style="circuit"; style="graph" draws all nodes')
        figure = graph_figure(graph, called, **options)
    elif view is not None and view.nodes:
        figure = circuit_figure(graph, view, called, **options)
    else:
        groups = grouping if grouping is not None else kept_grouping(graph) or _grouped(graph, called, options)
        named = name_groups(graph, groups, labels=called, features=KeptRecords(graph))
        figure = circuit_figure(graph, named, called, **options)
    if path is not None:
        save_figure(figure, Path(path))
    return figure


def _grouped(graph: Graph, labels: Labels, options: dict[str, Any]) -> Grouping:
    thresholds = {name: options[name] for name in ("node_threshold", "edge_threshold") if name in options}
    return group_nodes(graph, labels=labels, **thresholds)
