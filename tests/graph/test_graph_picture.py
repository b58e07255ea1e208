"""The picture of a graph: every suffix, deterministic, labels drawn, and a clear error without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.graph.picture import draw_graph
from tests.support.graph_cases import random_graph

MAGIC = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", sorted(MAGIC))
def test_every_format_is_written(suffix: str, tmp_path: Path) -> None:
    path = draw_graph(random_graph(), tmp_path / f"graph.{suffix}")
    assert path.read_bytes().startswith(MAGIC[suffix])


def test_labels_of_kept_features_and_tokens_are_drawn(tmp_path: Path) -> None:
    graph = random_graph()
    layer, feature = int(graph.nodes.layer[0]), int(graph.nodes.feature[0])
    text = draw_graph(graph, tmp_path / "graph.svg", {(layer, feature): "unmistakable"}, 1.0, 1.0).read_text()
    assert "unmistakable" in text
    assert all(f"t{position}" in text for position in range(1, graph.n_pos))
    bare = draw_graph(graph, tmp_path / "bare.svg", {(layer, feature): "unmistakable"}, 1.0, 1.0, most_features=0)
    assert "unmistakable" not in bare.read_text()


@pytest.mark.parametrize("suffix", sorted(MAGIC))
def test_the_same_graph_gives_the_same_picture(suffix: str, tmp_path: Path) -> None:
    first, second = (draw_graph(random_graph(), tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CircuitTracerError, match="pip install"):
        draw_graph(random_graph(), tmp_path / "graph.svg")
