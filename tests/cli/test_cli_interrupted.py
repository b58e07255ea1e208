"""What is done when a command is interrupted is written, said, and gone on with; no name that is taken is replaced unasked."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.attribution.finished_rows import FinishedRows
from circuit_tracer.cli import outputs
from circuit_tracer.graph import Graph
from tests.support.command import Folders, Run

PROMPT = "the capital of Texas is"


@pytest.fixture
def trace(folders: Folders) -> tuple[object, ...]:
    return ("attribute", "-t", folders.transcoder, "-p", PROMPT, "--device", "cpu", "--batch-size", 4)


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Send this process a signal once so many blocks of rows are stored."""
    genuine = FinishedRows.add

    def arrange(number: int, blocks: int) -> None:
        left = iter(range(blocks))

        def add(store: FinishedRows, *block: Any) -> None:
            genuine(store, *block)
            if next(left, None) is None:
                monkeypatch.setattr(FinishedRows, "add", genuine)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(FinishedRows, "add", add)

    return arrange


def same(found: Path, expected: Path) -> None:
    one, other = Graph.load(found), Graph.load(expected)
    assert torch.equal(one.edges.weight, other.edges.weight)
    assert torch.equal(one.edges.source, other.edges.source)
    assert torch.equal(one.selected_features, other.selected_features)
    assert one.provenance["interrupted"] is False
    assert one.unfinished is None


@pytest.mark.slow("takes 1.4 s")
@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "g.safetensors"), (signal.SIGTERM, "g.pt"), (signal.SIGINT, None)], ids=str
)
def test_a_signal_writes_what_is_done_and_resume_ends_with_the_same_graph(
    run: Run,
    trace: tuple[object, ...],
    signalled: Callable[[int, int], None],
    tmp_path: Path,
    number: int,
    name: str | None,
) -> None:
    whole = tmp_path / "whole.safetensors"
    assert run(*trace, "-o", whole).code == 0
    place = ("--slug", "s", "--graph-file-dir", tmp_path / "v", *(("-o", tmp_path / name) if name else ()))
    aside = tmp_path / "v" / "s.interrupted.safetensors" if name is None else tmp_path / "g.interrupted.safetensors"
    kept = tmp_path / "g.safetensors" if name == "g.safetensors" else aside
    for blocks, more in ((9, ()), (5, ("--resume",))):
        signalled(number, blocks)
        ended = run(*trace, *place, *more)
        assert ended.code == 130
        assert f"{kept} holds what was done; the same command with --resume goes on" in ended.err
    done, of = Graph.load(kept).provenance["features"]
    assert 0 < done < of
    told = run("info", kept).out
    assert f"interrupted: {done:,} of {of:,} features" in told
    assert (
        json.loads((tmp_path / "v" / "s.json").read_text())["metadata"]["interrupted"] == f"{done:,} of {of:,} features"
    )

    finished = run(*trace, *place, "--resume")
    assert finished.code == 0, finished.err
    assert not aside.exists()
    if name == "g.safetensors":
        same(tmp_path / name, whole)
    elif name is not None:
        assert torch.equal(Graph.from_pt(tmp_path / name).adjacency_matrix, Graph.load(whole).adjacency_matrix)
    assert "interrupted" not in json.loads((tmp_path / "v" / "s.json").read_text())["metadata"]
    assert "1 of 1 prompts are traced already" in run(*trace, *place, "--resume").err


def test_an_interrupted_trace_leaves_an_older_whole_graph_alone(
    run: Run, trace: tuple[object, ...], signalled: Callable[[int, int], None], tmp_path: Path
) -> None:
    path = tmp_path / "g.safetensors"
    assert run(*trace, "-o", path).code == 0
    before = path.read_bytes()
    signalled(signal.SIGINT, 9)
    assert run(*trace, "-o", path).code == 130
    assert path.read_bytes() == before
    assert run(*trace, "-o", path, "--resume").code == 0
    same(path, path)
    assert [each.name for each in tmp_path.iterdir()] == ["g.safetensors"]


@pytest.mark.slow("takes 1.9 s")
def test_a_resume_with_something_else_is_refused_and_names_it(
    run: Run, folders: Folders, trace: tuple[object, ...], signalled: Callable[[int, int], None], tmp_path: Path
) -> None:
    path = tmp_path / "g.safetensors"
    signalled(signal.SIGINT, 9)
    assert run(*trace, "-o", path).code == 130
    other = ("attribute", "-t", folders.transcoder, "--device", "cpu", "-o", path, "--resume")
    for arguments, said in (
        ((*other, "-p", "the capital of France is"), "prompt is"),
        ((*other, "-p", PROMPT, "--max-feature-nodes", 20), "max_feature_nodes is"),
        ((*other, "-p", PROMPT, "--target", "Austin"), "targets is"),
        ((*other, "-p", PROMPT, "--keep-edge-mass", 0.5), "keep_edge_mass is"),
        ((*other, "-p", PROMPT, "--zero-positions", "0,1"), "zero_positions is"),
    ):
        refused = run(*arguments)
        assert refused.code == 2
        assert said in refused.err
        assert "without --resume" in refused.err
    assert run(*trace, "-o", path, "--resume").code == 0


def grouped(path: Path, *names: str) -> list[str]:
    """Put a supernode into a viewer's file by hand: of some features of it, and of nodes by name."""
    document = json.loads(path.read_text())
    features = [node["node_id"] for node in document["nodes"] if node["feature_type"] == "cross layer transcoder"]
    members = [features[0], features[-1], *names]
    document["qParams"] |= {"supernodes": [["by hand", *members]], "clerps": [[features[0], "mine"]]}
    path.write_text(json.dumps(document))
    return members


@pytest.mark.slow("takes 1.4 s")
def test_a_name_that_is_taken_is_not_replaced_unasked(
    run: Run, trace: tuple[object, ...], traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("--slug", "s", "--graph-file-dir", tmp_path / "v")
    path = tmp_path / "v" / "s.json"
    assert run(*trace, *place).code == 0
    before = path.read_bytes()
    for command in ((*trace, *place), ("prune", traced, *place), ("convert", traced, "-o", path)):
        refused = run(*command)
        assert refused.code == 2
        assert "--overwrite" in refused.err
        assert "s-2" in refused.err or command[0] == "convert"
    assert path.read_bytes() == before

    monkeypatch.setattr(outputs, "may_replace", lambda *_: False)  # it was free when the command began
    late = run("prune", traced, *place)
    assert (late.code, path.read_bytes()) == (0, before)
    assert "by now; this one is s-2" in late.err
    listed = json.loads((tmp_path / "v" / "graph-metadata.json").read_text())["graphs"]
    assert [each["slug"] for each in listed] == ["s", "s-2"]


@pytest.mark.parametrize("command", ["attribute", "prune", "convert"])
def test_groups_made_by_hand_move_to_the_new_graph(
    run: Run, trace: tuple[object, ...], traced: Path, tmp_path: Path, command: str
) -> None:
    path = tmp_path / "v" / "s.json"
    place = ("--slug", "s", "--graph-file-dir", tmp_path / "v", "--overwrite")
    words = {"attribute": (*trace, *place), "prune": ("prune", traced, *place)}
    words["convert"] = ("convert", traced, "-o", path, "--overwrite")
    (tmp_path / "v").mkdir()
    assert run(*words[command]).code == 0
    members = grouped(path)
    again = run(*words[command], "--node-threshold", 0.01)  # which would cut them
    assert again.code == 0, again.err
    document = json.loads(path.read_text())
    assert document["qParams"]["supernodes"] == [["by hand", *members]]
    assert document["qParams"]["clerps"] == [[members[0], "mine"]]
    assert set(members) <= {node["node_id"] for node in document["nodes"]}
    assert not list(path.parent.glob("*.before*"))

    grouped(path, "2_999_1")
    old = path.read_bytes()
    again = run(*words[command])
    assert "2_999_1 of the supernode 'by hand'" in again.err
    assert json.loads(path.read_text())["qParams"]["supernodes"] == [["by hand", *members]]
    assert (path.parent / "s.json.before").read_bytes() == old


def test_groups_of_another_prompt_are_set_aside(
    run: Run, folders: Folders, trace: tuple[object, ...], tmp_path: Path
) -> None:
    path, place = tmp_path / "s.json", ("--slug", "s", "--graph-file-dir", tmp_path, "--overwrite")
    assert run(*trace, *place).code == 0
    grouped(path)
    old = path.read_bytes()
    other = run("attribute", "-t", folders.transcoder, "-p", "the capital of France is", "--device", "cpu", *place)
    assert "another prompt or other transcoders" in other.err
    assert json.loads(path.read_text())["qParams"]["supernodes"] == []
    assert (tmp_path / "s.json.before").read_bytes() == old


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda document: document["metadata"].pop("prompt_tokens"), "prompt_tokens must be a list"),
        (lambda document: document.update(nodes=[]), "there are no nodes"),
        (lambda document: document["nodes"][0].pop("node_id"), "a node has no node_id"),
        (lambda document: document["nodes"][0].update(ctx_idx=99), "ctx_idx 99"),
        (lambda document: document["nodes"][0].update(layer="x", feature_type="logit"), "layer x"),
    ],
)
def test_a_page_that_could_show_nothing_is_not_written(
    run: Run, traced: Path, tmp_path: Path, broken: Callable[[Any], Any], said: str
) -> None:
    path = tmp_path / "g.json"
    assert run("convert", traced, "-o", path).code == 0
    document = json.loads(path.read_text())
    for name in ("digest", "graph_digest"):  # what was changed by hand has none
        document["metadata"].pop(name, None)
    broken(document)
    path.write_text(json.dumps(document))
    refused = run("view", path, "-o", tmp_path / "g.html")
    assert refused.code == 2
    assert said in refused.err
    assert not (tmp_path / "g.html").exists()


def test_prune_of_a_viewers_file_says_what_to_give(run: Run, traced: Path, tmp_path: Path) -> None:
    assert run("convert", traced, "-o", tmp_path / "graph.json").code == 0
    assert f"Give the one that it was made from: {traced}" in run("prune", tmp_path / "graph.json").err
    (tmp_path / "graph.json").rename(tmp_path / "alone.json")
    assert "attribute ... -o alone.safetensors" in run("prune", tmp_path / "alone.json").err


def test_what_convert_would_ignore_is_refused(run: Run, traced: Path, folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for arguments, said in (
        ((traced, out, "--view", "nonsense"), "no link to a viewer's page"),
        ((traced, out, "--labels", tmp_path), "holds no labels.json"),
        ((traced, tmp_path / "out.pt", "--scan", "x"), "--scan"),
        ((traced, tmp_path / "out.safetensors", "--node-threshold", 0.5), "--node-threshold"),
        ((folders.transcoder, tmp_path / "t", "--view", "http://x/?pinnedIds=1_2_3"), "--view"),
    ):
        refused = run("convert", arguments[0], "-o", *arguments[1:])
        assert refused.code == 2, refused.out
        assert said in refused.err
    assert not out.exists()
