from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.graph import (
    Edges,
    Graph,
    compute_edge_influence,
    compute_graph_scores,
    compute_influence,
    compute_node_influence,
    compute_partial_influences,
    edge_influence,
    graph_scores,
    node_influence,
    normalize_matrix,
    path_lengths,
)
from circuit_tracer.graph.order import layered_blocks, topological_blocks
from circuit_tracer.graph.scores import fold_into_errors
from tests.support.graph_cases import dense_influence, graphs, random_graph


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_one_pass_equals_the_inverse(graph: Graph) -> None:
    weights, matrix = graph.target_weights, graph.adjacency_matrix
    influence = node_influence(graph.edges, graph.blocks, weights)
    torch.testing.assert_close(influence, dense_influence(matrix, weights), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compute_node_influence(matrix, weights), influence, rtol=1e-12, atol=1e-12)
    scores = edge_influence(graph.edges, influence, weights)
    dense = compute_edge_influence(matrix, weights)
    torch.testing.assert_close(scores, dense[graph.edges.target, graph.edges.source], rtol=1e-12, atol=1e-12)


@given(graphs())
@settings(max_examples=30, deadline=None)
def test_any_order_gives_the_same(graph: Graph) -> None:
    assert layered_blocks(graph.edges, graph.nodes) is not None
    weights = graph.target_weights
    layered = node_influence(graph.edges, graph.blocks, weights)
    general = node_influence(graph.edges, topological_blocks(graph.edges), weights)
    torch.testing.assert_close(general, layered, rtol=1e-12, atol=1e-14)


def test_pieces_of_a_layer_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(seed=4)
    whole = node_influence(graph.edges, graph.blocks, graph.target_weights)
    monkeypatch.setattr("circuit_tracer.graph.order.EDGES_A_PIECE", 3)
    pieces = layered_blocks(graph.edges, graph.nodes)
    assert pieces is not None
    assert len(pieces) > len(graph.blocks)
    torch.testing.assert_close(node_influence(graph.edges, pieces, graph.target_weights), whole)


def test_edges_within_a_layer_are_followed_too() -> None:
    graph = random_graph(seed=4)
    matrix = graph.adjacency_matrix
    last = int((graph.nodes.layer == 0)[:14].sum()) - 1
    matrix[last, 0] = 5.0
    graph.adjacency_matrix = matrix
    assert layered_blocks(graph.edges, graph.nodes) is None
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights)
    torch.testing.assert_close(influence, dense_influence(matrix, graph.target_weights))


@given(graphs())
@settings(max_examples=30, deadline=None)
def test_closed_forms_of_the_scores(graph: Graph) -> None:
    layout, weights = graph.nodes.layout, graph.target_weights
    influence = node_influence(graph.edges, graph.blocks, weights)
    total = weights.sum()
    from_features, from_errors, from_tokens = (
        influence[part].sum() for part in (layout.features, layout.errors, layout.tokens)
    )
    torch.testing.assert_close(from_tokens + from_errors, total)
    scores = graph_scores(graph)
    assert compute_graph_scores(graph) == (scores.replacement, scores.completeness)
    assert scores.replacement == pytest.approx(float(from_tokens / total))
    everything = from_features + from_tokens + from_errors + total
    assert scores.completeness == pytest.approx(float(1 - from_errors / everything))
    assert scores.strict_completeness == pytest.approx(float(1 - from_errors / (from_features + total)))
    assert scores.strict_completeness <= scores.completeness + 1e-12


def test_mean_length_over_all_ends_follows_from_the_feature_influence() -> None:
    graph = random_graph(seed=3, n_layers=5)
    layout = graph.nodes.layout
    # Without error edges all paths end in tokens, where the mean length is 1 + I_feat / W.
    matrix = graph.adjacency_matrix
    matrix[:, layout.errors] = 0
    graph.adjacency_matrix = matrix
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights)
    lengths = path_lengths(graph)
    assert float(lengths.share.sum()) == pytest.approx(1)
    assert lengths.mean == pytest.approx(float(1 + influence[layout.features].sum() / graph.target_weights.sum()))
    assert float(lengths.cumulative[-1]) == pytest.approx(1)


def test_signed_targets_count_by_their_size() -> None:
    graph = random_graph()
    before = graph_scores(graph)
    graph.targets.weight[1] *= -1
    assert graph_scores(graph) == before


@given(graphs(), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_folding_moves_features_into_their_errors(graph: Graph, seed: int) -> None:
    mask = torch.rand(graph.n_nodes, generator=torch.Generator().manual_seed(seed)) < 0.5
    layout, nodes = graph.nodes.layout, graph.nodes
    expected = graph.adjacency_matrix
    for i in range(layout.n_features):
        if not mask[i]:
            expected[:, layout.error_start + nodes.layer[i] * layout.n_pos + nodes.position[i]] += expected[:, i]
            expected[:, i] = 0
            expected[i] = 0
    torch.testing.assert_close(fold_into_errors(graph, mask).to_dense(), expected)
    assert graph_scores(graph, torch.ones_like(mask)) == graph_scores(graph)
    nothing = graph_scores(graph, torch.zeros_like(mask))
    assert nothing.completeness <= 1


def test_unselected_mass_lowers_the_scores() -> None:
    graph = random_graph()
    with_mass, without = graph_scores(graph, count_unselected=True), graph_scores(graph)
    assert with_mass.replacement < without.replacement
    assert with_mass.strict_completeness < without.strict_completeness
    # An error node that carries the mass must give the same numbers.
    balance = graph.balance
    assert balance is not None
    wide = random_graph()
    matrix = wide.adjacency_matrix
    matrix[:, wide.nodes.layout.error_start] = 0
    wide.adjacency_matrix = matrix
    hidden = graph_scores(wide, count_unselected=True)
    assert wide.balance is not None
    matrix[:, wide.nodes.layout.error_start] = wide.balance.unselected_mass
    wide.adjacency_matrix = matrix
    explicit = graph_scores(wide)
    assert explicit.replacement == pytest.approx(hidden.replacement)
    assert explicit.completeness == pytest.approx(hidden.completeness)
    assert explicit.strict_completeness == pytest.approx(hidden.strict_completeness)
    graph.balance = None
    with pytest.raises(InputError, match="balance"):
        graph_scores(graph, count_unselected=True)


def test_partial_influences_need_only_the_known_rows() -> None:
    graph = random_graph()
    matrix, n_targets = graph.adjacency_matrix, len(graph.targets)
    rows = torch.arange(graph.n_nodes).flip(0)
    partial = compute_partial_influences(matrix[rows], graph.logit_probabilities, rows)
    full = compute_node_influence(matrix, graph.target_weights)
    torch.testing.assert_close(partial, full, rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match="rows"):
        compute_partial_influences(matrix, graph.logit_probabilities, rows[:n_targets])


def test_cycles_are_refused() -> None:
    cycle = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(InputError, match="cycle"):
        topological_blocks(Edges.from_dense(cycle))
    with pytest.raises(NumericalError, match="10 steps"):
        compute_influence(cycle, torch.tensor([0.0, 0.0, 1.0]), max_iter=10)


def test_hand_made_chain() -> None:
    # target 3 <- 2 (share 3/4), 0 (1/4); 2 <- 1; 1 <- 0
    matrix = torch.zeros(4, 4)
    matrix[3, 2], matrix[3, 0], matrix[2, 1], matrix[1, 0] = 3.0, -1.0, 0.5, 2.0
    weights = torch.tensor([0.0, 0.0, 0.0, 0.8])
    expected = torch.tensor([0.8, 0.6, 0.6, 0.0])
    torch.testing.assert_close(compute_node_influence(matrix, weights), expected)
    edges = Edges.from_dense(matrix)
    torch.testing.assert_close(node_influence(edges, topological_blocks(edges), weights).float(), expected)
    assert normalize_matrix(matrix).sum(1).tolist() == [0, 1, 1, 1]
