"""How much of a node's input an edge is: the percentage that pictures, terminals and the page put on it.

The share of an edge s -> t is A[t,s] / sum over s' of |A[t,s']|, over the whole row of the graph: features, errors and
tokens, what pruning cut included, biases not. Of groups, numerator and denominator are sums over their members, and
edges inside of the target's group count in neither. The page computes the same (static/shares.js); a test compares.

Letters: N nodes, E edges, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.influence import row_mass


def input_shares(edges: Edges, mass: Tensor | None = None) -> Tensor:
    """(E,) float64 signed share of its target's input that each edge is.

    mass: (N,) ``row_mass`` of the whole graph, if ``edges`` are only some of its edges.
    """
    mass = row_mass(edges) if mass is None else mass
    return edges.weight.double() / mass.repeat_interleave(edges.row_ptr.diff())


def group_shares(edges: Edges, groups: Sequence[Sequence[int]], mass: Tensor | None = None) -> Tensor:
    """(G, G) float64 signed share of the input of each group (row) that comes from each other group (column); 0 on the
    diagonal.

    groups: numbers of nodes, disjoint. mass: as above; with the pruned edges and the mass of the whole graph these are
    the numbers that the page shows for that pruning. Raises InputError for a node in two groups. O(E + G * G).
    """
    n_groups = len(groups)
    mass = row_mass(edges) if mass is None else mass
    owner = torch.full((edges.n_nodes,), -1, dtype=torch.long, device=mass.device)
    for number, members in enumerate(groups):
        which = torch.tensor(list(members), dtype=torch.long, device=mass.device)
        if bool((owner[which] >= 0).any()):
            raise InputError(f"group {number} shares a node with another group; groups are disjoint")
        owner[which] = number
    target, source, weight = owner[edges.target], owner[edges.source], edges.weight.double()
    mine = owner >= 0
    total = torch.zeros(n_groups, dtype=torch.float64, device=mass.device).index_add_(0, owner[mine], mass[mine])
    inner = (target >= 0) & (target == source)
    total.index_add_(0, target[inner], -weight[inner].abs())
    between = (target >= 0) & (source >= 0) & ~inner
    flat = torch.zeros(n_groups * n_groups, dtype=torch.float64, device=mass.device)
    flat.index_add_(0, target[between] * n_groups + source[between], weight[between])
    return flat.view(n_groups, n_groups) / total.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
