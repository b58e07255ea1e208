"""`circuit-tracer view`: one page from every kind of graph file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from circuit_tracer.demo import FEATURES
from circuit_tracer.features.labels import read_labels
from circuit_tracer.graph import Graph
from tests.support.command import Run


@pytest.fixture
def traced_graph(traced: Path) -> Graph:
    return Graph.load(traced)


def test_a_graph_file_becomes_a_page_beside_it(run: Run, traced: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = run("view", traced, "-o", page)
    assert outcome.code == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert f"wrote {page}" in outcome.out


def test_without_a_graph_the_page_opens_one(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "viewer.html"
    assert run("view", "-o", page).code == 0
    assert '<script type="application/json"' not in page.read_text(encoding="utf-8")
    refused = run("view", "-o", page, "--features", FEATURES)
    assert refused.code == 2
    assert "--features has no effect without a graph" in refused.err


def test_viewer_json_is_shown_as_it_is(run: Run, traced_graph: Graph, tmp_path: Path) -> None:
    path = traced_graph.to_json("mine", tmp_path)
    outcome = run("view", path)
    assert outcome.code == 0
    assert (tmp_path / "mine.html").exists()


def test_labels_of_features_name_what_a_viewers_file_does_not(run: Run, traced_graph: Graph, tmp_path: Path) -> None:
    labels, graph = read_labels(FEATURES), traced_graph
    found = [(layer, index) for layer, _, index in graph.active_features[graph.selected_features].tolist()]
    named, other, *_ = sorted(set(found) & set(labels))
    path = graph.to_json("mine", tmp_path, labels={named: "the file's"}, node_threshold=1.0, edge_threshold=1.0)
    assert run("view", path, "--features", FEATURES).code == 0
    shown = (tmp_path / "mine.html").read_text(encoding="utf-8")
    assert shown.count('"clerp":"the file') == found.count(named)
    assert json.dumps(labels[other], ensure_ascii=False) in shown


def test_a_packed_file_is_shown(run: Run, traced_graph: Graph, tmp_path: Path) -> None:
    path = traced_graph.to_json("mine", tmp_path)
    packed = tmp_path / "other.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    outcome = run("view", packed)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "other.html").exists()


def test_thresholds_for_what_is_pruned_are_refused(run: Run, traced_graph: Graph, tmp_path: Path) -> None:
    path = traced_graph.to_json("mine", tmp_path)
    outcome = run("view", path, "--edge-threshold", 0.9)
    assert outcome.code == 2
    assert "leave --edge-threshold out" in outcome.err


def test_a_graph_writes_its_page_and_shows_itself_in_notebooks(traced_graph: Graph, tmp_path: Path) -> None:
    page = traced_graph.to_html(tmp_path / "graph.html", slug="mine")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert traced_graph._repr_html_().startswith("<iframe")


def test_a_grouped_graph_is_pruned_as_its_groups_were(run: Run, traced: Path, tmp_path: Path) -> None:
    assert run("group", traced, "--node-threshold", "0.6").code == 0
    page = tmp_path / "page.html"

    def pruned_at(*options: str) -> tuple[float, str]:
        done = run("view", traced, "-o", page, *options)
        assert done.code == 0, done.err
        data = page.read_text(encoding="utf-8").split('id="graph-data">')[1].split("</script>")[0]
        return json.loads(data)["metadata"]["node_threshold"], done.err

    assert pruned_at() == (0.6, "")
    assert pruned_at("--node-threshold", "0.6") == (0.6, "")
    threshold, said = pruned_at("--node-threshold", "0.9")
    assert threshold == 0.9
    assert "the groups were made at --node-threshold 0.6" in said


def test_a_missing_file_is_named(run: Run, tmp_path: Path) -> None:
    outcome = run("view", tmp_path / "absent.json")
    assert outcome.code == 2
    assert "absent.json" in outcome.err
