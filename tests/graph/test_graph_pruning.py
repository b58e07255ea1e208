from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError
from circuit_tracer.graph import (
    Graph,
    compute_edge_influence,
    compute_node_influence,
    cumulative_ranks,
    cumulative_threshold,
    find_threshold,
    node_influence,
    prune_graph,
)
from circuit_tracer.graph import selection as selection_module
from tests.support.graph_cases import graphs, random_graph


def sorted_threshold(scores: torch.Tensor, fraction: float) -> float:
    ordered = torch.sort(scores[scores > 0].double(), descending=True).values
    index = int(torch.searchsorted(torch.cumsum(ordered, 0) / ordered.sum(), fraction))
    return float(ordered[min(index, len(ordered) - 1)])


# Multiples of a power of two add up without rounding, so that the two ways must agree to the bit.
exact_scores = st.lists(st.integers(0, 1000), min_size=1, max_size=300).map(lambda v: torch.tensor(v) / 64)


@given(exact_scores, st.floats(0, 1), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=200, deadline=None)
def test_selection_equals_sorting(scores: torch.Tensor, fraction: float, dtype: torch.dtype) -> None:
    scores = scores.to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection_module, "SORTABLE", 3)
        found = cumulative_threshold(scores, fraction)
    if not (scores > 0).any():
        assert found == float("inf")
    else:
        assert found == sorted_threshold(scores, fraction)


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 0.3, 0.8, 0.98, 0.999999, 1.0])
def test_selection_of_many_spread_out_scores(fraction: float) -> None:
    rng = torch.Generator().manual_seed(1)
    scores = (torch.randn(200_000, generator=rng, dtype=torch.float64) * 8).exp()
    value = cumulative_threshold(scores, fraction)
    kept = scores >= value
    assert float(scores[kept].sum() / scores.sum()) >= fraction - 1e-12
    assert float(scores[scores > value].sum() / scores.sum()) <= fraction + 1e-12
    assert value == sorted_threshold(scores, fraction) or fraction in (0.999999, 1.0)


def test_threshold_one_keeps_all_that_is_not_zero() -> None:
    scores = torch.tensor([0.0, 5.0, 1e-20, 0.0])
    assert find_threshold(scores, 1.0) == torch.tensor(1e-20)
    assert cumulative_ranks(scores).tolist() == [1.0, 1.0, 1.0, 1.0]
    with pytest.raises(InputError, match=r"1\.5"):
        find_threshold(scores, 1.5)


def apart(scores: torch.Tensor) -> bool:
    """No two scores so close that rounding could order them."""
    ordered = torch.sort(scores[scores > 0]).values
    return bool((ordered.diff() > 1e-9 * ordered[1:]).all())


def prune_dense(graph: Graph, node_threshold: float, edge_threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Circuit-tracer's policy written down with dense matrices."""
    layout, weights, matrix = graph.nodes.layout, graph.target_weights, graph.adjacency_matrix
    influence = compute_node_influence(matrix, weights)
    assume(apart(influence))
    nodes = influence >= sorted_threshold(influence, node_threshold)
    nodes[layout.token_start :] = True
    matrix = matrix * nodes[:, None] * nodes
    scores = compute_edge_influence(matrix, weights)
    assume(apart(scores.flatten()))
    edges = (scores >= sorted_threshold(scores.flatten(), edge_threshold)) if scores.any() else scores > 0
    while True:
        before = nodes.clone()
        nodes[: layout.token_start] &= edges.any(0)[: layout.token_start]
        nodes[layout.features] &= edges.any(1)[layout.features]
        edges = edges & nodes[:, None] & nodes
        if torch.equal(nodes, before):
            return nodes, edges


@given(graphs(), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_sparse_pruning_equals_dense(graph: Graph, node_threshold: float, edge_threshold: float) -> None:
    node_mask, edge_mask, scores = prune_graph(graph, node_threshold, edge_threshold)
    expected_nodes, expected_edges = prune_dense(graph, node_threshold, edge_threshold)
    assert torch.equal(node_mask, expected_nodes)
    assert torch.equal(edge_mask, expected_edges)
    torch.testing.assert_close(
        scores, cumulative_ranks(compute_node_influence(graph.adjacency_matrix, graph.target_weights))
    )


@given(graphs(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["circuit-tracer", "paper"]))
@settings(max_examples=40, deadline=None)
def test_what_is_left_hangs_together(graph: Graph, node_threshold: float, edge_threshold: float, policy: str) -> None:
    result = prune_graph(graph, node_threshold, edge_threshold, policy)  # type: ignore[arg-type]
    layout, kept = graph.nodes.layout, result.pruned_edges
    assert result.node_mask[layout.token_start :].all()
    assert result.node_mask[kept.target].all()
    assert result.node_mask[kept.source].all()
    features = torch.where(result.node_mask[: layout.n_features])[0]
    assert torch.isin(features, kept.target).all()
    assert torch.isin(features, kept.source).all()
    if policy == "paper":
        assert result.node_mask[layout.errors].all()
    assert torch.equal(result[0], result.node_mask)
    assert len(result) == 3


def test_full_thresholds_keep_all_that_flows() -> None:
    graph = random_graph(seed=5)
    result = prune_graph(graph, 1.0, 1.0)
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights)
    flows = influence > 0
    flows[graph.nodes.layout.token_start :] = True
    assert torch.equal(result.node_mask, flows)
    assert torch.equal(result.kept_edges, flows[graph.edges.target] & flows[graph.edges.source])


def test_paper_takes_the_smallest_set_where_scores_tie() -> None:
    graph = random_graph(n_layers=1, n_pos=1, n_active=4, n_selected=4, n_targets=1)
    matrix = torch.zeros(graph.n_nodes, graph.n_nodes)
    layout = graph.nodes.layout
    matrix[layout.target_start, :4] = 1.0
    matrix[:4, layout.token_start] = 1.0
    graph.adjacency_matrix = matrix
    # Influence: 1 at the token, 1/4 at each feature, 2 in all; 0.7 * 2 needs the token and two features.
    assert int(prune_graph(graph, 0.7, 1.0, "paper").node_mask[:4].sum()) == 2
    assert int(prune_graph(graph, 0.7, 1.0).node_mask[:4].sum()) == 4


def test_graph_without_edges_keeps_tokens_and_targets() -> None:
    graph = random_graph()
    graph.adjacency_matrix = torch.zeros(graph.n_nodes, graph.n_nodes)
    result = prune_graph(graph)
    assert int(result.node_mask.sum()) == graph.n_pos + len(graph.targets)
    assert not result.kept_edges.any()


@pytest.mark.parametrize(("node", "edge"), [(1.2, 0.5), (-0.1, 0.5), (0.5, 2.0), (float("nan"), 0.5)])
def test_thresholds_outside_are_refused(node: float, edge: float) -> None:
    with pytest.raises(InputError, match=r"between 0 and 1|finite number"):
        prune_graph(random_graph(), node, edge)
    with pytest.raises(InputError, match="policy"):
        prune_graph(random_graph(), policy="other")  # type: ignore[arg-type]
