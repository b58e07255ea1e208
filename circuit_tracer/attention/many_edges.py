"""The strongest first and last heads of many edges (README.md §4).

Letters: E edges, H heads, k heads kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attention.edge_set import EdgeSet
from circuit_tracer.attention.edge_sums import require_sums
from circuit_tracer.attention.edges import edge_weights, node_number
from circuit_tracer.attention.frozen_prompt import FrozenPrompt
from circuit_tracer.attention.sweeps import direct_of, first_by_layer, last_by_layer
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.edge_heads import EdgeHeads
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PruneResult, prune_graph
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.progress import doing

Pairs = Sequence[tuple[int | str, int | str]]


@typed
@plain_torch()
@torch.no_grad()
@doing("splitting edges over heads")
def explain_edges(
    graph: Graph, model: Traceable, keep: int = 3, edges: Pairs | PruneResult | Edges | None = None
) -> EdgeHeads:
    """The `keep` strongest first and last heads of many edges, which the graph then has as ``graph.edge_heads``.

    Every edge is split over all heads and compared with its weight; then the strongest are kept. Raises what `explain_edge`
    raises.

    Args:
        graph: The attribution graph.
        model: The replacement model that the graph was traced with.
        keep: How many of the strongest first and last heads to keep.
        edges: (source, target) pairs, by number or id; a pruned graph (`prune_graph`); or edges of the graph
            (``graph.edges``). None: what `prune_graph(graph)` keeps, as in files for viewers.

    Returns:
        The heads by edge, in the units of the edges; the graph keeps them too.

    Raises:
        CircuitTracerError: As `explain_edge`.
    """
    if keep < 1:
        raise InputError(f"keep is {keep}; keep at least one head an edge")
    keep = min(keep, model.parts.config.n_layers * model.parts.config.n_heads)
    pairs = _pairs(graph, edges)
    weight = edge_weights(graph, *pairs)
    prompt = FrozenPrompt.of(graph, model)
    direct, size, slope = torch.zeros(3, len(weight), dtype=torch.float64)
    first, last = _StrongestHeads(len(weight), keep), _StrongestHeads(len(weight), keep)
    if len(weight):
        edge_set = _edge_set(prompt, *pairs)
        for edge, part in edge_set.parts("targets"):
            direct[edge], size[edge] = direct_of(part)
            slope_e = torch.zeros(len(edge), dtype=torch.float64)
            for layer, heads_eH, size_e in first_by_layer(part, slope_e):
                first.add(edge, layer, heads_eH, size_e)
            slope[edge] = slope_e
        for edge, part in edge_set.parts("sources"):
            for layer, heads_eH, size_e in last_by_layer(part):
                last.add(edge, layer, heads_eH, size_e)
        sums = torch.stack([direct + first.total, direct + last.total])
        require_sums(
            graph, prompt, pairs, weight, sums, torch.stack([direct.abs(), size]) + torch.maximum(first.mass, last.mass)
        )
    graph.edge_heads = EdgeHeads(
        source=pairs[0],
        target=pairs[1],
        direct=direct,
        mean_hops=slope / weight,
        first=first.heads,
        first_weight=first.weight,
        last=last.heads,
        last_weight=last.weight,
    ).to(graph.device)
    return graph.edge_heads


class _StrongestHeads:
    """Of E edges: sum of what runs through heads, its mass and that of the products in it, and the k strongest heads so far."""

    def __init__(self, n_edges: int, keep: int) -> None:
        self.total, self.mass = torch.zeros(n_edges, dtype=torch.float64), torch.zeros(2, n_edges, dtype=torch.float64)
        self.weight = torch.zeros(n_edges, keep, dtype=torch.float64)
        self.heads = torch.full((n_edges, keep, 2), -1)

    def add(self, edge: Tensor, layer: int, weight_eH: Tensor, size_e: Tensor) -> None:
        """What runs through the heads of one layer, for edges (e,), and the mass of its products."""
        weight = weight_eH.double().cpu()
        self.total[edge] += weight.sum(1)
        self.mass[:, edge] += torch.stack([weight.abs().sum(1), size_e.double().cpu()])
        number = torch.arange(weight.shape[1]).expand_as(weight)
        here = torch.stack([torch.full_like(number, layer), number], dim=-1)
        here[weight == 0] = -1
        weights, heads = torch.cat([self.weight[edge], weight], 1), torch.cat([self.heads[edge], here], 1)
        best = weights.abs().argsort(dim=1, descending=True, stable=True)[:, : self.weight.shape[1]]
        self.weight[edge] = weights.gather(1, best)
        self.heads[edge] = heads.gather(1, best[..., None].expand(-1, -1, 2))


def _edge_set(prompt: FrozenPrompt, source: Tensor, target: Tensor) -> EdgeSet:
    (sources, source_row), (targets, target_row) = (each.unique(return_inverse=True) for each in (source, target))
    writes, reads = prompt.writes(sources), prompt.reads(targets)
    stretch = prompt.stretch(int(writes.position.min()), int(reads.position.max()) + 1)
    return EdgeSet(stretch, writes, reads, source_row.to(writes.row.device), target_row.to(writes.row.device))


def _pairs(graph: Graph, edges: Pairs | PruneResult | Edges | None) -> Tensor:
    """(2, E) sources and targets, sorted by target and source."""
    if edges is None:
        edges = prune_graph(graph)
    if isinstance(edges, PruneResult):
        edges = edges.pruned_edges
    if isinstance(edges, Edges):
        return torch.stack([edges.source, edges.target]).cpu()
    names = {name: number for number, name in enumerate(graph.nodes.ids())} if edges else {}
    rows = []
    for pair in edges:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"{shortened(pair)} is no edge; give (source, target) pairs of numbers or ids of nodes")
        rows.append([names.get(node) if node in names else node_number(graph, node, "an edge's node") for node in pair])
    if not rows:
        return torch.zeros(2, 0, dtype=torch.int64)
    found: Tensor = torch.tensor(rows).flip(1).unique(dim=0)
    return found.flip(1).T.contiguous()
