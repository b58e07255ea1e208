from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph, Path, node_influence, strongest_paths
from tests.support.graph_cases import graphs, random_graph


def all_paths(graph: Graph, target: int, ends: set[int]) -> list[Path]:
    """Every path, by walking everywhere."""
    matrix = graph.adjacency_matrix
    shares = matrix / matrix.abs().sum(1, keepdim=True).clamp(min=1e-10)
    found = []

    def walk(nodes: tuple[int, ...], weight: float) -> None:
        if nodes[-1] in ends:
            if len(nodes) > 1:
                found.append(Path(nodes[::-1], weight))
            return
        for source in torch.where(shares[nodes[-1]] != 0)[0].tolist():
            walk((*nodes, source), weight * float(shares[nodes[-1], source]))

    walk((target,), 1.0)
    return sorted(found, key=lambda path: -abs(path.weight))


@given(graphs(), st.integers(1, 20), st.booleans(), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_k_best_equals_listing_all(graph: Graph, k: int, from_tokens: bool, pick: int) -> None:
    layout = graph.nodes.layout
    target = layout.target_start
    source = None if from_tokens else pick % layout.target_start
    ends = set(range(layout.token_start, layout.target_start)) if source is None else {source}
    expected = all_paths(graph, target, ends)[:k]
    found = strongest_paths(graph, target, source, k)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert abs(mine.weight) == pytest.approx(abs(theirs.weight), rel=1e-9)
    if len({round(abs(p.weight), 12) for p in expected}) == len(expected):
        assert [p.nodes for p in found] == [p.nodes for p in expected]
        assert [p.weight > 0 for p in found] == [p.weight > 0 for p in expected]


def test_all_paths_together_are_the_influence() -> None:
    graph = random_graph(seed=2, n_layers=2, n_selected=6, n_targets=1)
    layout = graph.nodes.layout
    paths = strongest_paths(graph, layout.target_start, k=100_000)
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights)
    share = influence[layout.tokens].sum() / graph.target_weights.sum()
    assert sum(abs(path.weight) for path in paths) == pytest.approx(float(share))


def test_bad_ends_are_refused() -> None:
    graph = random_graph()
    with pytest.raises(InputError, match="target node is 999"):
        strongest_paths(graph, 999)
    with pytest.raises(InputError, match="at least one"):
        strongest_paths(graph, 0, k=0)
