"""The heads of edges, as a graph keeps them: in files, for viewers, and no longer than the edges are the same."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.graph import Graph, prune_graph
from circuit_tracer.graph.edge_heads import EdgeHeads
from circuit_tracer.graph.files.native import HEADER_KEY
from circuit_tracer.graph.files.validate import validate_document
from circuit_tracer.graph.files.viewer_json import graph_document
from circuit_tracer.graph.subgraph import subgraph
from tests.support.graph_cases import random_edge_heads, random_graph

OPTIONS: dict[str, Any] = {"node_threshold": 1.0, "edge_threshold": 1.0}


@pytest.fixture
def graph() -> Graph:
    made = random_graph()
    made.edge_heads = random_edge_heads(made)
    return made


def same(one: EdgeHeads | None, other: EdgeHeads | None) -> bool:
    assert one is not None
    assert other is not None
    return all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def test_native_files_keep_them(graph: Graph, tmp_path: Path) -> None:
    loaded = Graph.load(graph.save(tmp_path / "g.safetensors"))
    assert same(loaded.edge_heads, graph.edge_heads)
    assert Graph.load(random_graph().save(tmp_path / "h.safetensors")).edge_heads is None


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "a head that the model has not": (
        "first",
        lambda t: t.clone().index_fill_(0, torch.tensor([0]), 99),
        "names heads",
    ),
    "a layer below 0": ("last", lambda t: torch.full_like(t, -2), "names heads"),
    "weight without a head": ("last_weight", lambda t: t + 1, "names heads"),
    "edges in another order": ("source", lambda t: t.flip(0), "sorted"),
    "an edge of no graph": (
        "target",
        lambda t: t.clone().index_fill_(0, torch.tensor([len(t) - 1]), 10_000),
        "no edge",
    ),
    "a shorter column": ("direct", lambda t: t[1:].clone(), "shape"),
    "fewer heads": ("first", lambda t: t[:, :1].clone(), "shape"),
    "numbers that are not whole": ("source", lambda t: t.double(), "whole numbers"),
}


@pytest.mark.parametrize(("name", "change", "said"), DAMAGE.values(), ids=DAMAGE)
def test_files_that_hold_others_are_refused(graph: Graph, tmp_path: Path, name: str, change: Any, said: str) -> None:
    graph.cfg.n_heads = 5
    path = graph.save(tmp_path / "g.safetensors")
    file = open_tensor_file(path)
    tensors = {each: file.read(each) for each in file.entries}
    tensors[f"edge_heads.{name}"] = change(tensors[f"edge_heads.{name}"])
    write_tensors(path, tensors, {HEADER_KEY: file.metadata[HEADER_KEY]}, path.name)
    with pytest.raises(FileFormatError, match=said):
        Graph.load(path)


def test_links_of_viewers_name_them(graph: Graph) -> None:
    document = json.loads(graph_document(graph, "g", **OPTIONS).text)
    assert validate_document(document) == []
    named = {(link["source"], link["target"]): link["heads"] for link in document["links"] if "heads" in link}
    assert graph.edge_heads is not None
    ids = graph.nodes.ids()
    for number, row in enumerate(graph.edge_heads.rows(range(len(graph.edge_heads)))):
        source, target = int(graph.edge_heads.source[number]), int(graph.edge_heads.target[number])
        if (found := named.pop((ids[source], ids[target]), None)) is not None:
            assert found["direct"] == pytest.approx(row.direct, rel=1e-6)
            assert found["hops"] == pytest.approx(row.mean_hops, rel=1e-6)
            for part in ("first", "last"):
                assert [tuple(head[:2]) for head in found[part]] == [head[:2] for head in getattr(row, part)]
                assert all(isinstance(value, int) for head in found[part] for value in head[:2])
    assert not named
    assert any("heads" not in link for link in document["links"])


def test_without_them_the_document_is_as_it_was(graph: Graph) -> None:
    graph.edge_heads = None
    text = graph_document(graph, "g", **OPTIONS).text
    assert '"heads"' not in text


def test_changed_edges_lose_them(graph: Graph) -> None:
    graph.adjacency_matrix[int(graph.edges.target[0]), int(graph.edges.source[0])] *= 2
    assert graph.edge_heads is None


def test_a_subgraph_has_those_of_its_edges(graph: Graph) -> None:
    pruned = prune_graph(graph, 0.6, 0.8)
    small = subgraph(graph, pruned)
    assert small.edge_heads is not None
    assert graph.edge_heads is not None
    kept = pruned.pruned_edges.find(graph.edge_heads.source, graph.edge_heads.target) >= 0
    assert 0 < int(kept.sum()) < len(kept)
    assert torch.equal(small.edge_heads.direct, graph.edge_heads.direct[kept])
    names, old = small.nodes.ids(), graph.nodes.ids()
    assert [names[node] for node in small.edge_heads.source] == [old[node] for node in graph.edge_heads.source[kept]]


def test_networkx_carries_them(graph: Graph) -> None:
    found = [json.loads(data["heads"]) for *_, data in graph.to_networkx().edges(data=True) if "heads" in data]
    assert graph.edge_heads is not None
    assert len(found) == len(graph.edge_heads)
    assert set(found[0]) == {"direct", "hops", "first", "last"}


def test_only_those_of_its_own_edges_can_be_given_to_a_graph(graph: Graph) -> None:
    assert graph.edge_heads is not None
    other = random_graph(seed=5)
    with pytest.raises(InputError, match="no edge of the graph"):
        other.edge_heads = graph.edge_heads
    with pytest.raises(InputError, match="not finite"):
        replace(graph.edge_heads, direct=graph.edge_heads.direct / 0)
