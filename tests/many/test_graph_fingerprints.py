"""Fingerprints: every number by hand on a graph of six nodes, and against networkx; what may not change them."""

from __future__ import annotations

import math
from pathlib import Path

import networkx as nx
import pytest
import torch

import circuit_tracer.many.fingerprints as package
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Edges, Graph, LogitTarget, Reconstruction, prune_graph
from circuit_tracer.many.fingerprints import NAMES, fingerprint, matrix, names
from circuit_tracer.many.fingerprints.names import OF_RECONSTRUCTION
from circuit_tracer.many.fingerprints.topology import topology
from tests.support.graph_cases import random_graph

# nodes: 0 feature (layer 0, position 1) | 1, 2 errors at 0, 1 | 3, 4 tokens | 5 target
BY_HAND = [(0, 3, 1.0), (0, 4, -3.0), (5, 0, 2.0), (5, 2, 1.0), (5, 4, 1.0)]
SIX = {
    "logits.top": 0.5, "logits.margin": 0.5, "logits.entropy": math.log(2), "logits.covered": 0.5, "logits.targets": 1,
    "global.tokens": 2, "global.active": 2, "global.features": 1, "global.edges": 5, "global.kept_features": 1,
    "global.kept_errors": 1, "global.kept_tokens": 2, "global.kept_edges": 5,
    # influence: feature 1/2, error 1/4, tokens 1/8 and 1/4 + 3/8
    "global.replacement": 0.75, "global.completeness": 2.25 / 2.5, "global.strict_completeness": 1.25 / 1.5,
    "node.activation_mean": 2.5, "node.activation_std": 0, "node.activation_max": 2.5,
    "node.influence_mean": 0.5, "node.influence_std": 0, "node.influence_max": 0.5, "node.effective_features": 1,
    "node.effective_tokens": math.exp(math.log(6) / 6 + 5 / 6 * math.log(6 / 5)), "node.token_max": 0.625,
    "node.error_max": 0.25, "node.last_position": 1, "node.weight_mean": 1.6, "node.weight_std": 0.8,
    "node.weight_max": 3, "node.negative": 3 / 8, "node.edge_layers": 6 / 5, "node.edge_positions": 1 / 5,
    "node.kept_layer_0": 1, "node.influence_layer_0": 0.5, "node.error_layer_0": 0.25,
    "topology.nodes": 5, "topology.density": 1 / 4, "topology.degree_mean": 1, "topology.in_degree_std": math.sqrt(1.6),
    "topology.in_degree_max": 3, "topology.out_degree_std": math.sqrt(0.4), "topology.out_degree_max": 2,
    "topology.clustering": (1 + 1 / 3 + 1 / 3) / 5, "topology.transitivity": 3 / 7, "topology.components": 1,
    "topology.path_reached": 1, "topology.path_shortest_mean": 1.5, "topology.path_shortest_max": 2,
    "topology.path_longest": 2, "topology.path_weighted": 1.25 / 0.75, "topology.closeness": 0.75,
    "topology.betweenness_mean": 0.1, "topology.betweenness_std": 0.2, "topology.betweenness_max": 0.5,
}  # fmt: skip


def graph_of(triples: list[tuple[int, int, float]], reconstruction: Reconstruction | None = None) -> Graph:
    """One layer, two tokens, one of two active features a node, one target of weight 1/2."""
    target, source, weight = zip(*triples, strict=True) if triples else ((), (), ())
    edges = Edges.from_coo(
        torch.tensor(target, dtype=torch.int64),
        torch.tensor(source, dtype=torch.int64),
        torch.tensor(weight, dtype=torch.float64),
        6,
    )
    return Graph(
        input_string="a b",
        input_tokens=torch.tensor([3, 4]),
        active_features=torch.tensor([[0, 1, 2], [0, 1, 7]]),
        adjacency_matrix=edges,
        cfg={"n_layers": 1, "d_vocab": 9},
        selected_features=torch.tensor([1]),
        activation_values=torch.tensor([0.5, 2.5]),
        logit_targets=[LogitTarget("x", 5)],
        logit_probabilities=torch.tensor([0.5]),
        reconstruction=reconstruction,
    )


@pytest.fixture(scope="module")
def some() -> Graph:
    return random_graph(3, n_layers=4, n_pos=5, n_active=40, n_selected=30, density=0.4)


def test_every_number_of_six_nodes_is_what_it_is_by_hand() -> None:
    found = fingerprint(graph_of(BY_HAND), node_threshold=1.0, edge_threshold=1.0)
    assert found == pytest.approx(SIX, abs=1e-6)


def test_a_graph_without_edges_has_finite_numbers_and_nothing_in_it() -> None:
    found = fingerprint(graph_of([], Reconstruction(torch.tensor([0.25]), torch.tensor([1.0]))))
    assert all(math.isfinite(value) for value in found.values())
    assert {name: value for name, value in found.items() if name.startswith("topology.")} == {
        name: 0.0 for name in NAMES if name.startswith("topology.")
    }
    assert found["global.nmse_mean"] == found["global.nmse_max"] == 0.25


def test_the_names_are_those_of_the_table_in_its_order(some: Graph) -> None:
    assert list(fingerprint(some)) == names(some.n_layers)
    assert list(fingerprint(graph_of(BY_HAND))) == names(1, reconstruction=False)
    assert set(names(1)) - set(names(1, reconstruction=False)) == set(OF_RECONSTRUCTION)


def test_the_readme_says_what_every_name_is() -> None:
    readme = (Path(package.__file__).parents[1] / "README.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("seed", range(3))
def test_topology_is_networkxs(seed: int) -> None:
    graph = random_graph(seed, n_layers=4, n_pos=5, n_active=40, n_selected=30, density=0.25)
    layout, edges = graph.nodes.layout, prune_graph(graph, 0.9, 0.9).pruned_edges
    tokens = range(layout.token_start, layout.target_start)
    targets = range(layout.target_start, layout.n_nodes)
    found = topology(edges, tokens, targets)

    theirs = nx.DiGraph((source, target) for target, source, _ in edges)
    both = theirs.to_undirected()
    sources, sinks = ([node for node in some if node in theirs] for some in (tokens, targets))
    lengths = dict(nx.all_pairs_shortest_path_length(theirs))
    reached = [lengths[s][t] for s in sources for t in sinks if t in lengths[s]]
    pairs = len(sources) * len(sinks)
    between = torch.tensor(list(nx.betweenness_centrality_subset(theirs, sources, sinks).values())) / pairs
    degrees = {
        name: torch.tensor([float(count) for _, count in counts])
        for name, counts in (("in", theirs.in_degree), ("out", theirs.out_degree))
    }
    assert found == pytest.approx(
        {
            "topology.nodes": len(theirs),
            "topology.density": nx.density(theirs),
            "topology.degree_mean": theirs.number_of_edges() / len(theirs),
            **{f"topology.{way}_degree_std": float(count.std(correction=0)) for way, count in degrees.items()},
            **{f"topology.{way}_degree_max": float(count.max()) for way, count in degrees.items()},
            "topology.clustering": nx.average_clustering(both),
            "topology.transitivity": nx.transitivity(both),
            "topology.components": nx.number_weakly_connected_components(theirs),
            "topology.path_reached": len(reached) / pairs,
            "topology.path_shortest_mean": sum(reached) / len(reached),
            "topology.path_shortest_max": max(reached),
            "topology.path_longest": nx.dag_longest_path_length(theirs),
            "topology.closeness": sum(nx.harmonic_centrality(theirs, sinks, sources=sources).values()) / pairs,
            "topology.betweenness_mean": float(between.mean()),
            "topology.betweenness_std": float(between.std(correction=0)),
            "topology.betweenness_max": float(between.max()),
        },
        rel=1e-6,
    )


def test_the_order_of_nodes_and_the_units_of_targets_change_nothing(some: Graph) -> None:
    """Features of a layer and position change places, and every target's row is in other units."""
    layout = some.nodes.layout
    place, chance = torch.arange(some.n_nodes), torch.Generator().manual_seed(0)
    rows = some.active_features[some.selected_features]
    key = rows[:, 0] * some.n_pos + rows[:, 1]
    for one in key.unique():
        here = torch.nonzero(key == one).flatten()
        place[here] = here[torch.randperm(len(here), generator=chance)]
    assert not torch.equal(place, torch.arange(some.n_nodes))
    scale = torch.ones(some.n_nodes, dtype=torch.float64)
    scale[layout.targets] = 3.0
    inverse = torch.argsort(place)
    activation = some.activation_values.clone()
    activation[some.selected_features] = some.activation_values[some.selected_features][inverse[: layout.n_features]]
    moved = Graph(
        input_string=some.input_string,
        input_tokens=some.input_tokens,
        active_features=some.active_features,
        adjacency_matrix=Edges.from_coo(
            place[some.edges.target],
            place[some.edges.source],
            some.edges.weight,
            some.n_nodes,
        ),
        cfg=some.cfg,
        selected_features=some.selected_features,
        activation_values=activation,
        logit_targets=some.logit_targets,
        logit_probabilities=some.logit_probabilities,
        targets=some.targets,
        reconstruction=some.reconstruction,
    )
    assert fingerprint(moved) == pytest.approx(fingerprint(some), rel=1e-9)
    now = moved.edges
    scaled = Edges(now.row_ptr, now.source, now.weight * scale[now.target])
    moved.adjacency_matrix = scaled
    of_weights = {"node.weight_mean", "node.weight_std", "node.weight_max", "node.negative"}
    expected = {name: value for name, value in fingerprint(some).items() if name not in of_weights}
    assert {name: value for name, value in fingerprint(moved).items() if name not in of_weights} == pytest.approx(
        expected, rel=1e-9
    )


def test_a_matrix_has_a_row_a_graph_and_refuses_graphs_of_another_kind(some: Graph) -> None:
    other = random_graph(4, n_layers=4, n_pos=3)
    found = matrix([("a", some), ("b", other)])
    assert (found.ids, found.names, found.values.shape) == (["a", "b"], names(4), (2, len(names(4))))
    assert found.values[1].tolist() == list(fingerprint(other).values())
    assert found.without("node").shape == (2, sum(not name.startswith("node.") for name in names(4)))
    with pytest.raises(InputError, match=r"row 'b' and row 'a' differ in .*global.nmse_max"):
        matrix([("a", some), ("b", graph_of(BY_HAND))])
    with pytest.raises(InputError, match="no row"):
        matrix([])
