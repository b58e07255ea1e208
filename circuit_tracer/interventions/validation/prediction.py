"""What a graph predicts for taking out one node: by its edges alone, along all paths, and by influence.

Letters: N nodes, n sources taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.order import edge_indices
from circuit_tracer.graph.shares import input_shares

NUMBERS_AT_ONCE = 1 << 22


def path_effects(graph: Graph, sources: Tensor) -> Tensor:
    """(N, n) float64: change of every node's pre-activation when a source (n,), or a group (n, g) of them at once, is taken
    out, through all features.

    A feature's activation follows its pre-activation down to 0, and its edges change in proportion.
    """
    activation = graph.nodes.activation.double().cpu()
    taken = _taken(graph, sources)

    def relative(rows: Tensor, change: Tensor) -> Tensor:
        own = activation[rows, None]
        moved = torch.where(own != 0, change / own, 0).clamp_min(-1)
        return moved.where(taken[rows] == 0, -1.0)

    return _sweep(graph, -taken, relative, graph.edges.weight.double().cpu())


def influences(graph: Graph, sources: Tensor) -> Tensor:
    """(N, n) float64: influence of each source on every node, the sum over paths of shares of |input|."""
    taken, share = _taken(graph, sources), input_shares(graph.edges).abs().cpu()
    return _sweep(graph, taken, lambda rows, flow: flow + taken[rows], share)


def _taken(graph: Graph, sources: Tensor) -> Tensor:
    """(N, n) 1 where the row is the source, or one of the group."""
    groups = sources.cpu().reshape(len(sources), -1)
    taken = torch.zeros(graph.n_nodes, len(sources), dtype=torch.float64)
    taken[groups.T, torch.arange(len(sources))] = 1
    return taken


def _sweep(graph: Graph, moved: Tensor, relative: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Tensor:
    """One pass from the bottom up: what arrives at a node (N, n) is the weighted sum of what its inputs pass on."""
    edges = Edges(graph.edges.row_ptr.cpu(), graph.edges.source.cpu(), weight)
    arrived = torch.zeros_like(moved)
    for block in reversed(graph.blocks):
        rows = torch.arange(block.start, block.stop) if isinstance(block, range) else block.cpu()
        where = edge_indices(edges, rows)
        assert isinstance(where, Tensor)
        target = rows.repeat_interleave(edges.row_ptr[rows + 1] - edges.row_ptr[rows])
        for piece in torch.arange(len(target)).split(max(1, NUMBERS_AT_ONCE // max(1, moved.shape[1]))):
            which = where[piece]
            arrived.index_add_(0, target[piece], weight[which, None] * moved[edges.source[which]])
        moved[rows] = relative(rows, arrived[rows])
    return arrived


def padded(groups: Sequence[Sequence[int]]) -> Tensor:
    """(G, size of the largest) rows; smaller groups repeat their first."""
    size = max(map(len, groups), default=1)
    filled = [[*rows, *[rows[0]] * (size - len(rows))] for rows in groups]
    return torch.tensor(filled, dtype=torch.int64).reshape(len(groups), size)
