"""Influence of nodes and edges on the targets: I = sum over k >= 1 of w M^k, M = |A| / row mass.

The measure by which "Circuit Tracing: Revealing Computational Graphs in Language Models" (2025) prunes; A has rows
for targets, so that w multiplies from the left. Only |A| by rows enters, so the scale of a target's units does not
matter.

The engine works on sparse edges in one pass from the targets down. The functions at the end have circuit-tracer's
names and take dense matrices, for those who hold one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.order import Blocks, edge_indices, spread

MIN_MASS = 1e-10


def row_mass(edges: Edges, extra_mass: Tensor | None = None) -> Tensor:
    """(N,) float64 sum of |edges| of each row, plus ``extra_mass`` (N,) if given, at least ``MIN_MASS``."""
    mass = edges.row_sum(edges.weight.abs())
    if extra_mass is not None:
        mass = mass + extra_mass.to(mass)
    return mass.clamp(min=MIN_MASS)


def node_influence(edges: Edges, blocks: Blocks, target_weights: Tensor, extra_mass: Tensor | None = None) -> Tensor:
    """(N,) float64 influence of each node, exact, in one pass: O(E) time, N numbers of memory beyond the edges.

    Args:
        edges: Of the graph.
        blocks: An order from ``order.py``; that of a graph also serves any selection of its edges.
        target_weights: (N,), w at the targets and 0 elsewhere; taken as |w|, so that signed targets count by their size.
        extra_mass: (N,) mass of a row that is no edge (unselected features); it takes its share of what flows into the row.

    Returns:
        (N,) float64 influence, without the targets' own weight.
    """
    weights = target_weights.double().abs()
    scale = 1.0 / row_mass(edges, extra_mass)
    influence = torch.zeros(edges.n_nodes, dtype=torch.float64, device=edges.weight.device)
    for block in blocks:
        influence += pass_down(edges, block, (influence + weights) * scale)
    return influence


def pass_down(edges: Edges, block: Tensor | range, flow: Tensor) -> Tensor:
    """(N,) what the sources of a block's edges receive: sum over its edges t <- s of flow_t |A[t,s]|; flow: (N,)."""
    where = edge_indices(edges, block)
    received = spread(edges, block, flow) * edges.weight[where].abs()
    return torch.bincount(edges.source[where], weights=received, minlength=edges.n_nodes)


def edge_influence(edges: Edges, influence: Tensor, target_weights: Tensor) -> Tensor:
    """(E,) float64 score of each edge t <- s: M[t,s] * (I_t + w_t).

    Args:
        edges: Of the graph.
        influence: (N,) of the nodes (`node_influence`).
        target_weights: (N,) w at the targets, 0 elsewhere; taken as |w|.

    Returns:
        (E,) float64 scores, in the order of the edges.
    """
    per_row = (influence + target_weights.double().abs()) / row_mass(edges)
    return per_row.repeat_interleave(edges.row_ptr.diff()) * edges.weight.abs()


def normalize_matrix(matrix: Tensor) -> Tensor:
    """|A| with rows scaled to sum 1 (rows of less than 1e-10 in all stay smaller). Dense (R, C).

    Args:
        matrix: (R, C), row = target.

    Returns:
        (R, C), rows of sum 1.
    """
    absolute = matrix.abs()
    return absolute / absolute.sum(dim=1, keepdim=True).clamp(min=MIN_MASS)


def compute_influence(A: Tensor, logit_weights: Tensor, max_iter: int = 1000) -> Tensor:
    """Sum over k >= 1 of w A^k for a dense nilpotent A (N, N) and w (N,).

    Args:
        A: (N, N), row = target, nilpotent.
        logit_weights: (N,) weights of the targets, 0 elsewhere.
        max_iter: Steps after which it is given up.

    Returns:
        (N,) sums.

    Raises:
        NumericalError: If the powers of A have not vanished after ``max_iter`` steps (the graph has a cycle).

    Examples:
        >>> from circuit_tracer.graph import compute_influence
        >>> A = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.25, 0.75, 0.0]])
        >>> compute_influence(A, torch.tensor([0.0, 0.0, 1.0])).tolist()
        [0.625, 0.75, 0.0]
    """
    total = torch.zeros_like(logit_weights @ A)
    flow = logit_weights
    for _ in range(max_iter + 1):
        flow = flow @ A
        if not flow.any():
            return total
        total += flow
    raise NumericalError(f"influence has not converged after {max_iter} steps; the graph has a cycle or NaN entries")


def compute_node_influence(adjacency_matrix: Tensor, logit_weights: Tensor) -> Tensor:
    """(N,) influence of each node of a dense adjacency matrix (N, N); logit_weights (N,), taken as |w|.

    Args:
        adjacency_matrix: (N, N), row = target.
        logit_weights: (N,) weights of the targets, 0 elsewhere; taken as |w|.

    Returns:
        (N,) influence.
    """
    return compute_influence(normalize_matrix(adjacency_matrix), logit_weights.abs())


def compute_edge_influence(pruned_matrix: Tensor, logit_weights: Tensor) -> Tensor:
    """(N, N) score of each edge of a dense matrix: M[t,s] * (I_t + w_t).

    Args:
        pruned_matrix: (N, N), row = target.
        logit_weights: (N,) weights of the targets, 0 elsewhere; taken as |w|.

    Returns:
        (N, N) scores, row = target.
    """
    normalized = normalize_matrix(pruned_matrix)
    weights = logit_weights.abs()
    return normalized * (compute_influence(normalized, weights) + weights)[:, None]


def compute_partial_influences(
    edge_matrix: Tensor,
    logit_p: Tensor,
    row_to_node_index: Tensor,
    max_iter: int = 128,
    device: str | torch.device | None = None,
) -> Tensor:
    """(C,) influence of the columns when only some rows are known.

    Args:
        edge_matrix: Dense (R, C), rows in the order they were computed.
        logit_p: (K,) weights of the last K columns.
        row_to_node_index: (R,) column of the node of each row.
        max_iter: Steps after which it is given up.
        device: Where to compute; default, that of ``edge_matrix``.

    Returns:
        (C,) influence.

    Raises:
        InputError: For unequal lengths.
        NumericalError: If it does not end after ``max_iter`` steps.
    """
    if len(row_to_node_index) != len(edge_matrix):
        raise InputError(f"row_to_node_index has {len(row_to_node_index)} entries for {len(edge_matrix)} rows")
    matrix = edge_matrix.to(device or edge_matrix.device).abs()
    matrix = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1e-8)
    row_to_node_index = row_to_node_index.to(matrix.device)
    flow = torch.zeros(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    influence = torch.zeros_like(flow)
    flow[matrix.shape[1] - len(logit_p) :] = logit_p.to(matrix).abs()
    for _ in range(max_iter):
        flow = flow[row_to_node_index] @ matrix
        if not flow.any():
            return influence
        influence += flow
    raise NumericalError(f"partial influences have not converged after {max_iter} steps; the graph has a cycle or NaN")
