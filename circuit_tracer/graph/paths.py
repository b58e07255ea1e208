"""The strongest routes through a graph from one node to another."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.order import edge_indices
from circuit_tracer.graph.shares import input_shares


@dataclass(frozen=True)
class Path:
    """A path through the graph.

    Attributes:
        nodes: From source to target.
        weight: Product along the path of the edges' shares of their target's |input|, with the product of their signs; its
            size is the share of the target's influence that runs along this path.
    """

    nodes: tuple[int, ...]
    weight: float


@typed
def strongest_paths(graph: Graph, target: int, source: int | None = None, k: int = 10) -> list[Path]:
    """The ``k`` paths into ``target`` from ``source`` (or from any token if None) of largest |weight|, strongest first.

    Exact. A first pass finds the best continuation down from every node; with it, a best-first search from the target
    completes paths in the order of their weight and touches only nodes that lie on them. O(E + k * length * degree). Fewer
    paths come back if there are fewer.

    Args:
        graph: The attribution graph.
        target: Number of the node that paths end in.
        source: Number of the node that they begin at; None: any token.
        k: How many.

    Returns:
        At most `k` paths, from source to target, with signed weights.

    Raises:
        InputError: For nodes that do not exist or a ``k`` below 1.

    Examples:
        >>> from circuit_tracer import strongest_paths
        >>> first = strongest_paths(graph, target=graph.nodes.layout.target_start, k=3)[0]
        >>> graph.nodes.ids()[first.nodes[-1]]
        '5_101_8'
    """
    for name, node in (("target", target), ("source", source)):
        if node is not None and not 0 <= node < graph.n_nodes:
            raise InputError(f"{name} node is {node}; the graph has nodes 0..{graph.n_nodes - 1}")
    if k < 1:
        raise InputError(f"k is {k}; ask for at least one path")
    layout = graph.nodes.layout
    is_end = torch.zeros(graph.n_nodes, dtype=torch.bool, device=graph.device)
    is_end[layout.tokens if source is None else slice(source, source + 1)] = True
    log_share = input_shares(graph.edges).abs().log()
    best_down = _best_continuation(graph, log_share, is_end)
    return _search(graph.edges, log_share, best_down, is_end, target, k)


def _best_continuation(graph: Graph, log_share: Tensor, is_end: Tensor) -> Tensor:
    """(N,) log of the largest product of shares on a path from each node down to an end; -inf if there is none."""
    edges = graph.edges
    best = torch.where(is_end, 0.0, -torch.inf).double()
    for block in reversed(graph.blocks):
        where = edge_indices(edges, block)
        rows = torch.arange(block.start, block.stop, device=best.device) if isinstance(block, range) else block
        target = rows.repeat_interleave(edges.row_ptr[rows + 1] - edges.row_ptr[rows])
        best = best.scatter_reduce(0, target, log_share[where] + best[edges.source[where]], "amax")
    return torch.where(is_end, 0.0, best)


def _search(edges: Edges, log_share: Tensor, best_down: Tensor, is_end: Tensor, target: int, k: int) -> list[Path]:
    found: list[Path] = []
    start = float(best_down[target])
    # Entries: (-log of the best completion, nodes from the target down, log weight so far, sign so far).
    heap: list[tuple[float, tuple[int, ...], float, int]] = [(-start, (target,), 0.0, 1)] if start > -torch.inf else []
    while heap and len(found) < k:
        _, nodes, weight, sign = heapq.heappop(heap)
        node = nodes[-1]
        if bool(is_end[node]):
            if len(nodes) > 1:
                found.append(Path(nodes[::-1], sign * exp(weight)))
            continue
        where = slice(int(edges.row_ptr[node]), int(edges.row_ptr[node + 1]))
        sources = edges.source[where]
        # No more than k continuations of one node can be among the k best.
        totals = weight + log_share[where] + best_down[sources]
        order = torch.topk(totals, min(k, len(totals))).indices
        rows = zip(
            sources[order].tolist(),
            totals[order].tolist(),
            log_share[where][order].tolist(),
            edges.weight[where][order].tolist(),
            strict=True,
        )
        for child, total, share, edge_weight in rows:
            if total > -torch.inf:
                heapq.heappush(heap, (-total, (*nodes, child), weight + share, sign if edge_weight > 0 else -sign))
    return found
