"""Cutting a graph down to what a person can read, without losing most of the influence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import edge_influence, node_influence
from circuit_tracer.graph.nodes import NodeLayout
from circuit_tracer.graph.selection import cumulative_ranks, cumulative_threshold

PrunePolicy = Literal["circuit-tracer", "paper"]


@dataclass(frozen=True)
class PruneResult:
    """What is left of a graph; unpacks like circuit-tracer's triple (node_mask, edge_mask, cumulative_scores).

    Attributes:
        node_mask: bool (N,).
        kept_edges: bool (E,) over ``edges``, the edges of the graph.
        cumulative_scores: (N,) fraction of the influence held by the nodes down to each one's rank, over the unpruned
            graph; small is important.
        influence: float64 (N,), unpruned.
    """

    node_mask: Tensor
    kept_edges: Tensor
    cumulative_scores: Tensor
    influence: Tensor
    edges: Edges

    @property
    def edge_mask(self) -> Tensor:
        """The dense bool (N, N) mask, made anew at each call, row = target."""
        n_nodes = self.edges.n_nodes
        mask = torch.zeros(n_nodes, n_nodes, dtype=torch.bool, device=self.node_mask.device)
        mask[self.edges.target[self.kept_edges], self.edges.source[self.kept_edges]] = True
        return mask

    @property
    def pruned_edges(self) -> Edges:
        """The edges that are left, among the same nodes."""
        return self.edges.select(self.kept_edges)

    def __iter__(self) -> Iterator[Tensor]:
        yield self.node_mask
        yield self.edge_mask
        yield self.cumulative_scores

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        return (self.node_mask, self.edge_mask, self.cumulative_scores)[index]


@typed
def prune_graph(
    graph: Graph, node_threshold: float = 0.8, edge_threshold: float = 0.98, policy: PrunePolicy = "circuit-tracer"
) -> PruneResult:
    """Keep the nodes, then the edges among them, that hold a fraction of the influence.

    Edges are scored on the node-pruned graph, renormalised. Then, until nothing changes, nodes that lost all outgoing edges and
    features that lost all incoming edges are dropped (except those that always stay). A threshold of 1 keeps all that has any
    influence. O(E); no dense matrix.

    Args:
        graph: The graph.
        node_threshold: Share of the influence that kept nodes hold, 0 to 1.
        edge_threshold: Share of the influence that kept edges hold, 0 to 1, among these nodes.
        policy: "circuit-tracer": nodes at or above the influence at which the running sum reaches ``node_threshold``, ties
            included; tokens and targets always stay, error nodes may go. "paper": the smallest set that reaches it; error
            nodes always stay too.

    Returns:
        Masks of the nodes (N,) and edges (E,) that are left, and the nodes' cumulative scores (N,).

    Raises:
        InputError: For a threshold outside 0..1 or an unknown policy.

    Examples:
        >>> from circuit_tracer import prune_graph
        >>> pruned = prune_graph(graph, node_threshold=0.8, edge_threshold=0.98)
        >>> int(pruned.node_mask.sum()) < graph.n_nodes
        True
    """
    for name, threshold in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0.0 <= threshold <= 1.0:
            raise InputError(f"{name} is {threshold}; expected a fraction between 0 and 1, such as 0.8")
    edges, weights, layout = graph.edges, graph.target_weights, graph.nodes.layout
    influence = node_influence(edges, graph.blocks, weights)
    ranks = cumulative_ranks(influence)
    permanent = _permanent_nodes(layout, policy, graph.device)
    node_mask = permanent | _important_nodes(influence, node_threshold, policy)

    inside = node_mask[edges.target] & node_mask[edges.source]
    within = edges.select(inside)
    scores = edge_influence(within, node_influence(within, graph.blocks, weights), weights)
    kept_within = scores >= cumulative_threshold(scores, edge_threshold)
    fed = edges.row_ptr.diff() > 0  # a feature that an intervention has set is not
    node_mask, kept_within = _drop_loose_ends(within, kept_within, node_mask, permanent, layout, fed)

    kept_edges = torch.zeros_like(inside)
    kept_edges[inside] = kept_within
    return PruneResult(node_mask, kept_edges, ranks.to(edges.weight.dtype), influence, edges)


def _permanent_nodes(layout: NodeLayout, policy: PrunePolicy, device: torch.device) -> Tensor:
    permanent = torch.zeros(layout.n_nodes, dtype=torch.bool, device=device)
    permanent[layout.error_start if policy == "paper" else layout.token_start :] = True
    return permanent


def _important_nodes(influence: Tensor, threshold: float, policy: PrunePolicy) -> Tensor:
    important = influence >= cumulative_threshold(influence, threshold)
    if policy == "paper" and threshold < 1.0 and bool(important.any()):
        # Of several nodes tied at the crossing only the first few are needed.
        tied = torch.where(influence == influence[important].min())[0]
        needed = threshold * influence.sum() - influence[important].sum() + len(tied) * influence[tied[0]]
        count = max(1, int(torch.ceil(needed / influence[tied[0]] - 1e-9)))
        important[tied[count:]] = False
    return important


def _drop_loose_ends(
    edges: Edges, kept: Tensor, node_mask: Tensor, permanent: Tensor, layout: NodeLayout, fed: Tensor
) -> tuple[Tensor, Tensor]:
    """Drop, until nothing changes, nodes without kept outgoing edge, features `fed` (N,) by edges of which none is kept, and
    their edges.
    """
    where = torch.where(kept)[0]
    target, source = edges.target[where], edges.source[where]
    needs_input = torch.zeros_like(node_mask)
    needs_input[layout.features] = fed[layout.features]
    while True:
        has_output = torch.bincount(source, minlength=layout.n_nodes) > 0
        has_input = torch.bincount(target, minlength=layout.n_nodes) > 0
        surviving = node_mask & (permanent | (has_output & (has_input | ~needs_input)))
        if torch.equal(surviving, node_mask):
            break
        node_mask = surviving
        alive = node_mask[target] & node_mask[source]
        where, target, source = where[alive], target[alive], source[alive]
    kept = torch.zeros_like(kept)
    kept[where] = True
    return node_mask, kept
