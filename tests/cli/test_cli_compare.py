"""`circuit-tracer compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer import Graph
from circuit_tracer.many.comparison import Comparison
from tests.support.command import Folders, Run


def test_a_graph_with_itself_and_with_an_edit(run: Run, folders: Folders, traced: Path, tmp_path: Path) -> None:
    page = tmp_path / "difference.html"
    done = run("compare", traced, traced, "-o", page)
    assert done.code == 0, done.err
    assert "Nothing differs" in done.out
    assert 'id="comparison-data"' in page.read_text(encoding="utf-8")

    graph = Graph.load(traced)
    layer, position, index = graph.active_features[0].tolist()
    given = ("-t", folders.transcoder, "-m", folders.model, "--device", "cpu")
    edit, written = f"{layer}/{index}@{position}", tmp_path / "difference.json"
    done = run("compare", traced, *given, "--ablate", edit, "--top", "3", "-o", written)
    assert done.code == 0, done.err
    found = Comparison.from_json(json.loads(written.read_text()))
    assert found.same == ["prompt", "model", "dictionary"]
    assert found.b.edits == [f"{layer}/{index}@{position} set to 0"]
    assert f"{layer}_{index}_{position}" in {node.id for node in found.nodes if node.within == "a"}
    for part in ("what changes it most, along all paths:", "(went)", f"wrote      {written}", found.verdict[0]):
        assert part in done.out

    told = json.loads(run("compare", traced, traced, "--positions", "0:0,1:2", "--json").out)
    assert told["positions"] == "map"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "give a second graph"),
        (("--ablate", "0/1@2"), "-t, or use --demo"),
        (("GRAPH", "--positions", "left"), "--positions is 'left'"),
        (("GRAPH", "-o", "difference.txt"), "end it in .html or .json"),
        (("GRAPH", "--target", "nothing"), "'nothing' is no target of both"),
    ],
    ids=["one graph", "no model", "positions", "ending", "target"],
)
def test_bad_input(run: Run, traced: Path, options: tuple[str, ...], expected: str) -> None:
    done = run("compare", traced, *(traced if each == "GRAPH" else each for each in options))
    assert done.code == 2
    assert expected in done.err
