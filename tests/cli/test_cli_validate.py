"""`circuit-tracer validate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer import Graph
from circuit_tracer.circuits import Grouping, Supernode, keep_grouping
from circuit_tracer.cli.validate import read_groups
from circuit_tracer.errors import InputError
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.validation import ValidationReport
from circuit_tracer.transcoders import save_transcoders
from tests.support.command import Folders, Run
from tests.support.tiny import tiny_transcoder


def test_the_report_is_printed_and_kept(run: Run, folders: Folders, traced: Path, tmp_path: Path) -> None:
    given = ("-t", folders.transcoder, "-m", folders.model, "--device", "cpu")
    graph = Graph.load(traced)
    layer, _, index = graph.active_features[graph.selected_features][-1].tolist()
    graph.labels = {(layer, index): "unmistakable"}
    graph.save(traced)
    done = run("validate", traced, *given)
    assert done.code == 0, done.err
    assert run("view", traced, "--node_threshold", 1.0, "--edge_threshold", 1.0).code == 0
    assert "unmistakable" in traced.with_suffix(".html").read_text(encoding="utf-8")
    kept = Graph.load(traced).validation
    assert kept is not None
    for sentence in (*kept.verdict, *kept.distrust, "random, live", "change of MLP outputs", f"wrote      {traced}"):
        assert sentence in done.out
    save_transcoders(tiny_transcoder("plt"), tmp_path / "plt", folders.model)
    other = tmp_path / "other.safetensors"
    options = ("-o", other, "--no-random-control", "--control", f"per-layer={tmp_path / 'plt'}", "--json")
    done = run("validate", traced, *given, *options)
    assert done.code == 0, done.err
    report = ValidationReport.from_json(json.loads(done.out))
    assert set(report.controls) == {"per-layer"}
    assert Graph.load(other).validation == report
    assert Graph.load(traced).validation == kept


def test_why_a_head_looks_somewhere_is_tested_too(run: Run, folders: Folders, tmp_path: Path) -> None:
    given = ("-t", folders.transcoder, "-m", folders.model, "--device", "cpu")
    graph, prompt = tmp_path / "graph.safetensors", "the capital of Texas is"
    done = run("attribute", *given, "-p", prompt, "--target", "attn:L2H1:-1:1:2", "-o", graph)
    assert done.code == 0, done.err
    done = run("validate", graph, *given, "--no-random-control")
    assert done.code == 0, done.err
    assert "score of \"L2H1 'is'@5 -> 'the'@1 rather than 'capital'@2\"" in done.out
    assert "score of the target" in done.out
    kept = Graph.load(graph).validation
    assert kept is not None
    assert kept.measure == "score"
    assert "score without the circuit" in kept.summary()["numbers"]


@pytest.mark.slow("takes 1.2 s")
def test_groups_that_the_graph_keeps_are_tested(run: Run, folders: Folders, traced: Path, tmp_path: Path) -> None:
    given = ("-t", folders.transcoder, "-m", folders.model, "--device", "cpu")
    graph = Graph.load(traced)
    first, second = graph.nodes.ids()[:2]
    output = graph.nodes.ids()[-1]
    groups = Supernode("a pair", "detects", (first, second)), Supernode("", "logit", (output,))
    keep_grouping(graph, Grouping(groups))
    kept = graph.save(tmp_path / "kept.safetensors")
    done = run("validate", kept, *given, "--no-random-control")
    assert done.code == 0, done.err
    assert "  a pair" in done.out
    report = Graph.load(kept).validation
    assert report is not None
    assert report.groups is not None
    assert [each.name for each in report.groups.effects] == ["a pair"]
    assert read_groups(graph, False, None) is None
    view = View(supernodes=(("by hand", (first, output)),))
    written = graph.to_json("g", tmp_path, scan="tiny", node_threshold=1, edge_threshold=1, view=view)
    assert read_groups(graph, None, written) == {"by hand": [first, output]}
    plain = graph.to_json("plain", tmp_path, scan="tiny", view=View())
    with pytest.raises(InputError, match="holds no supernode"):
        read_groups(graph, None, plain)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--groups",), "keeps no groups; group its nodes first"),
        (("-o", "graph.pt"), "cannot hold the report"),
        (("--control", "plt"), "NAME=FOLDER"),
        (("--node-threshold", "1.5"), "node-threshold"),
        (("--demo",), "leave one out"),
    ],
)
def test_bad_input(run: Run, folders: Folders, traced: Path, options: tuple[str, ...], expected: str) -> None:
    done = run("validate", traced, "-t", folders.transcoder, "-m", folders.model, *options)
    assert done.code == 2
    assert expected in done.err
    assert Graph.load(traced).validation is None


def test_a_graph_of_another_model_is_refused(run: Run, traced: Path) -> None:
    done = run("validate", traced, "--demo")
    assert done.code == 2
    assert "Load the model that the graph was traced on" in done.err
