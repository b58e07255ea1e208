"""The strongest heads of many edges."""

from __future__ import annotations

from collections.abc import Sequence

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.edge_heads import EdgeHeads
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PruneResult


def explain_edges(
    graph: Graph,
    model: Traceable,
    keep: int = 3,
    edges: Sequence[tuple[int | str, int | str]] | PruneResult | Edges | None = None,
) -> EdgeHeads:
    """The `keep` strongest first and last heads of many edges, which the graph then has as ``graph.edge_heads``.

    edges: (source, target) pairs, a pruned graph, or edges of the graph; None: those that `prune_graph(graph)` keeps.
    """
    raise NotImplementedError
