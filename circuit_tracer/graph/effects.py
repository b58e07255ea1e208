"""Signed effects of nodes and edges on the targets, direct and along all paths: activation times gradient.

In the frozen network, with the gates of features open, a feature's activation moves as its pre-activation does. The edge
A[u,t] is a_t times what the row of u has for one unit of t, so the gradient of y = sum over targets of w_k y_k with respect to
the activation of t is g_t = sum over u of A[u,t] / a_t g_u, with g_k = w_k at targets. The effect of s is then

    a_s g_s = sum over t of A[t,s] g_t,

exact to first order, and exact for taking s out as long as no feature on the way would stop (`path_effects` in
interventions/validation follows those that do).
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.order import Blocks, edge_indices, spread


def signed_effects(edges: Edges, blocks: Blocks, activation: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """((N,), (E,)) float64: the effect of each node, and of each edge t <- s alone, A[t,s] g_t.

    blocks: as for ``node_influence``. activation: (N,), that of features; 0 for others, and what flows into a feature of
    activation 0 ends there. weights: (N,) w at the targets, signed, 0 elsewhere. O(E), N + E numbers of memory.
    """
    activation, weights = activation.double(), weights.double()
    weight = edges.weight.double()
    effect = torch.zeros(edges.n_nodes, dtype=torch.float64, device=weight.device)
    by_edge = torch.zeros_like(weight)
    for block in blocks:
        where = edge_indices(edges, block)
        gradient = weights + torch.where(activation != 0, effect / activation, 0.0)
        by_edge[where] = spread(edges, block, gradient) * weight[where]
        effect += torch.bincount(edges.source[where], weights=by_edge[where], minlength=edges.n_nodes)
    return effect, by_edge
