"""The graph that pruning leaves, as a graph of its own."""

from __future__ import annotations

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.graph.balance import RowBalance
from circuit_tracer.graph.edge_heads import EdgeHeads
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PruneResult


def subgraph(graph: Graph, pruned: PruneResult) -> Graph:
    """`graph` with only the features and edges that `pruned` keeps.

    Errors, tokens and targets stay nodes, with or without edges, and `active_features` stays whole. Edges that were
    dropped join what the balance counts as unselected, so the sum rule of every row still holds. Raises InputError if
    `pruned` belongs to another graph.
    """
    if pruned.edges.n_nodes != graph.n_nodes or len(pruned.edges) != len(graph.edges):
        raise InputError(f"the pruning is of a graph with {pruned.edges.n_nodes} nodes, this one has {graph.n_nodes}")
    layout = graph.nodes.layout
    stays = pruned.node_mask.clone()
    stays[layout.error_start :] = True
    place = torch.cumsum(stays, 0) - 1
    kept = pruned.pruned_edges
    return Graph(
        input_string=graph.input_string,
        input_tokens=graph.input_tokens,
        active_features=graph.active_features,
        adjacency_matrix=Edges.from_coo(place[kept.target], place[kept.source], kept.weight, int(stays.sum())),
        cfg=graph.cfg,
        selected_features=graph.selected_features[stays[layout.features]],
        activation_values=graph.activation_values,
        logit_targets=graph.logit_targets,
        logit_probabilities=graph.logit_probabilities,
        scan=graph.scan,
        vocab_size=graph.vocab_size,
        balance=None if graph.balance is None else _balance(graph.balance, pruned, stays),
        targets=graph.targets,
        token_strings=graph.token_strings,
        reconstruction=graph.reconstruction,
        provenance=graph.provenance,
        edge_heads=None if graph.edge_heads is None else _edge_heads(graph.edge_heads, pruned, place),
        scores=graph.scores,
        labels=graph.labels,
        records=graph.records,
        parts=graph.parts,
    )


def _edge_heads(heads: EdgeHeads, pruned: PruneResult, place: torch.Tensor) -> EdgeHeads:
    """Of the edges that are left."""
    left = pruned.pruned_edges.find(heads.source, heads.target) >= 0
    return heads.renumbered(place, left)


def _balance(balance: RowBalance, pruned: PruneResult, stays: torch.Tensor) -> RowBalance:
    dropped = pruned.edges.select(~pruned.kept_edges)
    unselected = balance.unselected + dropped.row_sum(dropped.weight).to(balance.unselected)
    mass = balance.unselected_mass + dropped.row_sum(dropped.weight.abs()).to(balance.unselected_mass)
    return RowBalance(balance.bias[stays], unselected[stays], mass[stays], balance.pre_activation[stays])
