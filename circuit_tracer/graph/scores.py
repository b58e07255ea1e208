"""How much of the way from tokens to targets a graph explains.

The scores and path lengths of "Circuit Tracing: Revealing Computational Graphs in Language Models" (2025), evaluation
of graphs; with I the influence, w the target weights, M the row-normalised |A| (see ``influence.py``): replacement =
I(tokens) / (I(tokens) + I(errors)); completeness = mean of 1 - M(errors) over nodes, weighted by I + w.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence, pass_down, row_mass


@dataclass(frozen=True)
class GraphScores:
    """Numbers between 0 (nothing) and 1 (everything explained); nan if nothing flows at all.

    Attributes:
        replacement: Share of the influence that ends in tokens and not in errors.
        completeness: circuit-tracer's: share of the input that is no error, averaged over all nodes by their influence;
            tokens and errors, which have no input, count as fully explained.
        strict_completeness: The same over nodes that have inputs, as the paper reads; never higher.
    """

    replacement: float
    completeness: float
    strict_completeness: float


@dataclass(frozen=True)
class PathLengths:
    """Lengths, in edges, of the paths from tokens to targets, weighted by influence.

    Attributes:
        share: (D,) float64, the share of paths of length 1, 2, ..., D; sums to 1.
        mean: Their mean length; nan if no path.
    """

    share: Tensor
    mean: float

    @property
    def cumulative(self) -> Tensor:
        """(D,) the share of paths of length at most 1, 2, ..., D."""
        return torch.cumsum(self.share, 0)


@typed
def compute_graph_scores(graph: Graph) -> tuple[float, float]:
    """(replacement, completeness) of the unpruned graph, as circuit-tracer computes them.

    Args:
        graph: The attribution graph.

    Returns:
        (replacement, completeness), each 0 to 1.

    Examples:
        >>> from circuit_tracer import compute_graph_scores
        >>> [round(score, 2) for score in compute_graph_scores(graph)]
        [0.95, 0.98]
    """
    scores = graph_scores(graph)
    return scores.replacement, scores.completeness


@typed
def graph_scores(graph: Graph, node_mask: Tensor | None = None, count_unselected: bool = False) -> GraphScores:
    """All scores of a graph, or of what a ``node_mask`` (N,) leaves of it.

    Features outside the mask become part of the error node of their layer and position: their outgoing edges are added to
    its edges, their rows are dropped; nothing else is removed. O(E).

    Args:
        graph: The attribution graph.
        node_mask: bool (N,), the nodes to keep; None: all.
        count_unselected: Count the mass of active features that were not selected as error too, instead of leaving it out
            as circuit-tracer does.

    Returns:
        Replacement, completeness and strict completeness, each 0 to 1, nan if nothing flows.

    Raises:
        InputError: For a mask of the wrong shape, or if unselected mass is asked for and the graph has no balance.

    Examples:
        >>> from circuit_tracer import graph_scores
        >>> scores = graph_scores(graph)
        >>> round(scores.replacement, 2), round(scores.completeness, 2)
        (0.95, 0.98)
    """
    if count_unselected and graph.balance is None:
        raise InputError(
            "this graph does not record the mass of unselected features (it has no balance; circuit-tracer's .pt files "
            "have none); score it without count_unselected, or trace the prompt again"
        )
    edges = graph.edges if node_mask is None else fold_into_errors(graph, node_mask)
    hidden = graph.balance.unselected_mass if count_unselected and graph.balance else None
    return _scores(graph, edges, hidden)


def fold_into_errors(graph: Graph, node_mask: Tensor) -> Edges:
    """The edges when every feature outside ``node_mask`` (N,) is counted as error of its layer and position."""
    layout, nodes = graph.nodes.layout, graph.nodes
    if node_mask.shape != (layout.n_nodes,) or node_mask.dtype != torch.bool:
        raise InputError(f"node mask is {node_mask.dtype} {tuple(node_mask.shape)}; expected bool ({layout.n_nodes},)")
    folded = ~node_mask
    folded[layout.error_start :] = False
    stand_in = torch.arange(layout.n_nodes, device=node_mask.device)
    error_of = layout.error_start + nodes.layer * layout.n_pos + nodes.position
    if graph.attention:
        error_of += (nodes.feature >= graph.parts[-1].first) * layout.n_layers * layout.n_pos
    stand_in[folded] = error_of[folded]
    target = graph.edges.target
    stays = ~folded[target]
    source = stand_in[graph.edges.source[stays]]
    return Edges.from_coo(target[stays], source, graph.edges.weight[stays], layout.n_nodes)


def path_lengths(graph: Graph) -> PathLengths:
    """Distribution of the lengths of token-to-target paths: (w M^l)[tokens] for l = 1, 2, ... O(E) a length.

    Args:
        graph: The attribution graph.

    Returns:
        Shares of paths by length, and their mean.

    Examples:
        >>> from circuit_tracer.graph import path_lengths
        >>> round(path_lengths(graph).mean, 1)
        2.5
    """
    edges, scale = graph.edges, 1.0 / row_mass(graph.edges)
    flow = graph.target_weights
    arriving = []
    # No path visits a block of the order twice, so there are no more lengths than blocks.
    for _ in graph.blocks:
        shares = flow * scale
        flow = torch.zeros_like(flow)
        for block in graph.blocks:
            if (shares[block.start : block.stop] if isinstance(block, range) else shares[block]).any():
                flow += pass_down(edges, block, shares)
        arriving.append(flow[graph.nodes.layout.tokens].sum())
        if not flow.any():
            break
    by_length = torch.stack(arriving)
    share = by_length / by_length.sum()
    lengths = torch.arange(1, len(share) + 1, dtype=share.dtype, device=share.device)
    return PathLengths(share, float((share * lengths).sum()))


def _scores(graph: Graph, edges: Edges, hidden_mass: Tensor | None) -> GraphScores:
    layout, weights = graph.nodes.layout, graph.target_weights
    influence = node_influence(edges, graph.blocks, weights, hidden_mass)
    mass = row_mass(edges, hidden_mass)
    is_error = (edges.source >= layout.error_start) & (edges.source < layout.token_start)
    error_mass = edges.row_sum(edges.weight.abs() * is_error)
    has_input = edges.row_ptr.diff() > 0
    hidden_influence = torch.zeros((), dtype=torch.float64, device=graph.device)
    output = influence + weights
    if hidden_mass is not None:
        hidden_influence = (output * hidden_mass.double() / mass).sum()
        error_mass = error_mass + hidden_mass.double()
        has_input |= hidden_mass > 0
    explained = (1 - error_mass / mass) * output
    from_tokens = influence[layout.tokens].sum()
    from_errors = influence[layout.errors].sum() + hidden_influence
    return GraphScores(
        replacement=float(from_tokens / (from_tokens + from_errors)),
        completeness=float((explained.sum() + hidden_influence) / (output.sum() + hidden_influence)),
        strict_completeness=float(explained[has_input].sum() / output[has_input].sum()),
    )
