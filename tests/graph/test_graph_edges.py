from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.graph import Edges, Graph, TargetTable
from tests.support.graph_cases import graphs, random_graph, same_edges


@given(graphs())
@settings(max_examples=30, deadline=None)
def test_dense_and_sparse_hold_the_same(graph: Graph) -> None:
    dense = graph.adjacency_matrix
    assert same_edges(Edges.from_dense(dense), graph.edges)
    torch.testing.assert_close(graph.edges.row_sum(graph.edges.weight), dense.sum(1))
    graph.edges.validate()


@given(graphs(), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_coo_in_any_order_gives_the_same(graph: Graph, seed: int) -> None:
    edges = graph.edges
    order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(seed))
    shuffled = Edges.from_coo(edges.target[order], edges.source[order], edges.weight[order], edges.n_nodes)
    assert same_edges(shuffled, edges)


def test_coo_adds_duplicates_and_drops_zeros() -> None:
    edges = Edges.from_coo(
        torch.tensor([2, 2, 1, 2]), torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 2.0, 0.0, 5.0]), 3
    )
    assert list(edges) == [(2, 0, 3.0), (2, 1, 5.0)]


@given(graphs(), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_select_is_masking(graph: Graph, seed: int) -> None:
    mask = torch.rand(len(graph.edges), generator=torch.Generator().manual_seed(seed)) < 0.5
    dense_mask = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=torch.bool)
    dense_mask[graph.edges.target[mask], graph.edges.source[mask]] = True
    assert torch.equal(graph.edges.select(mask).to_dense(), graph.adjacency_matrix * dense_mask)


def test_bad_edges_are_named() -> None:
    with pytest.raises(InputError, match=r"\(N, N\)"):
        Edges.from_dense(torch.zeros(2, 3))
    with pytest.raises(InputError, match="3 nodes"):
        Edges.from_coo(torch.tensor([3]), torch.tensor([0]), torch.tensor([1.0]), 3)
    with pytest.raises(InputError, match="ascend"):
        Edges(torch.tensor([0, 2]), torch.tensor([0, 0]), torch.tensor([1.0, 1.0])).validate()
    with pytest.raises(NumericalError, match="nan"):
        Edges(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([torch.nan])).validate()


def test_graph_rejects_what_does_not_fit() -> None:
    good = random_graph()
    parts = {
        "input_string": good.input_string,
        "input_tokens": good.input_tokens,
        "active_features": good.active_features,
        "adjacency_matrix": good.edges,
        "cfg": good.cfg,
        "selected_features": good.selected_features,
        "activation_values": good.activation_values,
        "logit_targets": good.logit_targets,
        "logit_probabilities": good.logit_probabilities,
    }
    assert same_edges(Graph(**parts).edges, good.edges)
    wrong = {
        "expected 33": {"adjacency_matrix": torch.zeros(36, 36)},
        "ascend": {"selected_features": good.selected_features.flip(0)},
        "index 20 active": {"selected_features": good.selected_features + 20},
        "sorted": {"active_features": good.active_features.flip(0)},
        "positions": {"active_features": good.active_features + torch.tensor([0, 9, 0])},
        "one value for each": {"activation_values": good.activation_values[1:]},
        "one weight": {"logit_probabilities": good.logit_probabilities[1:]},
        "n_layers": {"cfg": {"d_model": 3}},
        "1 token_strings": {"token_strings": ["a"]},
        r"shape \(0,\)": {"input_tokens": torch.zeros(0, dtype=torch.int64)},
    }
    for message, change in wrong.items():
        with pytest.raises(InputError, match=message):
            Graph(**{**parts, **change})
    with pytest.raises(InputError, match="kind"):
        TargetTable(["a"], *(torch.zeros(1) for _ in range(4)), kind=["other"])  # type: ignore[list-item]


def test_graph_shows_what_it_is() -> None:
    graph = random_graph()
    text = repr(graph)
    assert "14 of 20 active features" in text
    assert "4 tokens" in text
    assert graph.residual is not None
    assert graph.residual < 1e-12
    assert graph.to("cpu") is graph
    with pytest.deprecated_call():
        assert graph.logit_tokens.tolist() == [0, 7, 14]


def test_nodes_are_in_circuit_tracers_order() -> None:
    graph = random_graph(n_layers=2, n_pos=3)
    nodes, layout = graph.nodes, graph.nodes.layout
    chosen = graph.active_features[graph.selected_features]
    assert torch.equal(torch.stack([nodes.layer, nodes.position, nodes.feature], 1)[layout.features], chosen)
    assert nodes.layer[layout.errors].tolist() == [0, 0, 0, 1, 1, 1]
    assert nodes.position[layout.errors].tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(nodes.feature[layout.tokens], graph.input_tokens)
    assert nodes.feature[layout.targets].tolist() == [0, 7, 14]


def test_assigning_a_matrix_changes_the_graph() -> None:
    graph = random_graph()
    doubled = graph.adjacency_matrix * 2
    graph.adjacency_matrix = doubled
    assert torch.equal(graph.adjacency_matrix, doubled)
    with pytest.raises(InputError, match="nodes"):
        graph.adjacency_matrix = torch.zeros(3, 3)
