"""`circuit-tracer evaluate` on a tiny model with tiny transcoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from circuit_tracer.transcoders import save_transcoders
from tests.support.autoencoders import saved_autoencoders
from tests.support.command import TEXT, Folders, Run
from tests.support.tiny import tiny_transcoder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.txt"
    path.write_text((TEXT + " ") * 30, encoding="utf-8")
    return path


@pytest.fixture
def configuration(tmp_path: Path, text: Path, folders: Folders) -> Path:
    lines = [json.dumps({"text": TEXT}) for _ in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {{name: {folders.model}}}\n"
        f"data: {{kind: jsonl, path: {tmp_path / 'data.jsonl'}, context_length: 16, held_out: 0.5}}\n"
        "dictionary: {features: 20}\noptimizer: {warmup_steps: 0}\n"
        "evaluation: {tokens: 100, replacement_tokens: 40, prompts: [the capital of Texas], random_baseline: false}\n"
        f"run: {{out: {tmp_path / 'out'}, tokens: 100, batch: 10}}\n",
        encoding="utf-8",
    )
    return path


@pytest.mark.slow("takes 3.1 s")
def test_evaluation_of_a_text_file_prints_a_table_and_writes_a_report(
    run: Run, folders: Folders, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    arguments = [
        "-t",
        folders.transcoder,
        "--data",
        text,
        "-o",
        out,
        "--context-length",
        24,
        "-p",
        TEXT,
        "-p",
        "a state",
    ]
    outcome = run("evaluate", *arguments)
    assert outcome.code == 0, outcome.err
    assert "| NMSE, mean over layers |" in outcome.out
    assert "random dictionary" in outcome.out
    assert f"wrote {out / 'README.md'}" in outcome.out
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert found["conditions"]["text"] == "held-out.txt"
    assert found["conditions"]["transcoders"] == "transcoder"
    assert [graph["prompt"] for graph in found["results"]["dictionary"]["graphs"]] == [TEXT, "a state"]
    assert found["model"]["predictions"] > 50
    first = (out / "evaluation.json").read_bytes()
    run("evaluate", *arguments)
    assert (out / "evaluation.json").read_bytes() == first


def test_json_is_one_line_and_nothing_else(run: Run, folders: Folders, text: Path) -> None:
    outcome = run(
        "evaluate", "-t", folders.transcoder, "-m", folders.model, "--data", text, "--no-graphs", "--no-random-baseline",
        "--replacement-tokens", 0, "--context-length", 20, "--tokens", 60, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) == 1
    assert list(outcome.json["results"]) == ["dictionary"]
    assert outcome.json["model"] is None
    assert outcome.json["conditions"]["data"]["sequences"] == 3
    assert outcome.json["conditions"]["settings"]["max_norm_ratio"] == 10


@pytest.mark.slow("takes 1.8 s")
def test_a_configuration_says_what_to_read_and_measure(run: Run, folders: Folders, configuration: Path) -> None:
    outcome = run("evaluate", "-t", folders.transcoder, "--data", configuration, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json["conditions"]
    assert found["settings"]["prompts"] == ["the capital of Texas"]
    assert found["settings"]["random_baseline"] is False
    assert found["data"]["tokens_read"] == 96
    changed = run(
        "evaluate", "-t", folders.transcoder, "--data", configuration, "--json", "--tokens", 32, "--random-baseline"
    )
    assert changed.json["conditions"]["data"]["tokens_read"] == 32
    assert list(changed.json["results"]) == ["dictionary", "random"]
    refused = run("evaluate", "-t", folders.transcoder, "--data", configuration, "--context-length", 8)
    assert refused.code == 2
    assert "--context-length" in refused.err
    refused = run("evaluate", "-t", folders.transcoder, "--data", configuration, "--data-kind", "text")
    assert refused.code == 2
    assert "--data-kind" in refused.err


def test_token_files_and_a_per_layer_baseline(run: Run, folders: Folders, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(300) % 40 + 4)
    per_layer = save_transcoders(tiny_transcoder("plt", torch.float32), tmp_path / "plt", folders.model)
    outcome = run(
        "evaluate", "-t", folders.transcoder, "--data", tmp_path / "ids.npy", "--context-length", 32, "--no-graphs",
        "--per-layer-baseline", per_layer, "--json", "--max-norm-ratio", 0, "--verbose",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert list(outcome.json["results"]) == ["dictionary", "random", "per_layer"]
    assert outcome.json["conditions"]["settings"]["max_norm_ratio"] is None


def test_bad_input_is_one_sentence(run: Run, folders: Folders, text: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        outcome = run("evaluate", "-t", folders.transcoder, *arguments)
        assert outcome.code == 2, outcome.out + outcome.err
        return outcome.err

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "what.bin").write_text("")
    (tmp_path / "file").write_text("")
    assert "holds no text to evaluate on" in error("--data", tmp_path / "empty.txt")
    assert "no file at" in error("--data", tmp_path / "absent.txt")
    assert "cannot tell what" in error("--data", tmp_path / "what.bin")
    assert "contradict" in error("--data", text, "-p", "a", "--no-graphs")
    assert "cannot write into" in error("--data", text, "-o", tmp_path / "file")
    assert "the model reads at most 64" in error("--data", text, "--context-length", 100)
    assert "Missing option" in run("evaluate", "-t", folders.transcoder).err
    assert "no such folder" in run("evaluate", "-t", tmp_path / "nowhere", "--data", text).err


def test_help_names_every_option(run: Run) -> None:
    outcome = run("evaluate", "--help")
    assert outcome.code == 0
    assert "--per-layer-baseline" in outcome.out


@pytest.mark.slow("takes 2 s")
def test_defaults_are_those_of_configurations(run: Run, folders: Folders, text: Path) -> None:
    from circuit_tracer.training.config.schema import EvaluationSection
    from circuit_tracer.training.evaluation.settings import USUAL_PROMPTS, USUAL_TOKENS

    outcome = run("evaluate", "-t", folders.transcoder, "--data", text, "--json")
    assert outcome.code == 0, outcome.err
    section, found = EvaluationSection(), outcome.json["conditions"]["settings"]
    assert (found["tokens"], found["held_out_prompts"]) == (USUAL_TOKENS, USUAL_PROMPTS)
    assert (found["replacement_tokens"], found["prompts"]) == (section.replacement_tokens, section.prompts)


@pytest.mark.slow("takes 1.3 s")
def test_autoencoders_are_measured_shown_and_not_traced(run: Run, folders: Folders, text: Path, tmp_path: Path) -> None:
    saes = saved_autoencoders(tmp_path / "saes", folders.model)
    outcome = run("evaluate", "-t", saes, "--data", text, "--context-length", 24, "-o", tmp_path / "report")
    assert outcome.code == 0, outcome.err
    assert "stream zero" in outcome.out
    assert "not measured: Graphs of prompts" in outcome.out
    found = json.loads((tmp_path / "report" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["conditions"]["layers"] == [0, 2]
    assert len(found["results"]["dictionary"]["spliced"]) == 2
    card = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert "circuit-tracer evaluate -m MODEL -t" in card
    assert "circuit-tracer attribute" not in card
    shown = run("info", saes, "-m", folders.model, "--json").json
    assert (shown["what"], shown["layers_with_autoencoders"]) == ("sparse autoencoders", [0, 2])
    assert (shown["reads_and_writes"], shown["activation"]) == ("hook_resid_post", "jump_relu")
    assert "layers with autoencoders  [0, 2]" in run("info", saes, "-m", folders.model).out
    refused = run("attribute", "-t", saes, "-m", folders.model, "-p", TEXT, "-o", tmp_path / "graph.safetensors")
    assert refused.code == 2
    assert "replaces no MLP" in refused.err
    assert "circuit-tracer evaluate" in " ".join(refused.err.split())
    beside = run("evaluate", "-t", saes, "--data", text, "--per-layer-baseline", folders.transcoder)
    assert beside.code == 2
    assert "no transcoders are measured beside" in " ".join(beside.err.split())
    elsewhere = run("evaluate", "-t", saes, "--data", text, "--feature-input-hook", "mlp.hook_in")
    assert elsewhere.code == 2
    assert "says feature_input_hook = 'mlp.hook_in'" in " ".join(elsewhere.err.split())


def test_autoencoders_of_heads_are_rebuilt_and_not_spliced(
    run: Run, folders: Folders, text: Path, tmp_path: Path
) -> None:
    saes = saved_autoencoders(tmp_path / "saes", folders.model, point="attn.hook_z")
    outcome = run("evaluate", "-t", saes, "--data", text, "--context-length", 24, "--no-random-baseline")
    assert outcome.code == 0, outcome.err
    assert "attn.hook_z is not the stream that goes on" in " ".join(outcome.out.split())


def test_autoencoders_of_another_place_or_model_are_refused(run: Run, folders: Folders, tmp_path: Path) -> None:
    elsewhere = saved_autoencoders(tmp_path / "neurons", folders.model, point="mlp.hook_post")
    refused = run("info", elsewhere)
    assert refused.code == 2
    assert "neurons; autoencoders are read that stand in the residual stream" in " ".join(refused.err.split())
    far = saved_autoencoders(tmp_path / "far", folders.model, layers=(1,))
    (far / "layer_1").rename(far / "layer_7")
    assert "stands at layer 7" in " ".join(run("info", far).err.split())
    cfg = far / "layer_7" / "cfg.json"
    cfg.write_text(cfg.read_text().replace("blocks.1.", "blocks.7."))
    assert "has a layer 7" in " ".join(run("info", far, "-m", folders.model).err.split())


def test_graphs_and_what_belongs_to_them_contradict_no_graphs(run: Run, folders: Folders, text: Path) -> None:
    for option in (["--held-out-prompts", 3], ["--faithfulness"]):
        outcome = run("evaluate", "-t", folders.transcoder, "--data", text, "--no-graphs", *option)
        assert outcome.code == 2
        assert "contradict" in outcome.err
