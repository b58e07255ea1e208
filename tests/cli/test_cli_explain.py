"""`circuit-tracer explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer import Graph
from circuit_tracer.graph.attention_scores import AttentionScore
from tests.support.command import Folders, Run


@pytest.fixture
def given(folders: Folders) -> tuple[str, ...]:
    return ("-t", str(folders.transcoder), "-m", str(folders.model), "--device", "cpu")


def test_every_edge_is_split_and_kept(run: Run, traced: Path, given: tuple[str, ...]) -> None:
    done = run("explain", traced, *given, "--keep", 2)
    assert done.code == 0, done.err
    kept = Graph.load(traced).edge_heads
    assert kept is not None
    assert kept.keep == 2
    layer, head = kept.first[kept.first[:, 0, 0] >= 0][0, 0].tolist()
    for said in (f"edges      {len(kept)}", f"\nL{layer}H{head}  ", f"wrote      {traced}"):
        assert said in done.out


def test_one_edge_and_one_score(run: Run, traced: Path, given: tuple[str, ...], tmp_path: Path) -> None:
    graph, other = Graph.load(traced), tmp_path / "other.safetensors"
    at = int(graph.edges.weight.abs().argmax())
    ids = graph.nodes.ids()
    source, target = ids[int(graph.edges.source[at])], ids[int(graph.edges.target[at])]
    asked = ("--edge", f"{source}:{target}", "--score", "L2H1:-1:1:rest", "--paths", 3, "-o", other)
    done = run("explain", traced, *given, *asked, "--json")
    assert done.code == 0, done.err
    (edge,), (score,) = done.json["edges"], done.json["scores"]
    assert edge["weight"] == pytest.approx(float(graph.edges.weight[at]))
    assert sum(edge["hops"]) == pytest.approx(edge["weight"], rel=1e-4)
    assert (score["layer"], score["head"], score["key"], score["versus"]) == (2, 1, 1, "rest")
    assert sum(score["key_side"]["parts"].values()) == pytest.approx(score["score"], rel=1e-3)
    (kept,) = Graph.load(other).scores
    assert kept == AttentionScore.from_dict(score)
    assert Graph.load(traced).scores == []
    done = run("explain", traced, *given, *asked, "--no-pairs")
    assert f"edge       {source} -> {target}" in done.out
    assert f"score      {kept.label}" in done.out
    assert "pairs " not in done.out


def test_what_ids_name_is_said_in_words(run: Run, traced: Path, given: tuple[str, ...], tmp_path: Path) -> None:
    graph = Graph.load(traced)
    layout, ids = graph.nodes.layout, graph.nodes.ids()
    edges = graph.edges
    across = graph.nodes.position[edges.source] < graph.nodes.position[edges.target]
    into = across & (edges.target >= layout.target_start) & (edges.source < layout.n_features)
    at = int(edges.weight.abs().masked_fill(~into, 0).argmax())
    source, target = int(edges.source[at]), int(edges.target[at])
    layer, index, position = (int(part) for part in ids[source].split("_"))
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({str(layer): {str(index): "states"}}))
    called = f"states at {graph.token_texts[position]!r}"
    output = f"output {graph.targets.label[target - layout.target_start]!r}"

    done = run("explain", traced, *given, "--labels", labels, "--edge", f"{ids[source]}:{ids[target]}")
    assert f"{called} -> {output}" in done.out, done.err
    assert "direct     +0\nfirst      L" in done.out
    every = run("explain", traced, *given).out
    for said in ("first head  ", "  error at ", " -> output "):
        assert said in every
    done = run("explain", traced, *given, "--score", f"L2H1:-1:{position}")
    for said in ("biases ", "  feature at ", "  decoder biases at ", f"  token {graph.token_texts[-1]!r}"):
        assert said in done.out


def test_json_has_every_edge(run: Run, traced: Path, given: tuple[str, ...]) -> None:
    rows = run("explain", traced, *given, "--json").json["edges"]
    graph = Graph.load(traced)
    assert graph.edge_heads is not None
    assert len(rows) == len(graph.edge_heads)
    row = next(each for each in rows if each["first"])
    told = run("explain", traced, *given, "--edge", f"{row['source']}:{row['target']}", "--json").json["edges"][0]
    for name in ("weight", "direct", "mean_hops"):
        assert row[name] == pytest.approx(told[name], abs=1e-6)
    assert row["first"][0] == pytest.approx(told["first"][0], abs=1e-6)


def test_scores_join_those_that_are_kept(run: Run, traced: Path, given: tuple[str, ...]) -> None:
    for scores in (("L2H1:-1:1", "L1H0:3:2"), ("L0H0:2:1", "L2H1:-1:1")):
        done = run("explain", traced, *given, "--no-pairs", "--score", scores[0], "--score", scores[1])
        assert done.code == 0, done.err
    kept = [(each.layer, each.head, each.key) for each in Graph.load(traced).scores]
    assert kept == [(1, 0, 2), (0, 0, 1), (2, 1, 1)]


@pytest.mark.few
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-o", "graph.pt"), "name a .safetensors file"),
        (("--edge", "0_1_2"), "write SOURCE:TARGET"),
        (("--edge", "0_1_2:nowhere"), "the graph has no node"),
        (("--score", "5.3:1:0"), "names no head"),
        (("--score", "L2H1:1"), "is not L5H3:QUERY:KEY"),
        (("--score", "L2H1:3:1::key"), "names a side"),
        (("--score", "L9H0:1:0"), "layer 9 does not exist"),
        (("--score", "L2H9:1:0"), "there is no head L2H9"),
        (("--score", "L2H1:1:3"), "key 3 is behind query 1"),
        (("--keep", "0"), "--keep"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(run: Run, traced: Path, given: tuple[str, ...], options: tuple[str, ...], expected: str) -> None:
    done = run("explain", traced, *given, *options)
    assert done.code == 2, done.err
    assert expected in done.err
    assert done.out == ""
