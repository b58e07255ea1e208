"""The picture of pinned nodes: shares as the viewer computes them, every format, the same file each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.graph.circuit_picture import _boxes, _shares
from circuit_tracer.graph.files.node_ids import node_ids
from circuit_tracer.graph.files.view import View
from tests.support.graph_cases import random_graph

MAGIC = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}


def pinned(graph: Graph) -> View:
    ids, layout = node_ids(graph), graph.nodes.layout
    features, tokens = ids[: layout.n_features], ids[layout.token_start : layout.target_start]
    groups = (("a supernode of $3 & <b>", tuple(features[:3])), ("two words", tuple(tokens[-2:])))
    return View((features[-1], ids[-1]), groups, {features[-1]: "my own label"})


def test_shares_are_sums_over_members_of_the_input_from_outside() -> None:
    graph = random_graph()
    boxes = _boxes(graph, pinned(graph), {})
    matrix = graph.adjacency_matrix.double()
    expected = torch.zeros(len(boxes), len(boxes), dtype=torch.float64)
    for row, target in enumerate(boxes):
        outside = [node for node in range(graph.n_nodes) if node not in target.nodes]
        mass = sum(float(matrix[node, outside].abs().sum()) for node in target.nodes)
        for column, source in enumerate(boxes):
            if row != column and mass:
                expected[row, column] = sum(float(matrix[t, s]) for t in target.nodes for s in source.nodes) / mass
    torch.testing.assert_close(_shares(graph, boxes), expected)
    assert expected.abs().sum() > 0


@pytest.mark.parametrize("suffix", sorted(MAGIC))
def test_every_format_and_the_same_file_each_time(suffix: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        graph = random_graph()
        graph.plot(path, view=pinned(graph), least_share=0.0)
    assert first.read_bytes().startswith(MAGIC[suffix])
    assert first.read_bytes() == second.read_bytes()


def test_boxes_carry_labels_of_the_view_the_caller_and_the_graph(tmp_path: Path) -> None:
    graph = random_graph()
    view, ids = pinned(graph), node_ids(graph)
    labels = {(int(graph.nodes.layer[3]), int(graph.nodes.feature[3])): "from outside"}
    figure = graph.plot(view=View((*view.pinned, ids[3]), view.supernodes, view.labels), labels=labels)
    texts = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]
    assert {"my own label", "from outside", "two words", r"a supernode of \$3 & <b>"} <= set(texts)
    assert graph.plot().axes[0].get_xticklabels()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    graph = random_graph()
    with pytest.raises(InputError, match="does not have: 9_9_9"):
        graph.plot(view=View(("9_9_9",)))
    with pytest.raises(InputError, match="no format of pictures"):
        graph.plot(tmp_path / "graph.xyz")
