"""One edge of a graph explained (README.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.arguments import typed, whole
from circuit_tracer.attention.edge_split import split_edge
from circuit_tracer.attention.edge_sums import require_sums
from circuit_tracer.attention.explanation import EdgeExplanation
from circuit_tracer.attention.frozen_prompt import FrozenPrompt
from circuit_tracer.attention.paths import PathSearch
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.graph import Graph
from circuit_tracer.models.surroundings import plain_torch


@typed
@plain_torch()
@torch.no_grad()
def explain_edge(
    graph: Graph, source: int | str, target: int | str, model: Traceable, *, paths: int = 10
) -> EdgeExplanation:
    """The attention heads that the edge from `source` to `target` runs through, with attention patterns frozen.

    The first call about a graph runs the model once; the prompt then stays in memory (`FrozenPrompt`).

    Args:
        graph: The graph of the prompt.
        source: Number of the node, or its id such as "3_41_5".
        target: The same of the node that it goes into.
        model: The one that the graph was traced with.
        paths: How many whole paths of heads to list, the strongest that a best-first search finds.

    Returns:
        The splits by first and last head, by number of heads, and the strongest paths.

    Raises:
        InputError: For a node or an edge that does not exist.
        CompatibilityError: For a graph of another model or dictionary, or one whose edge was changed.
        NumericalError: For sums that miss the edge by more than what is promised for the model's dtype.
    """
    if paths < 0:
        raise InputError(f"paths is {paths}; ask for at least 0")
    pair = torch.tensor([[node_number(graph, node, name)] for node, name in ((source, "source"), (target, "target"))])
    weights = edge_weights(graph, *pair)
    weight = float(weights[0])
    prompt = FrozenPrompt.of(graph, model)
    writes, reads = prompt.writes(pair[0]), prompt.reads(pair[1])
    split = split_edge(prompt.stretch(int(writes.position.min()), int(reads.position.max()) + 1), writes, reads)
    sums = torch.stack([split.hops[0] + split.first.sum(), split.hops[0] + split.last.sum(), split.hops.sum()])
    parts = [each.abs().sum() for each in (split.first, split.last, split.hops[1:])]
    mass = torch.stack([split.hops[0].abs() + torch.stack(parts).max(), split.mass.max()])
    residual = require_sums(graph, prompt, pair, weights, sums[:, None], mass[:, None])
    listed, rest = PathSearch(split, paths).run()
    names = graph.nodes.ids(pair.flatten().to(graph.device))
    return EdgeExplanation(
        source=int(pair[0]),
        target=int(pair[1]),
        names=(names[0], names[1]),
        weight=weight,
        direct=float(split.hops[0]),
        first=split.first,
        last=split.last,
        through=split.through,
        hops=split.hops,
        mean_hops=float(split.through.sum()) / weight,
        paths=listed,
        rest=rest,
        residual=residual,
    )


def node_number(graph: Graph, node: int | str, name: str = "node") -> int:
    """The number of a node given by number or id. Raises InputError for one that does not exist."""
    if isinstance(node, str):
        ids = graph.nodes.ids()
        if node not in ids:
            raise InputError(f"{name}: the graph has no node {shortened(node)}; ids are such as {ids[0]} and {ids[-1]}")
        return ids.index(node)
    number = whole(node, name)
    if not 0 <= number < graph.n_nodes:
        raise InputError(f"{name} node is {number}; the graph has nodes 0..{graph.n_nodes - 1}")
    return number


def edge_weights(graph: Graph, source: Tensor, target: Tensor) -> Tensor:
    """(m,) float64 weights of edges (m,). Raises InputError for the first that does not exist."""
    edges = graph.edges
    place = edges.find(source.to(graph.device), target.to(graph.device))
    if bool((missing := place < 0).any()):
        at = int(missing.nonzero()[0])
        pair = torch.stack([source[at], target[at]]).to(graph.device)
        names, layout = graph.nodes.ids(pair), graph.nodes.layout
        why = (
            "errors and tokens have no inputs"
            if layout.error_start <= int(target[at]) < layout.target_start
            else ("in the frozen network the one has no effect on the other, or it was not kept")
        )
        raise InputError(f"the graph has no edge from {names[0]} to {names[1]}: {why}. Choose an edge of graph.edges")
    return edges.weight[place].double().cpu()
