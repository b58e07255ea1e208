"""`prune`, `convert` and `info` on the files of a tiny trace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from circuit_tracer.graph import Graph, prune_graph
from circuit_tracer.graph.files.formats import read_graph
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.graph.subgraph import subgraph
from circuit_tracer.transcoders import load_transcoder_from_hub, save_transcoders
from tests.support.command import Folders, Run
from tests.support.tiny import tiny_model, tiny_transcoder


def test_prune_writes_the_pruned_graph(traced: Path, run: Run, tmp_path: Path) -> None:
    whole = Graph.load(traced)
    outcome = run(
        "prune", traced, "-o", tmp_path / "small.safetensors", "--node_threshold", 0.5, "--policy", "paper", "--json"
    )
    assert outcome.code == 0, outcome.err
    pruned = prune_graph(whole, 0.5, policy="paper")
    small = Graph.load(tmp_path / "small.safetensors")
    assert len(small.selected_features) == int(pruned.node_mask[whole.nodes.layout.features].sum())
    assert len(small.edges) == int(pruned.kept_edges.sum()) == outcome.json["edges"]
    assert len(small.edges) < len(whole.edges)


def test_the_sum_rule_survives_pruning(traced: Path) -> None:
    whole = Graph.load(traced)
    small = subgraph(whole, prune_graph(whole, 0.5))
    assert small.residual is not None
    assert small.residual < 1e-5
    names = {tuple(row) for row in small.active_features[small.selected_features].tolist()}
    assert names <= {tuple(row) for row in whole.active_features[whole.selected_features].tolist()}


def test_pruning_nothing_changes_nothing(traced: Path) -> None:
    whole = Graph.load(traced)
    result = prune_graph(whole)
    everything = type(result)(
        torch.ones_like(result.node_mask),
        torch.ones_like(result.kept_edges),
        result.cumulative_scores,
        result.influence,
        result.edges,
    )
    same = subgraph(whole, everything)
    assert torch.equal(same.edges.source, whole.edges.source)
    assert torch.equal(same.edges.weight, whole.edges.weight)
    assert same.residual == whole.residual


def test_prune_writes_viewer_files(traced: Path, run: Run, tmp_path: Path) -> None:
    outcome = run("prune", traced, "--slug", "again", "--graph_file_dir", tmp_path / "view", "--edge_threshold", 0.9)
    assert outcome.code == 0, outcome.err
    document = json.loads((tmp_path / "view" / "again.json").read_text())
    assert document["metadata"]["pruning_settings"]["edge_threshold"] == 0.9
    assert "completeness" in outcome.out


def test_a_viewers_file_is_no_graph_file(traced: Path, run: Run, tmp_path: Path) -> None:
    viewed = Graph.load(traced).to_json("viewed", tmp_path)
    for command in (("prune", viewed), ("validate", viewed, "-o", tmp_path / "g.safetensors", "--demo")):
        outcome = run(*command)
        assert outcome.code == 2
        assert "Give the one that it was made from" in outcome.err


def test_prune_needs_both_viewer_flags(traced: Path, run: Run) -> None:
    assert run("prune", traced, "--slug", "again").code == 2


@pytest.mark.parametrize("name", ["g.pt", "g.safetensors", "g.graphml"])
def test_graphs_convert_there_and_back(traced: Path, run: Run, tmp_path: Path, name: str) -> None:
    outcome = run("convert", traced, "-o", tmp_path / name)
    assert outcome.code == 0, outcome.err
    assert run("convert", tmp_path / name, "-o", tmp_path / "back.safetensors").code == 0
    before, after = Graph.load(traced), Graph.load(tmp_path / "back.safetensors")
    assert torch.equal(before.edges.source, after.edges.source)
    assert torch.equal(before.edges.weight, after.edges.weight)


def test_node_link_json(traced: Path, run: Run, tmp_path: Path) -> None:
    outcome = run("convert", traced, "-o", tmp_path / "g.json", "--to", "node-link")
    assert outcome.code == 0, outcome.err
    assert torch.equal(read_graph(tmp_path / "g.json").edges.weight, Graph.load(traced).edges.weight)


def test_json_is_the_viewers_by_default(traced: Path, run: Run, tmp_path: Path) -> None:
    assert run("convert", traced, "-o", tmp_path / "g.json").code == 0
    assert json.loads((tmp_path / "g.json").read_text())["metadata"]["slug"] == "g"
    outcome = run("convert", tmp_path / "g.json", "-o", tmp_path / "h.safetensors")
    assert outcome.code == 2
    assert "viewer's file" in outcome.err


def test_what_is_not_there_is_said_with_names_that_are_near(run: Run, tmp_path: Path, traced: Path) -> None:
    near = f"Did you mean {traced}?"
    for words, said in (
        (("info", traced.with_suffix(".safetensor")), near),
        (("view", traced.with_stem("grahp")), f"no such file: {traced.with_stem('grahp')}. {near}"),
        (("info", "no-such-thing"), "no file or folder no-such-thing here"),
        (("info", tmp_path / "no" / "such.pt"), f"There is no folder {tmp_path / 'no'}"),
        (("run", traced.with_suffix(".safetensor"), "--demo", "-o", tmp_path / "run"), near),
        (("trace", "-p", "x"), "there is no command trace; circuit-tracer attribute does that"),
    ):
        outcome = run(*words)
        assert outcome.code == 2
        assert said in outcome.err
    (tmp_path / "page.html").touch()
    assert "was made of a graph and is none" in run("info", tmp_path / "page.html").err
    (tmp_path / "activations").mkdir()
    (tmp_path / "activations" / "manifest.json").write_text("{}")  # of given activations, and of no run
    assert "holds no transcoder files" in run("info", tmp_path / "activations").err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "<graphml>", "<a/>"])
@pytest.mark.parametrize("suffix", [".json", ".graphml", ".pt", ".safetensors"])
def test_damaged_files_are_bad_input(run: Run, tmp_path: Path, content: str, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_text(content)
    outcome = run("convert", path, "-o", tmp_path / "out.safetensors")
    assert outcome.code == 2, outcome.err
    assert "bad" in outcome.err


def test_convert_names_the_endings_it_knows(traced: Path, run: Run, tmp_path: Path) -> None:
    outcome = run("convert", traced, "-o", tmp_path / "g.xyz")
    assert outcome.code == 2
    assert ".graphml" in outcome.err


def test_transcoders_become_native(folders: Folders, run: Run, tmp_path: Path) -> None:
    outcome = run("convert", folders.transcoder, "-o", tmp_path / "native")
    assert outcome.code == 0, outcome.err
    before, _ = load_transcoder_from_hub(folders.transcoder, device="cpu", lazy_decoder=False)
    after, config = load_transcoder_from_hub(str(tmp_path / "native"), device="cpu", lazy_decoder=False)
    assert config["model_name"] == folders.model
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name


def test_info_of_a_graph(traced: Path, run: Run, tmp_path: Path) -> None:
    outcome = run("info", traced, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["what"] == "graph"
    assert outcome.json["active_features"] == len(as_graph(traced).active_features)
    assert run("convert", traced, "-o", tmp_path / "view.json").code == 0
    assert run("info", tmp_path / "view.json", "--json").json["slug"] == "view"
    assert "targets" in run("info", traced).out


def test_info_of_a_model(folders: Folders, run: Run) -> None:
    found = run("info", folders.model, "--json").json
    assert (found["what"], found["n_layers"], found["d_model"]) == ("model", 3, 16)
    assert "LlamaForCausalLM" in run("info", folders.model).out


def test_info_of_a_transcoder_that_fits(folders: Folders, run: Run) -> None:
    found = run("info", folders.transcoder, "--model", folders.model, "--json").json
    assert (found["layers"], found["features_a_layer"], found["d_model"]) == (3, 20, 16)
    assert found["fits"] == folders.model


def test_info_of_a_transcoder_that_does_not_fit(folders: Folders, run: Run, tmp_path: Path) -> None:
    save_transcoders(tiny_transcoder("plt", torch.float32, d_model=12), tmp_path / "narrow")
    outcome = run("info", tmp_path / "narrow", "--model", folders.model)
    assert outcome.code == 2
    assert "d_model 12" in outcome.err
    tiny_model("olmo2", torch.float32).save_pretrained(tmp_path / "olmo")
    save_transcoders(tiny_transcoder("plt", torch.float32, input_hook="ln2.hook_normalized"), tmp_path / "normalized")
    outcome = run("info", tmp_path / "normalized", "--model", tmp_path / "olmo")
    assert outcome.code == 2
    assert "no norm before its MLP" in outcome.err


@pytest.mark.parametrize("what", ["./nowhere", "nowhere", "no.gguf"])
def test_info_of_nothing(run: Run, what: str) -> None:
    outcome = run("info", what)
    assert outcome.code == 2
    assert "nowhere" in outcome.err or "no.gguf" in outcome.err


def test_info_of_a_hub_id_that_is_a_model(folders: Folders, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from circuit_tracer.models.outline import outline

    monkeypatch.setattr("circuit_tracer.transcoders.loading.hub_config", lambda _: {})
    names = ["config.json", "model.safetensors", "README.md"]
    monkeypatch.setattr("circuit_tracer.transcoders.hub.list_files", lambda _: names)
    monkeypatch.setattr("circuit_tracer.models.outline.outline", lambda _: outline(folders.model))
    assert run("info", "org/model", "--json").json["what"] == "model"


def test_info_of_transcoders_on_the_hub(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_name": "org/model", "model_kind": "transcoder_set"}
    monkeypatch.setattr("circuit_tracer.transcoders.loading.hub_config", lambda _: config)
    found = run("info", "org/set", "--model", "org/model", "--json").json
    assert found["model_kind"] == "transcoder_set"
    assert "unknown until its files are here" in found["fits"]


def test_info_of_transcoders_on_the_hub_that_have_no_config(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"all/layer_{i}_width_{width}/params.safetensors" for i in (1, 2) for width in ("16k", "262k")]
    monkeypatch.setattr("circuit_tracer.transcoders.loading.hub_config", lambda _: {})
    monkeypatch.setattr("circuit_tracer.transcoders.hub.list_files", lambda _: names)
    found = run("info", "org/set", "--select", "width=16k", "--json").json
    assert (found["layers_with_transcoders"], found["files"]) == ([1, 2], 2)
    outcome = run("info", "org/set")
    assert outcome.code == 2
    assert "width: 16k, 262k" in outcome.err


@pytest.mark.parametrize("command", ["info", "convert"])
@pytest.mark.parametrize(
    ("name", "said"),
    [("none.safetensors", "no such file"), ("none.pt", "no such file"), ("pipe", "is a pipe or a device")],
)
def test_what_is_called_like_a_graph_is_not_taken_for_a_hub_id(
    command: str, name: str, said: str, run: Run, tmp_path: Path
) -> None:
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    out = ["-o", tmp_path / "out.pt"] if command == "convert" else []
    outcome = run(command, tmp_path / name, *out)
    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "out.pt").exists()
