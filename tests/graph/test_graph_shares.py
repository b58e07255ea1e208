"""The percentage of an edge: over the whole row, of groups by sums, pruned or not; against a dense statement of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph import prune_graph
from circuit_tracer.graph.influence import row_mass
from circuit_tracer.graph.shares import group_shares, input_shares
from tests.support.graph_cases import random_graph


def dense_group_shares(shown: Tensor, whole: Tensor, groups: list[list[int]]) -> Tensor:
    expected = torch.zeros(len(groups), len(groups), dtype=torch.float64)
    for row, mine in enumerate(groups):
        mass = sum(float(whole[t].abs().sum()) for t in mine) - float(shown[mine][:, mine].abs().sum())
        for column, others in enumerate(groups):
            if row != column and mass > 0:
                expected[row, column] = shown[mine][:, others].sum() / mass
    return expected


def test_an_edge_is_a_share_of_the_whole_row() -> None:
    graph = random_graph()
    dense = graph.adjacency_matrix
    expected = dense / dense.abs().sum(1, keepdim=True).clamp(min=1e-30)
    shares = input_shares(graph.edges)
    torch.testing.assert_close(shares, expected[graph.edges.target, graph.edges.source])
    pruned = prune_graph(graph, 0.6, 0.7)
    kept = input_shares(pruned.pruned_edges, row_mass(graph.edges))
    torch.testing.assert_close(kept, shares[pruned.kept_edges])


@pytest.mark.parametrize("threshold", [0.9, 1.0])
def test_shares_of_groups_are_sums_over_members_without_what_is_inside(threshold: float) -> None:
    graph = random_graph(density=0.8)
    groups = [[0, 1, 2, 3], [13], [6, 9, 11], list(range(graph.n_nodes - 3, graph.n_nodes))]
    shown = prune_graph(graph, threshold, threshold).pruned_edges
    expected = dense_group_shares(shown.to_dense(), graph.adjacency_matrix, groups)
    torch.testing.assert_close(group_shares(shown, groups, row_mass(graph.edges)), expected)
    assert int((expected != 0).sum()) >= 3


def test_groups_that_overlap_are_refused() -> None:
    with pytest.raises(InputError, match="group 1 shares a node"):
        group_shares(random_graph().edges, [[0, 1], [1, 2]])
