"""Nodes that a person chose stay in a pruned graph, however little they matter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PruneResult

_NAME = re.compile(r"(\d{1,9})_(-1|\d{1,12})_(\d{1,9})")


def keep_nodes(graph: Graph, pruned: PruneResult, chosen: Tensor) -> PruneResult:
    """The result with the ``chosen`` nodes, bool (N,), in it: those that were cut come back with all their edges to and from
    nodes that are there.
    """
    edges = graph.edges
    cut = chosen & ~pruned.node_mask
    there = pruned.node_mask | chosen
    again = (cut[edges.target] | cut[edges.source]) & there[edges.target] & there[edges.source] & (edges.weight != 0)
    return replace(pruned, node_mask=there, kept_edges=pruned.kept_edges | again)


def nodes_named(graph: Graph, names: Iterable[str]) -> Tensor:
    """bool (N,): the features and errors of these ids; tokens and targets need no keeping, and other names are of no node."""
    nodes = graph.nodes
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    places = {tuple(map(int, match.groups())) for match in matches}
    found = torch.zeros(len(nodes), dtype=torch.bool, device=graph.device)
    end = nodes.layout.token_start
    for layer, index, position in places:
        here = (nodes.layer[:end] == layer) & (nodes.feature[:end] == index) & (nodes.position[:end] == position)
        found[:end] |= here
    return found
