"""What nodes send and receive, against the definitions written out densely."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from circuit_tracer.circuits.profiles import kept_apart, likeness, node_profiles, overlap, subject
from circuit_tracer.graph import Graph, prune_graph
from tests.support.graph_cases import graphs, random_graph


def shares(graph: Graph) -> Tensor:
    matrix = graph.adjacency_matrix.double()
    return matrix / matrix.abs().sum(1, keepdim=True).clamp(min=1e-10)


@given(graphs())
@settings(max_examples=25, deadline=None)
def test_sent_and_received_are_those_of_the_matrix(graph: Graph) -> None:
    pruned = prune_graph(graph, 0.9, 0.95)
    found, which = node_profiles(graph, pruned), torch.nonzero(pruned.node_mask)[:, 0]
    assert found.nodes.tolist() == which.tolist()
    among = shares(graph)[which][:, which]
    sent = among.T * (pruned.influence + graph.target_weights)[which]
    torch.testing.assert_close(found.sent, sent, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.edges, pruned.edge_mask[which][:, which])

    kind = graph.nodes.kind[which]
    sources = torch.nonzero((kind == 1) | (kind == 2))[:, 0]
    along_paths = torch.linalg.inv(torch.eye(len(which), dtype=torch.float64) - among.abs())
    received = along_paths[:, sources]
    received[sources] = 0
    received /= received.sum(1, keepdim=True).clamp(min=1e-300)
    torch.testing.assert_close(found.received, received, rtol=1e-8, atol=1e-12)

    straight = sent[:, kind == 3].abs().sum(1) / sent.abs().sum(1).clamp(min=1e-300)
    torch.testing.assert_close(found.direct, straight, rtol=1e-8, atol=1e-12)


def test_roles() -> None:
    graph = random_graph(seed=0, n_layers=4, n_pos=3, n_active=60, n_selected=60, density=0.8)
    pruned = prune_graph(graph, 1.0, 1.0)
    ids = graph.nodes.ids(torch.nonzero(pruned.node_mask)[:, 0])
    last = f"_{graph.n_pos - 1}"
    found = node_profiles(graph, pruned, {ids[0]: "Say Texas"})
    assert found.roles[0] == "says"
    matrix = shares(graph)[found.nodes][:, found.nodes]
    from_tokens = matrix[:, [role == "token" for role in found.roles]].abs().sum(1)
    seen = set()
    for row, role in list(enumerate(found.roles))[1:]:
        seen.add(role)
        if role in ("token", "error", "logit"):
            continue
        expected = "says" if found.direct[row] >= 2 / 3 else "detects" if found.direct[row] <= 1 / 3 else "mixed"
        expected = expected if ids[row].endswith(last) and from_tokens[row] < 0.5 else "detects"
        assert role == expected
    assert seen >= {"token", "error", "logit", "detects", "says", "mixed"}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Texas (places)", {"texas"}),
        ("say Texas", {"texas"}),
        ("say the capital of a state", {"capital", "state"}),
        ("mixed: say Texas, say Rome", set()),
        ('"is"', {"is"}),
        ("", set()),
    ],
)
def test_what_labels_are_about(label: str, words: set[str]) -> None:
    assert subject(label) == words


def test_overlap_is_what_two_rows_share() -> None:
    rows = torch.tensor([[2.0, 2.0, 0.0], [0.0, 1.0, 1.0], [0.0, -3.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = [[1.0, 0.5, 0.0, 0.0], [0.5, 1.0, 0.25, 0.0], [0.0, 0.25, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    assert overlap(rows, rows).tolist() == expected


def test_labels_bring_nodes_together_and_keep_sayers_apart() -> None:
    graph = random_graph(seed=0, n_layers=4, n_pos=3, n_active=60, n_selected=60, density=0.8)
    pruned = prune_graph(graph, 1.0, 1.0)
    profiles = node_profiles(graph, pruned)
    says = [row for row, role in enumerate(profiles.roles) if role == "says"][:3]
    words = [frozenset[str]()] * len(profiles.roles)
    told = list(words)
    told[says[0]], told[says[1]], told[says[2]] = (frozenset({text}) for text in ("texas", "rome", "texas"))
    before, after = likeness(profiles, words), likeness(profiles, told)
    pairs = [(says[0], says[2], 1.0), (says[0], says[1], 0.0), (says[1], says[2], 0.0)]
    for one, other, shared in pairs:
        torch.testing.assert_close(after[one, other], (before[one, other] + shared) / 2)
    position, last = graph.nodes.position[profiles.nodes], graph.n_pos - 1
    free, apart = (kept_apart(profiles, each, position, {last}) for each in (words, told))
    assert not free[says[0], says[1]]
    assert [bool(apart[one, other]) for one, other, _ in pairs] == [False, True, True]
    opposed = {("detects", "says"), ("says", "detects")}
    kinds = {"detects": 0, "says": 0, "mixed": 0, "error": 1}
    for one, first in enumerate(profiles.roles):
        for other, second in enumerate(profiles.roles):
            fits = first in kinds and second in kinds and kinds[first] == kinds[second]
            places = {int(position[one]), int(position[other])}
            here = len(places) == 1 or (first != "error" and last not in places)
            assert bool(free[one, other]) is not (fits and here and (first, second) not in opposed)
