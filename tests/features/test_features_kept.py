"""Labels and examples stay with a graph: in its file, through validation, pruning and pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from circuit_tracer.demo import FEATURES, load_labels
from circuit_tracer.errors import FileFormatError
from circuit_tracer.features.folder import FeatureFolder, packed
from circuit_tracer.features.kept import KeptRecords, keep_features
from circuit_tracer.graph import Graph, prune_graph
from circuit_tracer.graph.feature_notes import (
    labels_from_json,
    labels_to_json,
    records_from_tensors,
    records_to_tensors,
)
from circuit_tracer.graph.subgraph import subgraph
from circuit_tracer.viewer import graph_page
from tests.support.graph_cases import random_graph


@pytest.fixture
def noted(tmp_path: Path) -> Graph:
    """A graph whose features are called as those of the embedded dictionary with their numbers are."""
    graph = random_graph()
    keep_features(graph, FEATURES, {(1, 1): "mine"} | load_labels())
    return graph


def test_files_and_parts_of_a_graph_keep_what_is_known_of_its_features(noted: Graph, tmp_path: Path) -> None:
    places = {(layer, index) for layer, _, index in noted.active_features[noted.selected_features].tolist()}
    labels, folder = load_labels(), FeatureFolder(FEATURES)
    assert noted.labels == {place: labels[place] for place in places if place in labels}
    assert noted.records
    loaded = Graph.load(noted.save(tmp_path / "g.safetensors"))
    assert (loaded.labels, loaded.records) == (noted.labels, noted.records)
    again = KeptRecords(loaded)
    assert all(again.get(place) == folder.get(place) for place in loaded.records)
    assert again.get((99, 99), "nothing") == "nothing"
    part = subgraph(loaded, prune_graph(loaded, 0.5))
    assert (part.labels, part.records) == (noted.labels, noted.records)


def test_a_page_of_the_file_shows_them_by_itself(noted: Graph, tmp_path: Path) -> None:
    loaded = Graph.load(noted.save(tmp_path / "g.safetensors"))
    text = graph_page(loaded, node_threshold=0.98)
    details = json.loads(text.split('id="feature-data">')[1].split("</script>")[0])
    assert len(details) == len(noted.records)
    place, label = next(iter(noted.labels.items()))
    assert json.dumps(label, ensure_ascii=False) in text
    other = graph_page(loaded, {}, labels={place: "given now"}, node_threshold=1.0)
    assert '"given now"' in other
    assert '"feature-data">{}<' in other


def test_what_does_not_fit_together_is_refused() -> None:
    labels = {(0, 3): "three", (2, 1): "λ"}
    assert labels_from_json(labels_to_json(labels)) == labels
    for wrong in ([], {"0": 3}, {"0": {"a": "b"}}, {"0": {"1": 2}}):
        with pytest.raises(FileFormatError, match="label"):
            labels_from_json(wrong)
    tensors = records_to_tensors({(0, 3): packed({"a": 1}), (0, 1): b"12345"})
    assert records_from_tensors(tensors)[0, 1] == b"12345"
    damage = {
        "records.place": torch.zeros(3, 2, dtype=torch.int64),
        "records.offsets": torch.tensor([0, 9, 4]),
        "records.data": torch.zeros(3, dtype=torch.uint8),
    }
    for name, wrong in damage.items():
        with pytest.raises(FileFormatError, match="do not fit"):
            records_from_tensors({**tensors, name: wrong})
    del tensors["records.data"]
    with pytest.raises(FileFormatError, match="only some"):
        records_from_tensors(tensors)
