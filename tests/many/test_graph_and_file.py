"""A viewer's file looked up in a whole graph, against dense matrices; and what stops it."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError
from circuit_tracer.graph import Graph, prune_graph
from circuit_tracer.graph.files.viewer_json import graph_document
from circuit_tracer.many.comparison import compare_with_file
from tests.support.graph_cases import random_graph

SETTINGS = (0.7, 0.9)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_graph(n_active=20, n_selected=20)


@pytest.fixture(scope="module")
def written(graph: Graph) -> dict[str, Any]:
    return dict(json.loads(graph_document(graph, "a", "scan", *SETTINGS, token_strings=list("abcd")).text))


@pytest.fixture
def document(written: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(written)


def test_a_graph_and_its_own_file_say_the_same(graph: Graph, document: dict[str, Any]) -> None:
    found = compare_with_file(document, graph)
    features = [node["node_id"] for node in document["nodes"] if node["feature_type"] == "cross layer transcoder"]
    assert [each.id for each in found.features] == features
    assert all(each.there == pytest.approx(each.here, rel=1e-5) for each in found.features)
    assert not found.inactive
    assert not found.unselected
    assert (found.kept["feature"].both, found.kept["feature"].file, found.kept["feature"].graph) == (
        len(features),
        0,
        0,
    )
    assert found.weight_change < 1e-5
    assert found.weight_correlation == pytest.approx(1.0)
    assert [(text, pytest.approx(there)) for text, there, _ in found.targets] == [
        (label, weight) for label, weight in zip(graph.targets.label, graph.targets.weight.tolist(), strict=True)
    ]
    assert "0.7 of nodes, 0.9 of edges" in found.verdict[-1]


def test_every_link_is_looked_up_in_the_whole_graph(graph: Graph, document: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    for link in document["links"]:
        link["weight"] *= float(rng.uniform(0.5, 1.5))
    number = {name: place for place, name in enumerate(graph.nodes.ids())}
    dense = graph.adjacency_matrix
    there = np.array([link["weight"] for link in document["links"]])
    here = np.array([float(dense[number[link["target"]], number[link["source"]]]) for link in document["links"]])
    found = compare_with_file(document, graph)
    assert {(link.source, link.target) for link in found.links} == {
        (link["source"], link["target"]) for link in document["links"]
    }
    assert found.weight_change == pytest.approx(np.abs(here - there).sum() / np.abs(there).sum(), rel=1e-5)
    assert found.weight_correlation == pytest.approx(np.corrcoef(there, here)[0, 1], rel=1e-5)
    worst = found.largest(1)[0]
    assert abs(worst.here - worst.there) == pytest.approx(np.abs(here - there).max(), rel=1e-5)


def test_nodes_that_are_not_here_are_told_apart() -> None:
    whole = random_graph(n_active=20, n_selected=20)
    file = json.loads(graph_document(whole, "a", "scan", 1.0, 1.0, token_strings=list("abcd")).text)
    absent = copy.deepcopy(next(node for node in file["nodes"] if node["feature_type"] == "cross layer transcoder"))
    absent |= {"node_id": "0_99_1", "feature": 99 * 100 // 2 + 99, "layer": "0", "ctx_idx": 1}
    file["nodes"].append(absent)
    part = random_graph(n_active=20, n_selected=14)  # the same active features, six of them no nodes
    found = compare_with_file(file, part)
    rows = whole.active_features.tolist()
    chosen = set(part.selected_features.tolist())
    kept = {each.id for each in found.features}
    left_out = {f"{layer}_{index}_{place}" for n, (layer, place, index) in enumerate(rows) if n not in chosen}
    assert found.inactive == ["0_99_1"]
    assert set(found.unselected) == left_out & kept
    assert len(left_out & kept) > 0
    assert any("not active here" in sentence for sentence in found.verdict)
    assert any("trace with more feature nodes" in sentence for sentence in found.verdict)


def test_thresholds_given_come_before_those_of_the_file(graph: Graph, document: dict[str, Any]) -> None:
    found = compare_with_file(document, graph, node_threshold=0.3, edge_threshold=0.5)
    kept = prune_graph(graph, 0.3, 0.5).node_mask[graph.nodes.layout.features]
    assert found.kept["feature"].both + found.kept["feature"].graph == int(kept.sum())
    del document["metadata"]["pruning_settings"], document["metadata"]["node_threshold"]
    assert "(0.8 of nodes, 0.98 of edges)" in compare_with_file(document, graph).verdict[-1]


def test_what_cannot_be_looked_up_is_refused(graph: Graph, document: dict[str, Any]) -> None:
    other = random_graph(seed=3, n_active=20, n_selected=20)
    assert not torch.equal(other.input_tokens, graph.input_tokens)
    with pytest.raises(CompatibilityError, match=r"of another prompt.*fetched\.token_ids"):
        compare_with_file(document, other)
    document["nodes"] = [node for node in document["nodes"] if node["feature_type"] != "cross layer transcoder"]
    with pytest.raises(InputError, match="no features"):
        compare_with_file(document, graph)


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [("metadata", "prompt_tokens", 5), ("feature", "activation", "much"), ("logit", "token_prob", [0.5])],
)
def test_fields_of_a_wrong_type_are_named(
    graph: Graph, document: dict[str, Any], place: str, field: str, value: object
) -> None:
    kinds = {"feature": "cross layer transcoder", "logit": "logit"}
    nodes = (node for node in document["nodes"] if node["feature_type"] == kinds.get(place))
    (document["metadata"] if place == "metadata" else next(nodes))[field] = value
    with pytest.raises(FileFormatError, match=field):
        compare_with_file(document, graph)
