"""`circuit-tracer train`: keys as options, what can be asked before a run, and a run on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from circuit_tracer.cli.train import split_overrides
from circuit_tracer.errors import InputError, ResourceError
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.training.config.files import load, preset_names
from circuit_tracer.training.config.keys import keys
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.run import requirements as plan
from circuit_tracer.training.run import trainer
from circuit_tracer.training.run.progress import ProgressDisplay
from tests.support.command import Folders, Run
from tests.support.train_cases import quick


@pytest.fixture
def config(folders: Folders, tmp_path: Path) -> Iterator[Path]:
    """A configuration file for the tiny model: four steps on the words it knows."""
    words = "the capital of Texas is Austin Dallas state containing France Paris a"
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": words}) + "\n" for _ in range(60)))
    raw = {
        "model": {"name": folders.model, "device": "cpu"},
        "data": {
            "kind": "jsonl",
            "path": str(tmp_path / "text.jsonl"),
            "context_length": 8,
            "held_out": 0.3,
            "epochs": None,
        }
        | {"statistics_tokens": 64, "buffer_tokens": 64},
        "dictionary": {"features": 32},
        "sparsity": {"active": 4.0},
        "optimizer": {"warmup_steps": 1},
        "evaluation": {
            "tokens": 64,
            "replacement_tokens": 32,
            "prompts": [],
            "held_out_prompts": 0,
            "random_baseline": False,
        },
        "run": {"out": str(tmp_path / "run"), "tokens": 128, "batch": 32, "log_every": 1, "checkpoint_every_steps": 2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    with quick():
        yield path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the trainer, which does nothing."""
    seen: list[dict[str, Any]] = []

    def train(config: TrainingConfig, *, resume: bool, listener: Any) -> None:
        seen.append({"config": config, "resume": resume, "listener": listener})

    monkeypatch.setattr(trainer, "train", train)
    return seen


def test_help_shows_every_key_with_its_description(run: Run) -> None:
    outcome = run("train", "--help")
    assert outcome.code == 0
    words = " ".join(outcome.out.split())
    for name, key in keys().items():
        assert f"--{name}" in words
        assert key.description.split()[-1] in words.replace("- ", "-")  # lines are broken at hyphens too
    assert "Tokens of a step. [default: 4096]" in words
    for preset in preset_names():
        assert preset in words


def test_keys_are_options_before_and_after_the_configuration(run: Run, calls: list[dict[str, Any]]) -> None:
    options = ("--run.batch", 1024, "--data.held-out=0.02", "--run.wandb=", "--optimizer.learning_rate", "1e-3")
    for order in ((*options[:2], "gpt2", *options[2:]), ("gpt2", *options), (*options, "gpt2")):
        outcome = run("train", *order)
        assert outcome.code == 2, "an empty text is no project"
        outcome = run("train", *(option for option in order if option != "--run.wandb="), "--resume")
        assert outcome.code == 0, outcome.err
        config = calls.pop()["config"]
        assert (config.run.batch, config.data.held_out, config.optimizer.learning_rate) == (1024, 0.02, 1e-3)
        assert config.dictionary == load("gpt2").dictionary


def test_the_trainer_gets_what_was_asked_for(run: Run, calls: list[dict[str, Any]]) -> None:
    assert run("train", "pythia-70m").code == run("train", "pythia-70m", "--resume").code == 0
    assert [call["resume"] for call in calls] == [False, True]
    assert isinstance(calls[0]["listener"], ProgressDisplay)


def test_of_several_processes_one_speaks(
    run: Run, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    outcome = run("train", "pythia-70m")
    assert not isinstance(calls[0]["listener"], ProgressDisplay)
    assert outcome.out == outcome.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt2", "--run.bach", "3"], "unknown key run.bach; did you mean run.batch?"),
        (["gpt2", "--learning-rate", "3"], "unknown key learning_rate; did you mean optimizer.learning_rate?"),
        (["gpt2", "--resum"], "unknown key resum"),
        (["gpt2", "--run.batch"], "--run.batch has no value; expected a whole number, at least 1. Tokens of a step."),
        (["gpt2", "--run.batch", "--plan"], "--run.batch has no value"),
        (["gpt2", "--run.batch", "x"], 'run.batch is "x"; expected a whole number'),
        (["gpt3"], "did you mean the preset gpt2?"),
        ([], "Missing argument"),
        (["gpt2", "more"], "unexpected extra argument"),
        (["gpt2", "--run.start_from", "a", "--run.start-from=b"], "--run.start_from is given twice, as a and as b"),
    ],
)
def test_mistakes_are_named_before_anything_happens(
    run: Run, calls: list[dict[str, Any]], arguments: list[str], message: str
) -> None:
    outcome = run("train", *arguments)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not calls


def test_options_of_the_command_are_not_keys() -> None:
    own = {"--print-config", "--resume"}
    found = split_overrides(["--print_config", "gpt2", "--run.seed", "-1", "--", "--resume"], own)
    assert found == ({"run.seed": "-1"}, ["--print_config", "gpt2", "--", "--resume"])
    with pytest.raises(InputError, match=r"unknown key run\.sed; did you mean run\.seed"):
        split_overrides(["--run.sed=3"], own)


def test_print_config_is_a_file_that_trains_the_same(run: Run, tmp_path: Path) -> None:
    outcome = run("train", "gpt2", "--print-config", "--run.batch", "2048")
    assert outcome.code == 0
    (tmp_path / "mine.yaml").write_text(outcome.out)
    assert load(tmp_path / "mine.yaml") == load("gpt2", {"run.batch": "2048"})
    again = run("train", tmp_path / "mine.yaml", "--print_config")
    assert again.out == outcome.out


def test_plan_says_what_a_run_needs_and_stops(
    run: Run, config: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run("train", config, "--plan")
    assert outcome.code == 0, outcome.err
    for part in (
        "3 layers of 32 features",
        "memory of cpu",
        "moments",
        "the disk of",
        "time: about",
        "an estimate from",
    ):
        assert part in outcome.out
    monkeypatch.setattr(plan.Plan, "require_fits", _refuse)
    outcome = run("train", config, "--plan")
    assert (outcome.code, outcome.err) == (2, "error: too large\n")
    assert "moments" in outcome.out, "the numbers are shown all the same"
    assert not calls


def _refuse(_: plan.Plan) -> None:
    raise ResourceError("too large")


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_interrupted_before_its_first_checkpoint_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "train", interrupted)
    outcome = run("train", "gpt2")
    assert outcome.code == 130
    assert "before the first checkpoint" in outcome.err


def test_a_tiny_run_and_its_continuation(
    run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run("train", config)
    assert outcome.code == 0, outcome.err
    assert "step 4/4" in outcome.err
    for name in ("transcoder", "transcoder/README.md", "transcoder/evaluation.json", "log.jsonl", "checkpoints"):
        assert f"wrote {tmp_path / 'run' / name}\n" in outcome.out
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "evaluation" not in line] == [1, 2, 3, 4]
    refused = run("train", config)
    assert refused.code == 2
    assert "--resume" in refused.err
    resumed = run("train", tmp_path / "run", "--resume", "--json")  # the folder knows its configuration
    assert resumed.code == 0, resumed.err
    assert str(tmp_path / "run" / "transcoder") in resumed.json["files"]
    assert load(tmp_path / "run") == load(config)
    planned = run("train", tmp_path / "run", "--resume", "--run.tokens", 160, "--plan")
    assert "for the last 1 of 5 steps of 32 tokens" in planned.out
    longer = run("train", tmp_path / "run", "--resume", "--run.tokens", 160)
    assert longer.code == 0, longer.err
    assert "from here on: run.tokens 128 -> 160" in " ".join(longer.err.split())
    assert "step 5/5" in longer.err
    assert load(tmp_path / "run").run.tokens == 160
    refused = run("train", tmp_path / "run", "--resume", "--dictionary.features", 64)
    assert refused.code == 2
    assert "dictionary.features (32 -> 64): the weights are of that kind" in " ".join(refused.err.split())
    refused = run("train", config, "--run.out", tmp_path / "tuned", "--run.start_from", tmp_path / "nothing")
    assert refused.code == 2
    assert f"no such folder: {tmp_path / 'nothing'}" in " ".join(refused.err.split())
    monkeypatch.setattr(trainer, "train", interrupted)
    outcome = run("train", tmp_path / "run", "--resume")
    assert outcome.code == 130
    assert f"step 5 is kept; go on later with: circuit-tracer train {tmp_path / 'run'} --resume" in outcome.err


def test_find_prints_a_rate_and_writes_nothing_else(run: Run, config: Path, tmp_path: Path) -> None:
    outcome = run("train", config, "--find", "--json")
    assert outcome.code == 0, outcome.err
    assert "trying 3 to 8 learning rates, 4 steps of 32 tokens each: about" in outcome.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["find.json"]
    written = json.loads((tmp_path / "run" / "find.json").read_text())
    assert outcome.json["learning_rate"] == pytest.approx(written["learning_rate"])
    assert f"--optimizer.learning_rate {written['learning_rate']:.2g}" in outcome.err
    assert len(written["trials"]) >= 3
    refused = run("train", config, "--find", "--resume")
    assert refused.code == 2
    assert "leave --resume out" in refused.err


@pytest.mark.parametrize("point", ["attn.hook_z", "hook_attn_out"])
def test_autoencoders_of_attention_are_trained_and_taken(
    run: Run, config: Path, folders: Folders, tmp_path: Path, point: str
) -> None:
    trained = run(
        "train", config, "--dictionary.kind", "sae", "--dictionary.point", point, "--dictionary.layers", "[0, 2]"
    )
    assert trained.code == 0, trained.err
    shown = run("info", tmp_path / "run" / "transcoder", "--json").json
    assert (shown["reads_and_writes"], shown["layers_with_autoencoders"]) == (point, [0, 2])
    assert "--attention" in shown["use"]
    outcome = run(
        "intervene", "-t", tmp_path / "run" / "transcoder", "-p", "the capital of Texas", "--set", "2/3=2", "--json"
    )
    assert outcome.code == 0, outcome.err
    given = ("-t", folders.transcoder, "--attention", tmp_path / "run" / "transcoder", "--max-n-logits", 1)
    traced = run("attribute", *given, "-p", "the capital of Texas", "-o", tmp_path / "graph.safetensors")
    assert traced.code == 0, traced.err
    graph = as_graph(tmp_path / "graph.safetensors")
    assert list(graph.provenance["attention"]["nmse"]) == ["0", "2"]
    assert (graph.nodes.feature[: graph.nodes.layout.n_features] >= graph.parts[-1].first).any()
