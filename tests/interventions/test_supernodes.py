"""Supernodes from a viewer's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from circuit_tracer import ReplacementModel, attribute, create_graph_files
from circuit_tracer.errors import InputError
from circuit_tracer.interventions import apply_edits, nodes_of, saved_supernodes, scale
from circuit_tracer.interventions.features.edits import Supernode
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])


def test_a_saved_view_names_features(tmp_path: Path) -> None:
    model = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), None, "llama")
    graph = attribute(IDS, model)
    path = create_graph_files(graph, "one", tmp_path, node_threshold=1.0, edge_threshold=1.0)
    document = json.loads(path.read_text())
    features = nodes_of(graph, [3, 50])
    ids = [f"{layer}_{index}_{position}" for layer, position, index in features]
    error = next(node["node_id"] for node in document["nodes"] if "error" in node["feature_type"])
    document["qParams"]["supernodes"] = [["Texas", *ids, error], ["outputs", error]]
    path.write_text(json.dumps(document))
    found = saved_supernodes(path)
    assert list(found) == ["Texas"]
    assert found["Texas"].features == features == Supernode.of_nodes("Texas", graph, [3, 50]).features
    outcome = apply_edits(model, graph, scale(found["Texas"], -1.0), "constrained")
    assert set(outcome.values) == {tuple(feature) for feature in features}
    for groups, expected in (([], "no supernode"), ([["A", *ids], ["A", *ids]], "two supernodes")):
        document["qParams"]["supernodes"] = groups
        path.write_text(json.dumps(document))
        with pytest.raises(InputError, match=expected):
            saved_supernodes(path)
