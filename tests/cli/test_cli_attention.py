"""`--attention` and `--adapter`: dictionaries beside those of -t, in one graph and in a run of many prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.many import open_run
from circuit_tracer.transcoders import TranscoderSet, save_transcoders
from tests.support.command import Folders, Run
from tests.support.tiny import tiny_transcoder

CONFIG = {
    "sae_type": "lorsa", "hook_point_in": "blocks.1.ln1.hook_normalized", "hook_point_out": "blocks.1.hook_attn_out",
    "d_model": 16, "n_qk_heads": 2, "d_qk_head": 4, "positional_embedding_type": "none", "act_fn": "relu",
}  # fmt: skip
SHAPES = {
    "W_Q": (2, 16, 4), "W_K": (2, 16, 4), "b_Q": (2, 4), "b_K": (2, 4), "W_V": (6, 16), "W_O": (6, 16), "b_V": (6,),
    "b_D": (16,),
}  # fmt: skip


@pytest.fixture(scope="module")
def lorsa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lorsa")
    (folder / "layer_1").mkdir()
    (folder / "layer_1" / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    write_tensors(folder / "layer_1" / "sae_weights.safetensors", tensors, {}, "it")
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_transcoders(tiny_transcoder("plt", torch.float32, seed=4, n_features=6), folder)
    return folder


def test_other_dictionaries_beside_the_transcoders(
    folders: Folders, run: Run, lorsa: Path, adapter: Path, tmp_path: Path
) -> None:
    given = ("-t", folders.transcoder, "--attention", lorsa, "--adapter", adapter, "--max-n-logits", 2)
    outcome = run("attribute", *given, "-p", "the capital of Texas is", "-o", tmp_path / "out.safetensors")
    assert outcome.code == 0, outcome.err
    graph = as_graph(tmp_path / "out.safetensors")
    assert [part.name for part in graph.parts] == ["transcoder", "adapter", "lorsa"]
    assert graph.provenance["attention"]["kind"] == "lorsa"
    assert list(graph.provenance["attention"]["nmse"]) == ["1"]
    feature = next(row for row in graph.active_features.tolist() if row[2] >= graph.parts[2].first)
    said = f"{feature[0]}/{feature[2]}@{feature[1]}"
    same = run("compare", tmp_path / "out.safetensors", tmp_path / "out.safetensors", "--node-threshold", 1, "--json")
    for node in same.json["nodes"]:
        if node["kind"] == "feature":
            part = next(each for each in reversed(graph.parts) if node["feature"] >= each.first)
            assert node["label"] == f"{part.name} L{node['layer']}/{node['feature'] - part.first}"
    assert {"error", "error of attention"} <= {node["label"] for node in same.json["nodes"]}
    edited = run("intervene", *given[:-2], "-p", "the capital of Texas is", "--ablate", said)
    assert edited.code == 0, edited.err


def test_a_run_keeps_which_dictionaries_it_was_begun_with(
    folders: Folders, run: Run, lorsa: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"id": "one", "prompt": "the capital of Texas is"}\n')
    given = ("-t", folders.transcoder, "--attention", lorsa, "--max-n-logits", 2, "--device", "cpu")
    begun = run("run", tmp_path / "prompts.jsonl", *given, "-o", tmp_path / "run")
    assert begun.code == 0, begun.err + begun.out
    found = open_run(tmp_path / "run")
    assert found.settings["opening"]["attention"] == str(lorsa)
    assert found.graph("one").attention


def test_a_command_without_graphs_says_that_it_has_no_use_for_it(folders: Folders, run: Run, lorsa: Path) -> None:
    outcome = run("plan", "-t", folders.transcoder, "--attention", lorsa, "--tokens", 8)
    assert outcome.code == 2
    assert "--attention would have no effect here" in outcome.err


def test_a_folder_without_such_a_dictionary_is_refused(folders: Folders, run: Run, tmp_path: Path) -> None:
    outcome = run(
        "attribute", "-t", folders.transcoder, "--attention", tmp_path, "-p", "a", "-o", tmp_path / "o.safetensors"
    )
    assert outcome.code == 2
    assert str(tmp_path) in outcome.err


def test_neurons_in_layers_without_transcoders(folders: Folders, run: Run, tmp_path: Path) -> None:
    one = tiny_transcoder("plt", torch.float32, n_features=6, input_hook="mlp.hook_in")
    save_transcoders(TranscoderSet({1: one[1]}, "mlp.hook_in", "hook_mlp_out"), tmp_path / "some")
    given = ("-t", tmp_path / "some", "-m", folders.model, "--elsewhere", "neurons", "--max-n-logits", 1)
    outcome = run("attribute", *given, "-p", "the capital of Texas is", "-o", tmp_path / "out.safetensors")
    assert outcome.code == 0, outcome.err
    assert [part.name for part in as_graph(tmp_path / "out.safetensors").parts] == ["transcoder", "neurons"]
