"""A graph keeps its groups, and its files with it: what viewers open with."""

from __future__ import annotations

from circuit_tracer.circuits.quotient import Circuit, contract
from circuit_tracer.circuits.supernodes import Grouping
from circuit_tracer.graph.graph import Graph

PINNED = 0.05  # of the influence on the targets: groups with less are not pinned by themselves


def keep_grouping(graph: Graph, grouping: Grouping) -> Circuit:
    """Keep a grouping as `graph.grouping`, with the nodes that viewers open with.

    Args:
        graph: The attribution graph.
        grouping: Its groups (`group_nodes`).

    Returns:
        The circuit of the groups.
    """
    circuit = contract(graph, grouping)
    shown = [circuit.groups[number] for number in shown_groups(graph, circuit)]
    graph.grouping = {**grouping.to_json(), "pinned": [member for group in shown for member in group.members]}
    return circuit


def kept_grouping(graph: Graph) -> Grouping | None:
    """The grouping that a graph keeps.

    Args:
        graph: The attribution graph.

    Returns:
        The grouping, or None if the graph keeps none.

    Raises:
        FileFormatError: If it cannot be read.
    """
    return None if graph.grouping is None else Grouping.from_json(graph.grouping)


def shown_groups(graph: Graph, circuit: Circuit, least: float = PINNED) -> list[int]:
    """Numbers of the groups that tell the story, in order: outputs, and what carries at least this share of the influence.

    Not a token that none of them reads: what it carries passes through groups that are left out.
    """
    weights = graph.target_weights.cpu()
    share = circuit.influence / weights.sum()
    told = [
        number for number in circuit.order if circuit.groups[number].role == "logit" or float(share[number]) >= least
    ]
    read_G = (circuit.edges[told] != 0).any(0)
    return [number for number in told if circuit.groups[number].role != "token" or bool(read_G[number])]
