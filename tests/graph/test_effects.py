"""Signed effects: the sum over all paths, and what taking a node out of the frozen network does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from circuit_tracer.graph import Graph
from circuit_tracer.graph.effects import signed_effects
from circuit_tracer.interventions.validation.prediction import path_effects
from tests.support.aggregate_cases import dense_effects
from tests.support.graph_cases import graphs, random_graph


def signed_weights(graph: Graph) -> torch.Tensor:
    weights = torch.zeros(graph.n_nodes, dtype=torch.float64)
    weights[graph.nodes.layout.targets] = (
        graph.targets.weight.double() * torch.tensor([1.0, -1.0]).repeat(9)[: len(graph.targets)]
    )
    return weights


@settings(max_examples=15)
@given(graphs())
def test_effects_are_sums_over_paths(graph: Graph) -> None:
    weights = signed_weights(graph)
    effect, by_edge = signed_effects(graph.edges, graph.blocks, graph.nodes.activation, weights)
    expected = dense_effects(graph, weights)
    torch.testing.assert_close(effect, expected, rtol=1e-9, atol=1e-9 * max(1.0, float(expected.abs().max())))
    outgoing = torch.bincount(graph.edges.source, weights=by_edge, minlength=graph.n_nodes)
    torch.testing.assert_close(outgoing, effect)  # a node's effect is that of its edges


@pytest.mark.parametrize("seed", range(3))
def test_the_effect_is_that_of_taking_a_node_out_while_no_feature_stops(seed: int) -> None:
    graph = random_graph(seed)
    small = graph.adjacency_matrix.clone()
    small[graph.nodes.layout.features] *= 1e-3  # so that no feature loses all of its input
    graph.adjacency_matrix = small
    weights = signed_weights(graph)
    effect, _ = signed_effects(graph.edges, graph.blocks, graph.nodes.activation, weights)
    sources = torch.arange(graph.nodes.layout.target_start)
    torch.testing.assert_close(effect[sources], -(weights @ path_effects(graph, sources)))
