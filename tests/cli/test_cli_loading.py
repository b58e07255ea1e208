"""Every command that opens a model names it by the same options and refuses it in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.demo import MODEL, TRANSCODER
from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.transcoders import save_transcoders
from tests.support.command import Folders, Run
from tests.support.tiny import tiny_transcoder

OPENING = {
    "attribute": ("-p", "x", "--json"),
    "plan": ("--tokens", 5),
    "intervene": ("-p", "x", "--ablate", "0/1"),
    "steer": ("-p", "x", "--ablate", "0/1"),
    "patch": ("-p", "x", "-c", "y"),
    "validate": ("graph.safetensors",),
    "explain": ("graph.safetensors",),
    "evaluate": ("--data", "text.txt"),
    "features build": ("--data", "text.txt", "-o", "out"),
    "serve": ("--graph-file-dir", "graphs"),
}
NAMES = (
    "-t",
    "-m",
    "--revision",
    "--demo",
    "--device",
    "--dtype",
    "--lazy-encoder",
    "--lazy-decoder",
    "--feature-input-hook",
    "--feature-output-hook",
)


@pytest.mark.parametrize("command", OPENING)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            (),
            "name the transcoders with -t (folder, hub id, or neurons with -m MODEL), or use --demo for the small model",
        ),
        (("-t", "T", "--demo"), "--demo brings its own model and transcoder, and -t names T: leave one out"),
        (("--demo", "-m", "M"), "--demo brings its own model"),
        (("--demo", "--revision", "v1"), "leave it out"),
        (("--demo", "--device", "cuda"), "leave --device cuda out"),
        (("--demo", "--feature-input-hook", "mlp.hook_in"), "the demo's transcoder has its hooks"),
        (("-t", "./nowhere", "--device", "abacus"), "device 'abacus'"),
        (("-t", "./nowhere", "--device", "cpu"), "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_message_in_every_command(
    run: Run,
    traced: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: tuple[str, ...],
    said: str,
) -> None:
    if command == "serve" and not options:
        return  # it shows a folder without a model
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the capital of Texas is")
    outcome = run(*command.split(), *OPENING[command], *options)
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert "--json" in OPENING[command] or not outcome.out


@pytest.mark.parametrize("command", OPENING)
def test_one_set_of_options(run: Run, command: str) -> None:
    text = run(*command.split(), "--help").out
    assert all(f"  {name}" in text for name in NAMES)


def test_what_was_chosen(folders: Folders) -> None:
    assert (ModelOptions(demo=True).transcoders, ModelOptions(demo=True).model_name({})) == (TRANSCODER, MODEL)
    assert ModelOptions("T", "M").model_name({"model_name": "N"}) == "M"
    assert ModelOptions("T").model_name({"model_name": "N"}) == "N"
    loaded = ModelOptions(folders.transcoder, device="cpu", dtype="fp64").open()
    assert loaded.transcoders.dtype == torch.float64


def test_hooks_that_files_do_not_say_can_be_given(folders: Folders, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    save_transcoders(tiny_transcoder("plt", torch.float32), bare)
    (bare / "config.yaml").unlink()
    with pytest.raises(InputError, match="Give feature_input_hook and feature_output_hook"):
        ModelOptions(str(bare), folders.model, device="cpu").open()
    given = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    loaded = ModelOptions(str(bare), folders.model, device="cpu", **given).open()
    same = ReplacementModel.from_pretrained(folders.model, bare, device="cpu", **given)
    for model in (loaded, same):
        assert model.transcoders.feature_input_hook == "mlp.hook_in"
        assert model.transcoders.feature_output_hook == "hook_mlp_out"
    with pytest.raises(
        FileFormatError, match=r"config.yaml says feature_input_hook = 'hook_resid_mid', the argument says"
    ):
        ModelOptions(folders.transcoder, device="cpu", feature_input_hook="mlp.hook_in").open()


@pytest.mark.parametrize(
    "options", [("-m", "nobody/none@step1000"), ("-m", "nobody/none", "--revision", "step1000")], ids=" ".join
)
def test_a_revision_of_the_model_is_asked_for(
    run: Run, folders: Folders, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    import transformers

    asked: list[tuple[str, str | None]] = []

    def from_pretrained(name: str, **given: str | None) -> None:
        asked.append((name, given.get("revision")))
        raise OSError("offline")

    monkeypatch.setattr("transformers.utils.peft_utils.find_adapter_config_file", lambda *_, **__: None)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    outcome = run("attribute", "-t", folders.transcoder, *options, "-p", "x", "--json")
    assert outcome.code == 2
    assert "no language model at 'nobody/none" in outcome.err
    assert asked == [("nobody/none", "step1000")]


def test_the_demos_model_is_traced_by_neurons_without_its_transcoders_labels() -> None:
    chosen = ModelOptions(transcoder_set="neurons", demo=True)
    assert (chosen.model_name({}), chosen.transcoders, chosen.shipped) == (MODEL, "neurons", False)
    with pytest.raises(InputError, match="-m names another: leave one out"):
        ModelOptions(transcoder_set="neurons", demo=True, model="another")
