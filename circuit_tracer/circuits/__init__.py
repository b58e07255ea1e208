"""From a graph to an explanation: groups of its nodes, their circuit, their names and a story. Method: README.md."""

from circuit_tracer.circuits.grouping import group_nodes
from circuit_tracer.circuits.keeping import keep_grouping, kept_grouping
from circuit_tracer.circuits.quotient import Circuit, contract
from circuit_tracer.circuits.supernodes import Grouping, GroupingScore, Role, Supernode

__all__ = [
    "Circuit",
    "Grouping",
    "GroupingScore",
    "Role",
    "Supernode",
    "contract",
    "group_nodes",
    "keep_grouping",
    "kept_grouping",
]
