"""Groups that came out with one name are one, where nothing else stands between them."""

from __future__ import annotations

import pytest

from circuit_tracer.circuits import Grouping, Role, Supernode, contract
from circuit_tracer.circuits.naming.namesakes import join_namesakes
from circuit_tracer.graph.graph import Graph
from tests.support.graph_cases import random_graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_graph(seed=2, n_active=40, n_selected=30)


def alone(graph: Graph, names: dict[int, str], role: Role = "says") -> Grouping:
    """Every feature with a row a group of one; some have names."""
    ids = graph.nodes.ids()
    groups = (Supernode(names.get(node, ""), role, (ids[node],)) for node in range(graph.nodes.layout.n_features))
    return Grouping(tuple(groups), {"node_threshold": 1.0, "edge_threshold": 1.0})


def at_one_place(graph: Graph) -> list[int]:
    """The features of the position that has most of them."""
    by_position: dict[int, list[int]] = {}
    for node in range(graph.nodes.layout.n_features):
        by_position.setdefault(int(graph.nodes.position[node]), []).append(node)
    return max(by_position.values(), key=len)


def test_namesakes_of_one_place_are_one_and_the_circuit_has_no_circle(graph: Graph) -> None:
    here = at_one_place(graph)
    grouping = alone(graph, dict.fromkeys(here, "say Austin"))
    joined = join_namesakes(graph, grouping, here)
    assert len(joined) < len(grouping)
    assert sorted(node for group in joined for node in group.members) == sorted(
        node for g in grouping for node in g.members
    )
    assert contract(graph, joined).acyclic
    again = [place for place, group in enumerate(joined) if group.name]
    assert join_namesakes(graph, joined, again) == joined, "all that may be joined is"


def test_other_names_places_and_roles_stay_apart(graph: Graph) -> None:
    here = at_one_place(graph)
    elsewhere = next(node for node in range(graph.nodes.layout.n_features) if node not in here)
    grouping = alone(graph, {here[0]: "say Austin", here[1]: "say Boise", elsewhere: "say Austin"})
    assert join_namesakes(graph, grouping, [here[0], here[1], elsewhere]) == grouping
    roles = list(grouping.supernodes)
    roles[here[1]] = Supernode("say Austin", "detects", roles[here[1]].members)
    other = Grouping(tuple(roles), grouping.settings)
    assert join_namesakes(graph, other, [here[0], here[1]]) == other
    assert join_namesakes(graph, alone(graph, {}), here[:2]) == alone(graph, {}), "no name is no name in common"
