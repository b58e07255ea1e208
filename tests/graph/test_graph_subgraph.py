"""The pruned graph as a graph of its own: the kept nodes and edges, and a sum rule that still holds."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer.errors import InputError
from circuit_tracer.graph import prune_graph
from circuit_tracer.graph.subgraph import subgraph
from tests.support.graph_cases import random_graph


@pytest.mark.parametrize(("node_threshold", "edge_threshold"), [(0.8, 0.98), (0.4, 0.6), (1.0, 1.0), (0.0, 0.0)])
def test_what_was_pruned_is_unselected_now(node_threshold: float, edge_threshold: float) -> None:
    graph = random_graph()
    pruned = prune_graph(graph, node_threshold, edge_threshold)
    small = subgraph(graph, pruned)
    features = graph.nodes.layout.features
    assert torch.equal(small.selected_features, graph.selected_features[pruned.node_mask[features]])
    assert len(small.edges) == int(pruned.kept_edges.sum())
    assert small.residual is not None
    assert small.residual < 1e-12
    assert torch.equal(small.active_features, graph.active_features)


def test_a_pruning_of_another_graph_is_refused() -> None:
    with pytest.raises(InputError, match="nodes"):
        subgraph(random_graph(), prune_graph(random_graph(n_selected=5)))
