"""The identities of a contraction, and groups that stay with a graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.circuits import Circuit, Grouping, Supernode, contract, group_nodes, keep_grouping, kept_grouping
from circuit_tracer.circuits.keeping import shown_groups
from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.graph import Graph, prune_graph
from tests.support.graph_cases import graphs, random_graph


def random_grouping(graph: Graph, seed: int) -> Grouping:
    """Any groups, circles among them or not."""
    rng = torch.Generator().manual_seed(seed)
    ids = graph.nodes.ids()
    owner = torch.randint(6, (graph.n_nodes,), generator=rng)
    members = [tuple(ids[node] for node in torch.nonzero(owner == group)[:, 0]) for group in range(4)]
    return Grouping(tuple(Supernode(f"g{group}", "mixed", each) for group, each in enumerate(members) if each))


@given(graphs(), st.integers(0, 100), st.floats(0.5, 1), st.floats(0.5, 1))
@settings(max_examples=20, deadline=None)
def test_sums_of_a_contraction(graph: Graph, seed: int, node_threshold: float, edge_threshold: float) -> None:
    pruned = prune_graph(graph, node_threshold, edge_threshold)
    grouping = random_grouping(graph, seed)
    circuit = contract(graph, grouping, pruned)
    assert sorted(group for group in circuit.order) == list(range(len(circuit)))
    ids, balance, matrix = graph.nodes.ids(), graph.balance, graph.adjacency_matrix
    assert balance is not None
    assert circuit.bias is not None
    assert circuit.pre_activation is not None
    assert {group.members for group in grouping} <= {group.members for group in circuit.groups}
    there = [node for nodes in circuit.nodes for node in nodes]
    assert len(there) == len(set(there))
    assert set(there) >= set(torch.nonzero(pruned.node_mask)[:, 0].tolist())
    added = torch.zeros(graph.n_nodes, dtype=torch.bool)
    added[there] = True
    added &= ~pruned.node_mask
    kept = pruned.edge_mask | (
        (added[:, None] | added) & (added | pruned.node_mask)[:, None] & (added | pruned.node_mask)
    )
    mass = matrix.abs().sum(1)
    for target, rows in enumerate(circuit.nodes):
        assert [ids[node] for node in rows] == sorted(circuit.groups[target].members, key=ids.index)
        inside = (matrix * kept)[list(rows)][:, list(rows)]
        torch.testing.assert_close(circuit.inside[target], inside.sum())
        whole = mass[list(rows)].sum() - inside.abs().sum()
        for source, columns in enumerate(circuit.nodes):
            edge = (matrix * kept)[list(rows)][:, list(columns)].sum() if source != target else torch.zeros(())
            torch.testing.assert_close(circuit.edges[target, source], edge.double())
            torch.testing.assert_close(circuit.shares[target, source] * whole.clamp(min=1e-30), edge.double())
    total = circuit.edges.sum(1) + circuit.inside + circuit.outside + circuit.bias
    has_input = torch.tensor(
        [
            any(group.role != "token" and mass[node] > 0 for node in nodes)
            for group, nodes in zip(circuit.groups, circuit.nodes, strict=True)
        ]
    )
    torch.testing.assert_close(total[has_input], circuit.pre_activation[has_input])
    for group, nodes in enumerate(circuit.nodes):
        torch.testing.assert_close(circuit.pre_activation[group], balance.pre_activation[list(nodes)].sum())
        torch.testing.assert_close(circuit.bias[group], balance.bias[list(nodes)].sum())


@given(graphs(), st.floats(0, 1))
@settings(max_examples=12, deadline=None)
def test_groups_made_by_themselves_form_a_circuit_without_circles(graph: Graph, purity: float) -> None:
    grouping = group_nodes(graph, node_threshold=1.0, edge_threshold=1.0, purity=purity)
    circuit = contract(graph, grouping)
    assert circuit.groups == grouping.supernodes
    assert circuit.acyclic
    place = {group: step for step, group in enumerate(circuit.order)}
    target, source = torch.nonzero(circuit.edges, as_tuple=True)
    assert all(place[one] < place[other] for one, other in zip(source.tolist(), target.tolist(), strict=True))
    # with nothing pruned, every path is in the circuit: what passes through a group is the sum over paths that visit it
    torch.testing.assert_close(circuit.influence, through(graph, circuit), rtol=1e-8, atol=1e-12)


def through(graph: Graph, circuit: Circuit) -> torch.Tensor:
    """For each group, by what the influence of all sources on the targets falls when paths through it are cut."""
    matrix = graph.adjacency_matrix.abs().double()
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-10)
    weights, identity = graph.target_weights, torch.eye(len(shares), dtype=torch.float64)
    ends = shares.sum(1) == 0  # paths begin where nothing comes in
    found = []
    for nodes in circuit.nodes:
        open_shares = shares.clone()
        open_shares[:, list(nodes)] = 0
        whole, left = (weights @ torch.linalg.inv(identity - each) for each in (shares, open_shares))
        found.append((whole - left)[ends].sum())
    return torch.stack(found)


def test_circles_of_groups_made_by_hand_are_said() -> None:
    graph = random_graph(seed=3, density=1.0)
    ids, there = graph.nodes.ids(), graph.adjacency_matrix[:14, :14] != 0
    last, middle = (there & there.any(1)).nonzero()[0].tolist()  # a feature that reads one that reads another
    first = int(there[middle].nonzero()[0])
    around = Grouping(
        (Supernode("around", "mixed", (ids[first], ids[last])), Supernode("between", "mixed", (ids[middle],)))
    )
    circuit = contract(graph, around, prune_graph(graph, 1.0, 1.0))
    assert not circuit.acyclic
    assert sorted(circuit.order) == list(range(len(circuit)))


def test_groups_name_nodes_that_are_there_once() -> None:
    graph = random_graph()
    with pytest.raises(InputError, match=r"'Texas' names the node '9_9_9'.*spelled like"):
        contract(graph, Grouping((Supernode("Texas", "detects", ("9_9_9",)),)))
    with pytest.raises(InputError, match="in two groups, 'a' and 'b'"):
        Grouping((Supernode("a", "detects", ("0_1_1",)), Supernode("b", "detects", ("0_1_1",))))
    with pytest.raises(InputError, match="no members"):
        Supernode("a", "detects", ())
    with pytest.raises(InputError, match="'sings' is not the role"):
        Supernode("a", "sings", ("0_1_1",))  # type: ignore[arg-type]


def test_a_graph_keeps_its_groups(tmp_path: Path) -> None:
    graph = random_graph(seed=5, n_active=40, n_selected=30)
    grouping = group_nodes(graph, node_threshold=0.9).named({0: "first"})
    keep_grouping(graph, grouping)
    loaded = Graph.load(graph.save(tmp_path / "graph.safetensors"))
    assert kept_grouping(loaded) == grouping
    document = json.loads(loaded.to_json("graph", tmp_path).read_text(encoding="utf-8"))
    shown = document["qParams"]
    assert shown["supernodes"] == grouping.to_viewer()
    assert {member for _, *members in grouping.to_viewer() for member in members} <= set(shown["pinnedIds"])
    assert {node["node_id"] for node in document["nodes"]} >= set(shown["pinnedIds"])
    loaded.adjacency_matrix = loaded.adjacency_matrix * 2
    assert kept_grouping(loaded) is None


@pytest.mark.parametrize("least", [0.02, 0.05])
def test_no_token_is_shown_that_nothing_shown_reads(least: float) -> None:
    graph = random_graph(seed=4, n_active=40, n_selected=30)
    circuit = contract(graph, Grouping(()))
    shown = shown_groups(graph, circuit, least)
    share = circuit.influence / graph.target_weights.sum()
    tokens = [number for number, group in enumerate(circuit.groups) if group.role == "token" and share[number] >= least]
    read = [token for token in tokens if any(circuit.edges[reader, token] for reader in shown)]
    assert 0 < len(read) < len(tokens)
    assert [number for number in tokens if number in shown] == read


def test_new_groups_take_the_place_of_old_ones_in_a_viewers_file_but_not_of_those_made_by_hand(tmp_path: Path) -> None:
    graph = random_graph(seed=5, n_active=40, n_selected=30)

    def exported(purity: float) -> list[list[str]]:
        grouping = group_nodes(graph, node_threshold=1.0, purity=purity)
        keep_grouping(graph, grouping)
        document = json.loads(graph.to_json("graph", tmp_path).read_text(encoding="utf-8"))
        pinned = set(document["qParams"]["pinnedIds"])
        shown = [row for row in grouping.to_viewer() if pinned.issuperset(row[1:])]
        assert shown
        assert (document["qParams"]["supernodes"] == shown) is (not by_hand)
        return list(document["qParams"]["supernodes"])

    by_hand: list[list[str]] = []
    few, many = exported(0.0), exported(0.6)
    assert few != many
    path = tmp_path / "graph.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    by_hand = [["mine", *document["qParams"]["pinnedIds"][:2]]]
    document["qParams"]["supernodes"] = by_hand
    path.write_text(json.dumps(document), encoding="utf-8")
    assert exported(0.0) == by_hand


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        {},
        {"supernodes": [["a", "detects"]], "pinned": []},
        {"supernodes": [], "pinned": None},
        *({"supernodes": [[name, "detects", ["0_1_1"]]], "pinned": []} for name in (7, None, [], ["a"])),
        {"supernodes": [["a", "detects", "0_1_1"]], "pinned": []},
        {"supernodes": [["a", "detects", []]], "pinned": []},
        {"supernodes": [["a", "detects", [3]]], "pinned": []},
        {"supernodes": [["a", "detects", ["0_1_1"]]], "pinned": [3]},
    ],
    ids=[
        *(
            "no object",
            "empty",
            "cut short",
            "no pins",
            "a number's name",
            "null's name",
            "a list's name",
            "a name in a list",
        ),
        *("members are a text", "no members", "a number for a member", "a number pinned"),
    ],
)
def test_damaged_groups_are_refused(damaged: object, tmp_path: Path) -> None:
    graph = random_graph()
    graph.grouping = damaged  # type: ignore[assignment]
    with pytest.raises(FileFormatError, match="groups cannot be read"):
        Graph.load(graph.save(tmp_path / "graph.safetensors"))


def test_groups_that_name_no_role_are_refused() -> None:
    graph = random_graph()
    graph.grouping = {"supernodes": [["a", "sings", ["0_1_1"]]], "pinned": [], "settings": {}, "score": None}
    with pytest.raises(FileFormatError, match="'sings' is not the role"):
        kept_grouping(graph)
