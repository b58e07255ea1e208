"""Graphs whose parts have other types than they should: refused in words, in whatever file they come, never rounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.formats import read_graph, write_graph
from circuit_tracer.graph.files.read_json import from_json, load_viewer_json
from circuit_tracer.graph.files.viewer_json import create_graph_files
from tests.support.graph_cases import random_graph

HUGE = torch.zeros(1).expand(10**6, 10**6)


def content() -> dict[str, Any]:
    """That of a .pt file."""
    graph = random_graph(dtype=torch.float32)
    names = ("input_string", "input_tokens", "active_features", "selected_features", "activation_values", "vocab_size",
             "logit_probabilities", "scan")  # fmt: skip
    return {
        **{name: getattr(graph, name) for name in names},
        "adjacency_matrix": graph.adjacency_matrix.clone(),
        "cfg": graph.cfg.to_dict(),
        "logit_targets": [tuple(target) for target in graph.logit_targets],
    }


WRONG: dict[str, dict[str, Any]] = {
    "tokens that are fractions": {"input_tokens": torch.tensor([1.5, 2, 3, 4])},
    "tokens that are a list": {"input_tokens": [1, 2, 3, 4]},
    "tokens that are texts": {"input_tokens": "abcd"},
    "features that are fractions": {"active_features": torch.rand(20, 3)},
    "selected features that are truths": {"selected_features": torch.ones(14, dtype=torch.bool)},
    "activations that are whole": {"activation_values": torch.ones(20, dtype=torch.int64)},
    "a sparse matrix": {"adjacency_matrix": torch.eye(33).to_sparse()},
    "an expanded matrix": {"adjacency_matrix": HUGE},
    "a matrix without data": {"adjacency_matrix": torch.empty(33, 33, device="meta")},
    "a matrix of texts": {"adjacency_matrix": "matrix"},
    "targets without ids": {"logit_targets": [("a",), ("b",), ("c",)]},
    "targets with fractions": {"logit_targets": [("a", 1.5), ("b", 2), ("c", 3)]},
    "targets with numbers for texts": {"logit_targets": [(1, 1), (2, 2), (3, 3)]},
    "targets that are fractions": {"logit_targets": torch.rand(3)},
    "no text": {"input_string": 5},
    "a scan of numbers": {"scan": [1, 2]},
    "a vocabulary that is a fraction": {"vocab_size": 1.5},
    "a configuration that is a list": {"cfg": [1]},
    "layers that are a fraction": {"cfg": {"n_layers": 3.5}},
    "very many layers": {"cfg": {"n_layers": 10**9}},
    "a name that is a list": {"cfg": {"n_layers": 3, "model_name": ["x"] * 10**5}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_parts_of_other_types_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "g.pt"
    torch.save({**content(), **change}, path)
    with pytest.raises(FileFormatError, match=r"g\.pt") as caught:
        Graph.from_pt(path)
    assert len(str(caught.value)) < 500
    torch.save(content(), path)
    assert Graph.from_pt(path).n_nodes == 33


def test_a_header_of_other_types_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from circuit_tracer.files.tensors import open_tensor_file
    from circuit_tracer.graph.files.native import HEADER_KEY

    path = random_graph().save(tmp_path / "g.safetensors")
    header = json.loads(open_tensor_file(path).metadata[HEADER_KEY])
    tensors = load_file(path)
    for name, value in (
        ("input_string", None), ("cfg", {"n_layers": "3"}), ("logit_targets", [[1, "a"]] * 3), ("target_labels", "abc"),
        ("target_kinds", [[]] * 3), ("token_strings", [1, 2, 3, 4]), ("scan", {}), ("vocab_size", "9"), ("version", True),
    ):  # fmt: skip
        save_file(tensors, path, {HEADER_KEY: json.dumps({**header, name: value})})
        with pytest.raises(FileFormatError, match=r"g\.safetensors"):
            assert Graph.load(path) is None, name
    for text in ("[" * 10**5, '{"version": NaN}', '{"version": 1e999}', '{"version": ' + "9" * 5000 + "}", "null"):
        save_file(tensors, path, {HEADER_KEY: text})
        with pytest.raises(FileFormatError, match=r"g\.safetensors"):
            Graph.load(path)


def test_networkx_files_with_fractions_entities_or_too_much_depth_are_refused(tmp_path: Path) -> None:
    graph = random_graph()
    write_graph(graph, tmp_path / "g.graphml")
    text = (tmp_path / "g.graphml").read_text()
    entity = '<!DOCTYPE g [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><graphml'
    for broken in (text.replace("<graphml", entity, 1), text[: len(text) // 2], "", "<" * 10**5, "<a>" * 10**5):
        (tmp_path / "g.graphml").write_text(broken)
        with pytest.raises(FileFormatError, match=r"g\.graphml"):
            read_graph(tmp_path / "g.graphml")
    write_graph(graph, tmp_path / "g.json")
    document = json.loads((tmp_path / "g.json").read_text())
    del document["graph"]["digest"]
    for name, value in (("layer", 0.5), ("position", "1"), ("feature", None), ("order", []), ("kind", "what")):
        document["nodes"][0][name], before = value, document["nodes"][0][name]
        (tmp_path / "g.json").write_text(json.dumps(document))
        with pytest.raises(FileFormatError, match="was not made by to_networkx"):
            read_graph(tmp_path / "g.json")
        document["nodes"][0][name] = before
    for name, value in (
        ("n_layers", 10**12),
        ("n_layers", 2),
        ("cfg", "{"),
        ("input_tokens", "[1.5]"),
        ("scan", "[3]"),
    ):
        document["graph"][name], before = value, document["graph"][name]
        (tmp_path / "g.json").write_text(json.dumps(document))
        with pytest.raises(FileFormatError, match="was not made by to_networkx"):
            read_graph(tmp_path / "g.json")
        document["graph"][name] = before


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("nodes",), {}), (("nodes",), [1]), (("links",), "x"), (("links",), [[]]), (("metadata",), []), (("qParams",), []),
        (("nodes", 0, "node_id"), ["a"]), (("nodes", 0, "node_id"), None), (("nodes", 0, "layer"), "x"),
        (("nodes", 0, "layer"), 0.5), (("nodes", 0, "ctx_idx"), 1.5), (("nodes", 0, "feature"), 1.5),
        (("nodes", 0, "feature"), -(2**63)), (("links", 0, "weight"), "heavy"), (("links", 0, "weight"), None),
        (("links", 0, "source"), {}), (("qParams", "supernodes"), [1]), (("qParams", "supernodes"), "["),
        (("qParams", "supernodes"), [[]]), (("qParams", "supernodes"), [[7, "0_1_1"]]),
        (("qParams", "supernodes"), [[None, "0_1_1"]]), (("qParams", "supernodes"), [[["a"], "0_1_1"]]),
        (("qParams", "supernodes"), [["a", ["0_1_1"]]]),
        (("qParams", "pinnedIds"), 3), (("nodes", 0, "clerp"), "\ud800"),
    ],
)  # fmt: skip
def test_viewer_json_of_other_types_is_refused_or_valid(place: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    path = create_graph_files(random_graph(), "g", tmp_path)
    document = json.loads(path.read_text())
    for sealed in (document["metadata"], document["qParams"]):
        del sealed["digest"]
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path.write_text(json.dumps(document))
    if place[-1] == "clerp":
        assert nx.get_node_attributes(from_json(path), "clerp")[document["nodes"][0]["node_id"]] == value
        return
    with pytest.raises(FileFormatError) as caught:
        from_json(path)
    assert len(str(caught.value)) < 500


def test_a_graph_of_other_types_cannot_even_be_made() -> None:
    parts = content() | {"logit_targets": random_graph().logit_targets}
    Graph(**parts)
    for name, value in (
        ("input_tokens", torch.rand(4)),
        ("cfg", {"n_layers": 1.5}),
        ("scan", 3),
        ("input_string", None),
    ):
        with pytest.raises(InputError):
            Graph(**{**parts, name: value})


def test_viewer_json_that_is_no_file_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.json", Path("/dev/zero")):
        with pytest.raises(InputError):
            load_viewer_json(path)
