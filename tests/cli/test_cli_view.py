"""`circuit-tracer view`: one page from every kind of graph file."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Run

from circuit_tracer.graph import Graph


@pytest.fixture
def traced_graph(traced: Path) -> Graph:
    return Graph.load(traced)


def test_a_graph_file_becomes_a_page_beside_it(run: Run, traced: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = run("view", traced, "--html", page)
    assert outcome.code == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert f"wrote {page}" in outcome.out


def test_viewer_json_is_shown_as_it_is(run: Run, traced_graph: Graph, tmp_path: Path) -> None:
    path = traced_graph.to_json("mine", tmp_path)
    outcome = run("view", path)
    assert outcome.code == 0
    assert (tmp_path / "mine.html").exists()


def test_a_graph_writes_its_page_and_shows_itself_in_notebooks(traced_graph: Graph, tmp_path: Path) -> None:
    page = traced_graph.to_html(tmp_path / "graph.html", slug="mine")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert traced_graph._repr_html_().startswith("<iframe")


def test_a_missing_file_is_named(run: Run, tmp_path: Path) -> None:
    outcome = run("view", tmp_path / "absent.json")
    assert outcome.code == 2
    assert "absent.json" in outcome.err
