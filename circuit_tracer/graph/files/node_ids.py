"""Names of nodes in files, the same for the viewers and for networkx, and the pairing of feature ids."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind

KIND_NAMES = {NodeKind.FEATURE: "feature", NodeKind.ERROR: "error", NodeKind.TOKEN: "token", NodeKind.TARGET: "target"}


def cantor_pair(layer: int, index: int) -> int:
    """(l+i)(l+i+1)/2 + i: the one number by which viewers know a feature. Exact in JavaScript for i up to 5e7."""
    return (layer + index) * (layer + index + 1) // 2 + index


def cantor_unpair(number: int) -> tuple[int, int]:
    """(layer, index) of a paired number, by integer arithmetic."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def node_ids(graph: Graph, which: Tensor | None = None) -> list[str]:
    """Names of the nodes in ``which`` (int64 ids; default all), unique if the targets of a position are.

    features {l}_{f}_{p}, errors {l}_-1_{p}, tokens E_{token}_{p}, targets {L+1}_{token}_{p}.
    """
    nodes = graph.nodes
    which = torch.arange(len(nodes), device=nodes.kind.device) if which is None else which
    names = {int(NodeKind.TOKEN): "E", int(NodeKind.TARGET): str(graph.n_layers + 1)}
    columns = (nodes.kind, nodes.layer, nodes.feature, nodes.position)
    return [
        f"{names.get(kind, layer)}_{feature}_{position}"
        for kind, layer, feature, position in zip(*(column[which].tolist() for column in columns), strict=True)
    ]
