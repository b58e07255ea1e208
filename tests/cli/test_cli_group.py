"""`circuit-tracer group`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer import Graph
from circuit_tracer.circuits import kept_grouping
from tests.support.command import Folders, Run


def test_groups_are_printed_and_kept(run: Run, folders: Folders, traced: Path, tmp_path: Path) -> None:
    done = run("group", traced, "--node-threshold", "0.9")
    assert done.code == 0, done.err
    kept = kept_grouping(Graph.load(traced))
    assert kept is not None
    assert kept.settings["node_threshold"] == 0.9
    assert kept.score is not None
    assert not kept.score.measured
    for part in ("by the graph alone", "“capital”", "share of its input", f"wrote      {traced}"):
        assert part in done.out

    other = tmp_path / "other.safetensors"
    given = ("-t", folders.transcoder, "-m", folders.model, "--device", "cpu")
    done = run("group", traced, *given, "-o", other, "--purity", "0.5", "--max-layers", "1", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    measured = kept_grouping(Graph.load(other))
    assert measured is not None
    assert measured.to_json() == {name: told[name] for name in ("supernodes", "settings", "score")}
    assert told["score"]["measured"]
    assert {"purity": 0.5, "max_layers": 1}.items() <= told["settings"].items()
    assert [each["members"] for each in told["circuit"]] != []
    assert kept_grouping(Graph.load(traced)) == kept


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-o", "graph.pt"), "cannot hold the groups"),
        (("--purity", "1.5"), "purity"),
        (("-m", "some/model"), "name them with -t"),
    ],
    ids=["no place for groups", "purity", "a model alone"],
)
def test_bad_input(run: Run, traced: Path, options: tuple[str, ...], expected: str) -> None:
    done = run("group", traced, *options)
    assert done.code == 2
    assert expected in done.err
