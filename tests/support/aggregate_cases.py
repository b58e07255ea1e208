"""Small graphs whose numbers can be worked out by hand, and a slow statement of what is aggregated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from circuit_tracer.graph import Graph, LogitTarget, NodeKind, prune_graph
from tests.support.graph_cases import dense_influence

A, B, C = (0, 7), (1, 3), (0, 9)
LABELS = {"a": "one", "b": "one", "c": "one", "d": "two", "e": "two", "f": "two"}


def hand_graph(features: Sequence[tuple[int, int, int, float]], edges: Mapping[tuple[str, str], float]) -> Graph:
    """Of two layers, two tokens and one target of weight 1. features: (layer, position, index, activation), sorted. edges: by
    names of source and target: "A" is the first feature, "B" the second ..., "0" and "1" tokens, "out" the target.
    """
    n_features = len(features)
    names = [chr(ord("A") + number) for number in range(n_features)]
    place = {name: number for number, name in enumerate(names)}
    place |= {"0": n_features + 4, "1": n_features + 5, "out": n_features + 6}
    matrix = torch.zeros(n_features + 7, n_features + 7, dtype=torch.float64)
    for (source, target), weight in edges.items():
        matrix[place[target], place[source]] = weight
    rows = torch.tensor([each[:3] for each in features], dtype=torch.int64).reshape(-1, 3)
    return Graph(
        input_string="two words",
        input_tokens=torch.tensor([3, 4]),
        active_features=rows,
        adjacency_matrix=matrix,
        cfg={"n_layers": 2, "d_vocab": 90},
        selected_features=torch.arange(n_features),
        activation_values=torch.tensor([each[3] for each in features], dtype=torch.float64),
        logit_targets=[LogitTarget("x", 5)],
        logit_probabilities=torch.tensor([1.0], dtype=torch.float64),
        scan="hand/made",
    )


def six_graphs() -> dict[str, Graph]:
    """a, b: A feeds B, and works against the output itself. c: A at both positions. d: C alone. e: C against B. f: no
    feature.
    """
    a_feeds_b = {("0", "A"): 2.0, ("A", "B"): 3.0, ("1", "B"): 1.0, ("A", "out"): -2.0}
    return {
        "a": hand_graph([(0, 0, 7, 2.0), (1, 1, 3, 4.0)], {**a_feeds_b, ("B", "out"): 2.0}),
        "b": hand_graph([(0, 0, 7, 2.0), (1, 1, 3, 4.0)], {**a_feeds_b, ("B", "out"): 6.0}),
        "c": hand_graph(
            [(0, 0, 7, 2.0), (0, 1, 7, 1.0)], {("0", "A"): 1, ("1", "B"): 1, ("A", "out"): 1, ("B", "out"): 3}
        ),
        "d": hand_graph([(0, 0, 9, 1.0)], {("0", "A"): 1.0, ("A", "out"): 5.0}),
        "e": hand_graph(
            [(0, 0, 9, 1.0), (1, 1, 3, 2.0)], {("0", "A"): 1, ("1", "B"): 1, ("A", "out"): -1, ("B", "out"): 1}
        ),
        "f": hand_graph([], {("1", "out"): 1.0}),
    }


Numbers = dict[str, dict[int, list[float]]]  # item -> graph -> influence, attribution, 1 if kept


def dense_effects(graph: Graph, weights: torch.Tensor) -> torch.Tensor:
    """(N,) w (P + P^2 + ...), P the edges over the activation of the node they flow into (1 at targets), literally."""
    nodes, matrix = graph.nodes, graph.adjacency_matrix.double()
    own = torch.where(nodes.kind == NodeKind.TARGET, 1.0, nodes.activation.double())
    share = torch.where(own[:, None] != 0, matrix / own[:, None], 0.0)
    flow, total = weights @ share, torch.zeros(len(own), dtype=torch.float64)
    for _ in range(len(own)):
        total, flow = total + flow, flow @ share
    # times a_s is in P already: A[t,s] holds it
    return total


def slow_numbers(graphs: Sequence[Graph], thresholds: tuple[float, float], roles: str) -> tuple[Numbers, Numbers]:
    """Features and edges by name, one graph, node and edge at a time, on dense matrices."""
    features: Numbers = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    edges: Numbers = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for number, graph in enumerate(graphs):
        matrix = graph.adjacency_matrix.double()
        weights = torch.zeros(graph.n_nodes, dtype=torch.float64)
        weights[graph.nodes.layout.targets] = graph.targets.weight.double()
        total = float(weights.abs().sum())
        influence = dense_influence(matrix, weights.abs())
        effect = dense_effects(graph, weights)
        own = torch.where(graph.nodes.kind == NodeKind.TARGET, 1.0, graph.nodes.activation.double())
        gradient = torch.where(own != 0, effect / own, 0) + weights
        pruned = prune_graph(graph, *thresholds)
        names = [_name(graph, node, roles) for node in range(graph.n_nodes)]
        for node in torch.where(pruned.node_mask)[0].tolist():
            if graph.nodes.kind[node] == NodeKind.FEATURE:
                found = features[names[node]][number]
                found[0] += float(influence[node]) / total
                found[1] += float(effect[node]) / total
        for target, source in pruned.edge_mask.nonzero().tolist():
            if names[source] and names[target]:
                found = edges[f"{names[source]} -> {names[target]}"][number]
                share = float(matrix[target, source].abs() / matrix[target].abs().sum())
                found[0] += share * float(influence[target] + weights[target].abs()) / total
                found[1] += float(matrix[target, source] * gradient[target]) / total
    return features, edges


def _name(graph: Graph, node: int, roles: str) -> str:
    nodes = graph.nodes
    kind, layer, index, position = (
        int(each[node]) for each in (nodes.kind, nodes.layer, nodes.feature, nodes.position)
    )
    role = f"@{position - graph.n_pos}" if roles == "end" else ""
    return {0: f"{layer}/{index}{role}", 1: "", 2: f"input{role}", 3: "output"}[kind]


def slow_auc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Over all pairs."""
    return sum(float(x > y) + 0.5 * float(x == y) for x in inside for y in outside) / len(inside) / len(outside)
