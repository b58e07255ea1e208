"""An order in which every node comes after all nodes that read it, so that one pass computes what flows down to it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.nodes import NodeTable

# Nodes with incoming edges, as (first, last+1) ranges of ids or as ids, readers before what they read.
Blocks = list[Tensor | range]
EDGES_A_PIECE = 1 << 17


def layered_blocks(edges: Edges, nodes: NodeTable) -> Blocks | None:
    """Targets first, then the features of each layer from the top down: contiguous, since features are sorted by layer.

    None if the edges do not run from lower to higher layers (as in hand-made graphs); then use
    ``topological_blocks``. O(E).
    """
    layout = nodes.layout
    row_nodes = torch.where(edges.row_ptr.diff() > 0)[0]
    has_inputs_wrongly = (row_nodes >= layout.error_start) & (row_nodes < layout.target_start)
    if bool(has_inputs_wrongly.any()) or bool((edges.source >= layout.target_start).any()):
        return None
    if bool((nodes.layer[edges.source] >= nodes.layer[edges.target]).any()):
        return None
    blocks: Blocks = [range(layout.target_start, layout.n_nodes)]
    _, sizes = torch.unique_consecutive(nodes.layer[: layout.n_features], return_counts=True)
    stops = torch.cumsum(sizes, 0)
    starts = stops - sizes
    for start, stop in zip(starts.flip(0).tolist(), stops.flip(0).tolist(), strict=True):
        blocks.extend(_pieces(edges, start, stop))
    return blocks


def topological_blocks(edges: Edges) -> Blocks:
    """Kahn's order for any acyclic graph, in blocks of nodes whose readers are all in earlier blocks. O(E + N).

    Raises InputError if the graph has a cycle, naming a node on it or below it.
    """
    readers = torch.bincount(edges.source, minlength=edges.n_nodes)
    block = torch.where(readers == 0)[0]
    blocks: Blocks = []
    n_done = 0
    while len(block):
        n_done += len(block)
        blocks.append(block)
        sources = edges.source[edge_indices(edges, block)]
        readers -= torch.bincount(sources, minlength=edges.n_nodes)
        touched = torch.unique(sources)
        block = touched[readers[touched] == 0]
    if n_done < edges.n_nodes:
        stuck = int(torch.where(readers > 0)[0][0])
        raise InputError(f"the graph has a cycle through or above node {stuck}; an attribution graph runs one way")
    return blocks


def _pieces(edges: Edges, start: int, stop: int) -> list[range]:
    """Cut a range of nodes where about ``EDGES_A_PIECE`` edges are full, so that what is made of them stays in cache."""
    row_ptr = edges.row_ptr[start : stop + 1]
    marks = torch.arange(int(row_ptr[0]), int(row_ptr[-1]), EDGES_A_PIECE, device=row_ptr.device)
    cuts = [*torch.unique_consecutive(start + torch.searchsorted(row_ptr, marks)).tolist(), stop]
    return [range(first, last) for first, last in pairwise(cuts) if first < last]


def edge_indices(edges: Edges, block: Tensor | range) -> Tensor | slice:
    """Where the edges into the nodes of a block lie: a slice for a range of nodes, else indices."""
    if isinstance(block, range):
        return slice(int(edges.row_ptr[block.start]), int(edges.row_ptr[block.stop]))
    starts = edges.row_ptr[block]
    counts = edges.row_ptr[block + 1] - starts
    ends = torch.cumsum(counts, 0)
    within = torch.arange(int(counts.sum()), device=block.device) - (ends - counts).repeat_interleave(counts)
    return starts.repeat_interleave(counts) + within


def spread(edges: Edges, block: Tensor | range, values: Tensor) -> Tensor:
    """Repeat each value of the block's nodes for each edge into the node. values: (N,) -> (edges of the block,)."""
    if isinstance(block, range):
        counts = edges.row_ptr[block.start : block.stop + 1].diff()
        return values[block.start : block.stop].repeat_interleave(counts)
    counts = edges.row_ptr[block + 1] - edges.row_ptr[block]
    return values[block].repeat_interleave(counts)
