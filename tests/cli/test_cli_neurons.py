"""`-t neurons`: commands on a model without a dictionary, and what its graphs call things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer.attribution.neuron_choice import DEFAULT_NEURONS
from circuit_tracer.cli.options import Limits
from circuit_tracer.graph import Graph
from circuit_tracer.graph.words import feature_name
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.sizes import USUAL_ROWS
from circuit_tracer.viewer.server.engine import Engine
from tests.support.command import Folders, Run

PROMPT = "the capital of Texas is"


def test_a_trace_names_neurons_by_number_and_sign(folders: Folders, run: Run, tmp_path: Path) -> None:
    outcome = run(
        *("attribute", "-t", "neurons", "-m", folders.model, "-p", PROMPT, "-o", tmp_path / "g.safetensors"),
        *("--slug", "texas", "--graph_file_dir", tmp_path, "--max-feature-nodes", 30, "--node_threshold", 1.0),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("not monosemantic") == 1
    for said in ("30 of 360 active neurons", "of the effects of all 360", "other neurons"):
        assert said in outcome.out
    graph = Graph.load(tmp_path / "g.safetensors")
    assert f"3/642 is {feature_name(graph, 3, 642)}" in outcome.err  # how edits name what the graph calls a neuron
    document = json.loads((tmp_path / "texas.json").read_text())
    names = {node["node_id"]: node["clerp"] for node in document["nodes"]}
    assert document["metadata"]["left_over"] == "other neurons"
    for layer, position, index in graph.active_features.tolist():
        if (node := f"{layer}_{index}_{position}") in names:
            assert names[node] == f"L{layer} neuron {index // 2}{'-' if index % 2 else '+'}"
    grouped = run("group", tmp_path / "g.safetensors").out
    assert "  others   other neurons L" in grouped
    assert "  error  " not in grouped
    left = [node["clerp"] for node in document["nodes"] if node["feature_type"] == "mlp reconstruction error"]
    assert left
    assert set(left) == {"other neurons"}
    assert "active neurons" in repr(graph)
    assert "other neurons" in repr(graph)
    pruned = run("prune", tmp_path / "g.safetensors", "--node_threshold", 1.0)
    assert "30 of 30 neurons" in pruned.out
    assert "of other neurons, all tokens" in pruned.out


def test_what_is_not_there_takes_no_lines(folders: Folders, run: Run, tmp_path: Path) -> None:
    neurons, path = ("-t", "neurons", "-m", folders.model), tmp_path / "g.safetensors"
    assert " L2 neuron " in run("intervene", *neurons, "-p", PROMPT, "--set", "0/0@3=9").out
    edited = run("intervene", *neurons, "-p", PROMPT, "--ablate", "2/0@3")
    assert "0 features changed" in edited.out  # neurons of the last layer reach no other
    assert "most" not in edited.out
    assert run("attribute", *neurons, "-p", PROMPT, "-o", path, "--max-feature-nodes", 9).code == 0
    tested = run("validate", path, *neurons, "--no-random-control")
    assert "predicted against measured" in tested.out, tested.err
    assert "change of" not in tested.out  # nothing of neurons is perturbed


def test_info_and_plan_need_the_model_only(folders: Folders, run: Run) -> None:
    told = run("info", "neurons", "-m", folders.model, "--json")
    assert told.code == 0, told.err
    assert (told.json["neurons_a_layer"], told.json["features_a_layer"], told.json["layers"]) == (24, 48, 3)
    for given, nodes in ((("--max-feature-nodes", 40), 40), ((), DEFAULT_NEURONS)):
        planned = run("plan", "-t", "neurons", "-m", folders.model, "--tokens", 9, *given, "--json")
        assert planned.code == 0, planned.err
        assert planned.json["feature_nodes"] == pytest.approx(nodes, abs=8)  # rounded for a layer and position


def test_where_no_number_is_asked_neurons_have_their_own(folders: Folders) -> None:
    neurons = Engine(ReplacementModel.from_pretrained(folders.model, "neurons", device="cpu"))
    features = Engine(ReplacementModel.from_pretrained(folders.model, folders.transcoder, device="cpu"))
    assert (neurons.facts().feature_nodes, features.facts().feature_nodes) == (DEFAULT_NEURONS, USUAL_ROWS)
    assert [neurons.feature_nodes(asked) for asked in (0, 5)] == [0, 5]
    assert Limits().arguments(neurons=True)["max_feature_nodes"] is None
    assert Limits().arguments(neurons=False)["max_feature_nodes"] == USUAL_ROWS


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("info", "neurons"), "name the model with -m"),
        (("attribute", "-t", "neurons", "-p", PROMPT, "--json"), "name the model with -m"),
        (
            ("attribute", "-t", "neurons", "-m", "{model}", "--select", "width=16k", "-p", PROMPT, "--json"),
            "leave --select out",
        ),
    ],
    ids=["info without a model", "trace without a model", "options of files"],
)
def test_what_is_missing_or_idle_is_said(folders: Folders, run: Run, words: tuple[str, ...], says: str) -> None:
    outcome = run(*(word.format(model=folders.model) for word in words))
    assert outcome.code != 0
    assert says in outcome.err
