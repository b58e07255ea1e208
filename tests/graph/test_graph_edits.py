"""What is written into a graph's matrix counts, however it is written; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.graph import Edges, Graph, compute_graph_scores, prune_graph
from tests.support.graph_cases import random_graph, same_edges


def by_index(matrix: Tensor, errors: slice) -> None:
    matrix[:, errors] = 0


def by_mask(matrix: Tensor, errors: slice) -> None:
    mask = torch.zeros_like(matrix, dtype=torch.bool)
    mask[:, errors] = True
    matrix.masked_fill_(mask, 0)


def by_view(matrix: Tensor, errors: slice) -> None:
    matrix.T[errors].zero_()


def by_numpy(matrix: Tensor, errors: slice) -> None:
    matrix.numpy()[:, errors] = 0


def by_data(matrix: Tensor, errors: slice) -> None:
    matrix.data[:, errors] = 0


def by_detached(matrix: Tensor, errors: slice) -> None:
    matrix.detach()[:, errors].mul_(0)


def by_product(matrix: Tensor, errors: slice) -> None:
    keep = torch.ones(len(matrix), dtype=matrix.dtype)
    keep[errors] = 0
    matrix *= keep


def by_inference(matrix: Tensor, errors: slice) -> None:
    with torch.no_grad():
        matrix[:, errors] *= 0


@pytest.mark.parametrize(
    "write",
    [by_index, by_mask, by_view, by_numpy, by_data, by_detached, by_product, by_inference],
    ids=lambda f: f.__name__,
)
def test_writing_into_the_matrix_changes_the_graph(write: Callable[[Tensor, slice], None]) -> None:
    graph = random_graph()
    layout, before = graph.nodes.layout, compute_graph_scores(graph)
    assert max(before) < 1
    write(graph.adjacency_matrix, layout.errors)
    assert compute_graph_scores(graph) == pytest.approx((1.0, 1.0))
    assert not prune_graph(graph).edge_mask[:, layout.errors].any()
    assert graph.edited
    assert graph.residual is not None
    assert graph.residual > 1e-3, "the rows no longer add up, and the graph says so"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_that_was_handed_in_is_the_graphs(dtype: torch.dtype) -> None:
    graph = random_graph(dtype=dtype)
    matrix = graph.adjacency_matrix.clone()
    graph.adjacency_matrix = matrix
    assert graph.adjacency_matrix is matrix
    matrix[:, graph.nodes.layout.errors] = 0
    assert compute_graph_scores(graph) == pytest.approx((1.0, 1.0))
    graph.adjacency_matrix *= 2
    assert same_edges(graph.edges, Edges.from_dense(matrix))


def test_scores_follow_edits_one_after_the_other() -> None:
    graph = random_graph()
    matrix, layout = graph.adjacency_matrix, graph.nodes.layout
    seen = {compute_graph_scores(graph)}
    for error in range(layout.error_start, layout.error_start + 4):
        matrix[layout.targets, error] += 10.0
        seen.add(compute_graph_scores(graph))
    assert len(seen) == 5


def test_looking_is_not_editing(tmp_path: Path) -> None:
    graph = random_graph()
    edges = graph.edges
    assert graph.adjacency_matrix is graph.adjacency_matrix
    graph.adjacency_matrix.add_(0)
    assert graph.edges is edges
    assert not graph.edited
    assert Graph.load(graph.save(tmp_path / "g")).balance is not None


def test_files_of_an_edited_graph_hold_its_edges_and_no_balance(tmp_path: Path) -> None:
    graph = random_graph(dtype=torch.float32)
    graph.adjacency_matrix[graph.nodes.layout.targets, 0] = 3.0
    loaded = Graph.load(graph.save(tmp_path / "g.safetensors"))
    assert same_edges(loaded.edges, graph.edges)
    assert loaded.balance is None
    assert graph.balance is not None
    graph.to_pt(tmp_path / "g.pt")
    assert same_edges(Graph.from_pt(tmp_path / "g.pt").edges, graph.edges)


def test_a_copy_sees_what_is_written_too() -> None:
    graph = random_graph()
    twin = copy(graph)
    graph.adjacency_matrix[:, graph.nodes.layout.errors] = 0
    assert compute_graph_scores(twin) == compute_graph_scores(graph) == pytest.approx((1.0, 1.0))


def test_numbers_that_no_graph_holds_are_refused_each_time() -> None:
    graph = random_graph()
    graph.adjacency_matrix[-1, 0] = float("nan")
    for _ in range(2):
        with pytest.raises(NumericalError, match="nan"):
            compute_graph_scores(graph)
    graph.adjacency_matrix = torch.zeros(graph.n_nodes, graph.n_nodes)
    assert len(graph.edges) == 0


def test_other_parts_that_are_written_in_count_too() -> None:
    graph = random_graph()
    before = compute_graph_scores(graph)
    graph.logit_probabilities[:-1] = 0
    assert compute_graph_scores(graph) != before
    graph.activation_values.fill_(7.0)
    assert graph.edges is not None
    assert set(graph.nodes.activation[graph.nodes.layout.features].tolist()) == {7.0}
    graph.cfg.model_name = "another"
    assert graph.cfg.model_name == "another"
    graph.cfg.n_layers = 7
    with pytest.raises(InputError, match=r"expected \d+ = .*7x4 errors"):
        compute_graph_scores(graph)


def test_what_is_no_plain_matrix_is_refused() -> None:
    graph = random_graph()
    matrix = graph.adjacency_matrix
    for given in (matrix.to_sparse(), matrix.to("meta"), matrix.to(torch.complex64)):
        with pytest.raises(InputError, match="expected dense numbers"):
            graph.adjacency_matrix = given
