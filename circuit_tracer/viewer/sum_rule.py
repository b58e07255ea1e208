"""What each node's row adds up to, in the words that the page shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from circuit_tracer.graph.files.node_ids import node_ids

if TYPE_CHECKING:
    from circuit_tracer.graph.graph import Graph


def sum_rules(graph: Graph) -> dict[str, dict[str, float]]:
    """By node id, for nodes with inputs: inputs + unselected + bias = pre_activation, and the relative residual.

    inputs: sum of all edges of the unpruned graph, in units of the node's pre-activation. Empty for a graph without
    balance.
    """
    if graph.balance is None:
        return {}
    balance, edges = graph.balance, graph.edges
    which = torch.where(edges.row_ptr.diff() > 0)[0]
    columns = {
        "inputs": edges.row_sum(edges.weight),
        "unselected": balance.unselected,
        "bias": balance.bias,
        "pre_activation": balance.pre_activation,
        "residual": balance.residual(edges),
    }
    rows = zip(*(column[which].tolist() for column in columns.values()), strict=True)
    return {
        name: dict(zip(columns, (float(f"{value:.7g}") for value in row), strict=True))
        for name, row in zip(node_ids(graph, which), rows, strict=True)
    }
