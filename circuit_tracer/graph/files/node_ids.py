"""Names of nodes in files, the same for the viewers and for networkx, and the pairing of feature ids."""

from __future__ import annotations

import math

from torch import Tensor

from circuit_tracer.graph.graph import Graph


def cantor_pair(layer: int, index: int) -> int:
    """(l+i)(l+i+1)/2 + i: the one number by which viewers know a feature. Exact in JavaScript for i up to 5e7."""
    return (layer + index) * (layer + index + 1) // 2 + index


def cantor_unpair(number: int) -> tuple[int, int]:
    """(layer, index) of a paired number, by integer arithmetic."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def node_ids(graph: Graph, which: Tensor | None = None) -> list[str]:
    """Names of the nodes in ``which`` (int64 numbers; default all), as ``NodeTable.ids``."""
    return graph.nodes.ids(which)
