"""`circuit-tracer steer`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from circuit_tracer.cli.main import app
from tests.support.command import Folders
from tests.support.json_lines import require_lines

PROMPT = "the capital of Texas is"


def call(folders: Folders, *arguments: object) -> tuple[int, str, str]:
    given = ["steer", "-t", folders.transcoder, "-m", folders.model, "--device", "cpu", *map(str, arguments)]
    result = CliRunner().invoke(app, given)
    if "--json" in given:
        require_lines(given, result.exit_code, result.stdout)
    return result.exit_code, result.stdout, result.stderr


def test_side_by_side_streamed_and_json(folders: Folders, tmp_path: Path) -> None:
    code, out, err = call(folders, "-p", PROMPT, "--set", "0/3=5", "--max-new-tokens", 4, "--stream")
    assert code == 0, err
    assert "[unsteered]" in out
    assert "0/3 set to 5" in out
    save_file({"vector": torch.randn(16)}, tmp_path / "way.safetensors")
    arguments = ("-p", PROMPT, "--direction", f"1:{tmp_path / 'way.safetensors'}=3", "--temperature", 1, "--json")
    texts = []
    for cache in ("--cache", "--no-cache"):
        code, out, err = call(folders, *arguments, "--max-new-tokens", 6, cache)
        assert code == 0, err
        texts.append(json.loads(out))
    assert texts[0] == texts[1]
    assert texts[0]["interventions"] == ["way behind layer 1, strength 3"]
    code, out, err = call(
        folders, "-p", PROMPT, "--scale", ",".join(f"1/{n}" for n in range(20)) + "=2", "--max-new-tokens", 2
    )
    assert code == 0, err  # some are silent on the prompt
    code, out, err = call(folders, *arguments, "--alone", "--max-new-tokens", 2)
    assert json.loads(out)["unsteered"] is None


def test_activations_of_another_prompt(folders: Folders) -> None:
    other = ("--take", "0/3@2,1/4", "--from", "the capital of France is", "--from-position", 4)
    code, out, err = call(folders, "-p", PROMPT, *other, "--max-new-tokens", 2, "--json")
    assert code == 0, err
    assert json.loads(out)["interventions"] == ["0/3@2 taken from another prompt", "1/4 taken from another prompt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "say what to change"),
        (("--take", "0/3"), "belong together"),
        (("--take", "0/3", "--from", "the capital of France is"), "--from-position"),
        (("--set", "0/3=5", "--stream", "--json"), "choose one"),
        (("--direction", "way"), "LAYER:FILE=STRENGTH"),
        (("--direction", "1:nowhere.safetensors=2"), "no such file"),
        (("--set", "0/3=5", "--max-new-tokens", "100"), "context of 64"),
        (("--scale", "0/3@0=5"), "0 times anything is 0"),
    ],
)
def test_bad_input(folders: Folders, arguments: tuple[str, ...], expected: str) -> None:
    code, _, err = call(folders, "-p", PROMPT, *arguments)
    assert code == 2, err
    assert expected in err


def test_damaged_directions(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"a": torch.zeros(16), "b": torch.zeros(16)}, tmp_path / "two.safetensors")
    for name, expected in (("text", "not a safetensors file"), ("two", "2 tensors")):
        code, _, err = call(folders, "-p", PROMPT, "--direction", f"1:{tmp_path / name}.safetensors=2")
        assert code == 2
        assert expected in err
