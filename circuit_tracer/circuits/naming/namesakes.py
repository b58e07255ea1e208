"""Groups that came out with one name: one group, where role and place are the same and the circuit stays without circles.

The tree of likeness parts what is moved by, or does, too different things; nodes that all say "Austin" at one token are told
as one step nevertheless.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import combinations

import networkx as nx

from circuit_tracer.circuits.grouping import MAX_LAYERS
from circuit_tracer.circuits.quotient import contract
from circuit_tracer.circuits.supernodes import Grouping, Supernode, members_of
from circuit_tracer.graph.graph import Graph


def join_namesakes(graph: Graph, grouping: Grouping, named: Collection[int]) -> Grouping:
    """The grouping with namesakes made one. named: places of the groups that may join.

    They have one role and stand at the same positions, their layers differ by what the grouping allows in a group, and no path
    leads from one to another through a third group. The score stays that of the cut.
    """
    groups = list(grouping.supernodes)
    alike = {place: (groups[place].name, groups[place].role, _positions(graph, groups[place])) for place in named}
    pairs = [(a, b) for a, b in combinations(sorted(named), 2) if alike[a] == alike[b] and alike[a][0]]
    if not pairs:
        return grouping
    flow = _flow(graph, grouping)
    into = {place: place for place in named}  # a group that is no more -> the one that it is part of
    widest = int(grouping.settings.get("max_layers") or MAX_LAYERS)
    for a, b in pairs:
        a, b = into[a], into[b]
        if a == b:
            continue
        joined = replace(groups[a], members=_ordered(graph, groups[a], groups[b]))
        if _height(graph, joined) > widest or _passes_others(flow, a, b):
            continue
        nx.contracted_nodes(flow, a, b, self_loops=False, copy=False)
        groups[a] = joined
        into = {place: a if part == b else part for place, part in into.items()}
    gone = {place for place, part in into.items() if part != place}
    return replace(grouping, supernodes=tuple(group for place, group in enumerate(groups) if place not in gone))


def _flow(graph: Graph, grouping: Grouping) -> nx.DiGraph:
    """Edges between groups, sources to readers; a group by its place, a node that is in none by its id."""
    place = {group.members: number for number, group in enumerate(grouping)}
    circuit = contract(graph, grouping)
    names = [place.get(group.members, group.members[0]) for group in circuit.groups]
    flow = nx.DiGraph()
    flow.add_nodes_from(names)
    flow.add_edges_from((names[source], names[reader]) for reader, source in circuit.edges.nonzero().tolist())
    return flow


def _passes_others(flow: nx.DiGraph, a: int, b: int) -> bool:
    """Whether a path leads from one of the two to the other through a third."""
    direct = [edge for edge in ((a, b), (b, a)) if flow.has_edge(*edge)]
    flow.remove_edges_from(direct)
    found = bool(nx.has_path(flow, a, b) or nx.has_path(flow, b, a))
    flow.add_edges_from(direct)
    return found


def _positions(graph: Graph, group: Supernode) -> frozenset[int]:
    return frozenset(graph.nodes.position[members_of(graph, group)].tolist())


def _height(graph: Graph, group: Supernode) -> int:
    """How many layers its ends are apart."""
    layers = graph.nodes.layer[members_of(graph, group)]
    return int(layers.max() - layers.min())


def _ordered(graph: Graph, *groups: Supernode) -> tuple[str, ...]:
    """Their members, in the graph's order."""
    numbers = {
        number: name for group in groups for number, name in zip(members_of(graph, group), group.members, strict=True)
    }
    return tuple(numbers[number] for number in sorted(numbers))
