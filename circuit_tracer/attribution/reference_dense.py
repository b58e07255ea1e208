"""A graph as dense tensors, and what is done with its edges there: influence, selection, pruning, scores (README.md §6).

The second half of the reference: each definition as a few lines on matrices of nodes x nodes, for tiny models. `reference.py`
makes the edges.

Letters: L layers, P positions, N nodes, N_f active features, N_s those that are nodes, K targets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReferenceGraph:
    """A graph as dense tensors. N nodes: features (layer, position, index) | errors l * P + p | with a dictionary of attention
    outputs, errors of attention l * P + p | tokens | targets. Features of attention are numbered behind those of MLPs.

    adjacency[t, s]: what source s contributes to the value that target t reads (a pre-activation, or a demeaned logit).
    Sum rule, for every feature and target row: adjacency[t].sum() + unselected[t] + bias[t] == value[t].
    """

    adjacency: Tensor  # (N, N), rows = targets of edges, columns = sources
    bias: Tensor  # (N,)
    unselected: Tensor  # (N,) sum of the edges from active features that are no nodes
    value: Tensor  # (N,)
    active: Tensor  # (N_f, 3) layer, position, index of all active features
    activation: Tensor  # (N_f,)
    selected: Tensor  # (N_s,) indices of the features that are nodes
    weight: Tensor  # (K,) of the targets, signed
    n_layers: int
    n_pos: int
    attention: bool = False  # whether there are errors of attention
    first_attention: int = 0  # index of the first feature of attention of a layer

    @property
    def target_weights(self) -> Tensor:
        """(N,): |weight| at the targets, 0 elsewhere."""
        weights = torch.zeros_like(self.bias)
        weights[-len(self.weight) :] = self.weight.abs()
        return weights

    def is_kind(self, *kinds: Literal["feature", "error", "token", "target"]) -> Tensor:
        """Mask (N,) of the nodes of some kinds."""
        n_errors, n_targets = (1 + self.attention) * self.n_layers * self.n_pos, len(self.weight)
        counts = {"feature": len(self.selected), "error": n_errors, "token": self.n_pos, "target": n_targets}
        return torch.tensor([kind in kinds for kind, count in counts.items() for _ in range(count)])


def normalised(adjacency: Tensor) -> Tensor:
    """M (N, N): |edge| as a share of its row's mass; empty rows stay empty."""
    return adjacency.abs() / adjacency.abs().sum(1, keepdim=True).clamp_min(1e-10)


def node_influence(adjacency: Tensor, target_weights: Tensor) -> Tensor:
    """I (N,) = sum over path lengths k >= 1 of w M^k (README.md §6.1). Ends because paths only lead to lower layers."""
    shares, flow = normalised(adjacency), target_weights
    influence = torch.zeros_like(target_weights)
    while flow.any():
        flow = flow @ shares
        influence = influence + flow
    return influence


def select_features(graph: ReferenceGraph, budget: int) -> Tensor:
    """Indices, ascending, of the `budget` features that get a row (definition: attribution/selection.py).

    S(t): the features of influence >= t when only members of S(t) pass influence on. As t falls from infinity S grows from
    the empty set, and next changes when t meets the largest influence of a feature outside. The last S that fits the budget
    is filled up by influence.
    """
    n = len(graph.active)
    depth_of = 2 * graph.active[:, 0] + (graph.active[:, 2] < graph.first_attention if graph.attention else 1)
    if budget >= n:
        return torch.arange(n)
    members = torch.zeros(n, dtype=torch.bool)
    while True:
        best_outside = influence_through(graph, members)[~members].max()
        threshold = best_outside * (1 - 1e-12)  # a hair less, so that rounding cannot lose the one that sets it
        larger = torch.zeros_like(members)
        for depth in reversed(range(2 * graph.n_layers)):  # the members of higher layers decide who is one here
            larger[depth_of == depth] = (influence_through(graph, larger) >= threshold)[depth_of == depth]
        if larger.sum() > budget:
            break
        members = larger
    outside = torch.where(members, -1.0, influence_through(graph, members))
    by_position = torch.argsort(graph.active[:, 1], stable=True)  # of equals, those of lower position come first
    best_first = by_position[torch.argsort(outside[by_position], descending=True, stable=True)]
    members[best_first[: budget - int(members.sum())]] = True
    return members.nonzero().flatten()


def influence_through(graph: ReferenceGraph, members: Tensor) -> Tensor:
    """Influence (N_f,) of the features when only `members` (N_f,) pass it on."""
    adjacency = graph.adjacency.clone()
    adjacency[: len(members)][~members] = 0
    return node_influence(adjacency, graph.target_weights)[: len(members)]


def keep_features(graph: ReferenceGraph, selected: Tensor) -> ReferenceGraph:
    """The graph whose feature nodes are `selected` (N_s,). The edges of the others are summed, row by row."""
    n = len(graph.active)
    dropped = torch.ones(len(graph.adjacency), dtype=torch.bool)
    dropped[n:] = dropped[selected] = False
    kept = (~dropped).nonzero().flatten()
    return replace(
        graph,
        adjacency=graph.adjacency[kept][:, kept],
        bias=graph.bias[kept],
        unselected=graph.adjacency[kept][:, dropped].sum(1),
        value=graph.value[kept],
        selected=selected,
    )


def smallest_set(scores: Tensor, fraction: float) -> Tensor:
    """Mask of the largest scores that together hold `fraction` < 1 of the sum, and those equal to the last of them."""
    ordered = torch.sort(scores.flatten(), descending=True).values
    crossing = torch.searchsorted(ordered.cumsum(0) / ordered.sum(), fraction)
    return scores >= ordered[crossing]


def prune(
    graph: ReferenceGraph,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    policy: Literal["circuit-tracer", "paper"] = "circuit-tracer",
) -> tuple[Tensor, Tensor]:
    """Masks of the nodes (N,) and edges (N, N) that are kept (README.md §6.3).

    Tokens and targets always stay; under the policy "paper" error nodes stay too.
    """
    weights, needs_input = graph.target_weights, graph.is_kind("feature")
    permanent = graph.is_kind("token", "target") if policy == "circuit-tracer" else ~needs_input

    nodes = permanent | smallest_set(node_influence(graph.adjacency, weights), node_threshold)
    inside = graph.adjacency * nodes[:, None] * nodes[None, :]
    output = node_influence(inside, weights) + weights
    edges = smallest_set(normalised(inside) * output[:, None], edge_threshold)
    while True:
        alive = nodes & (permanent | (edges.any(0) & (edges.any(1) | ~needs_input)))
        if torch.equal(alive, nodes):
            return nodes, edges
        nodes, edges = alive, edges & alive[:, None] & alive[None, :]


def graph_scores(graph: ReferenceGraph) -> tuple[float, float]:
    """(replacement, completeness) of README.md §6.4: from tokens, not errors; inputs that are no errors."""
    is_error, is_token = graph.is_kind("error"), graph.is_kind("token")
    influence = node_influence(graph.adjacency, graph.target_weights)
    output = influence + graph.target_weights
    explained = 1 - normalised(graph.adjacency)[:, is_error].sum(1)
    replacement = influence[is_token].sum() / (influence[is_token].sum() + influence[is_error].sum())
    return float(replacement), float((explained * output).sum() / output.sum())
