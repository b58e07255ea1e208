"""`circuit-tracer intervene`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuit_tracer.cli import edit_options
from circuit_tracer.cli.main import app
from circuit_tracer.errors import InputError
from tests.support.command import Folders
from tests.support.json_lines import require_lines

PROMPT = "the capital of Texas is"


def call(folders: Folders, *arguments: object) -> tuple[int, str, str]:
    given = ["intervene", "-t", folders.transcoder, "-m", folders.model, "--device", "cpu", *map(str, arguments)]
    result = CliRunner().invoke(app, given)
    if "--json" in given:
        require_lines(given, result.exit_code, result.stdout)
    return result.exit_code, result.stdout, result.stderr


def test_text_and_json(folders: Folders) -> None:
    code, out, err = call(folders, "-p", PROMPT, "--set", "0/3@2=5,1/4", "--ablate", "1/2@-1")
    assert code == 2, out  # 1/4 has no value: the number belongs to the whole list
    assert "0/3@2=5,1/4" in err
    code, out, err = call(folders, "-p", PROMPT, "--set", "0/3@2,1/4@all=5", "--ablate", "1/2@-1", "--top", 3)
    assert code == 0, err
    assert "0/3@2 set to 5" in out
    assert "1/4@all set to 5" in out
    assert "features changed" in out
    assert " feature at 'the'" in out
    code, out, err = call(folders, "-p", PROMPT, "--supernode", "S=0/3@2,1/4@3", "--add", "S=2", "--json")
    assert code == 0, err
    assert '"S plus 2"' in out


def test_heads(folders: Folders) -> None:
    heads = (
        "--head",
        "L0H1,L1H2@-1=zero",
        "--head",
        "L2H0@2:4=patch:the capital of France = Paris, so",
        "--head",
        "L2H1=mean",
    )
    code, out, err = call(
        folders, "-p", PROMPT, *heads, "--set", "0/3@2=5", "--head", "L1H0=pattern:the capital of Spain is"
    )
    assert code == 0, err
    for line in (
        "L0H1 set to 0",
        "L1H2@-1 set to 0",
        "L2H0@2:4 taken from another prompt",
        "L1H0 with the pattern of another prompt",
    ):
        assert f"edits       {line}" in out
    code, _, err = call(folders, "-p", PROMPT, "--head", "L0H1=freeze")
    assert code == 2
    assert "--live-attention" in err
    code, out, err = call(folders, "-p", PROMPT, "--head", "L0H1=freeze,zero", "--live-attention")
    assert code == 2
    code, out, err = call(folders, "-p", PROMPT, "--head", "L0H1=freeze", "--live-attention", "--json")
    assert code == 0, err
    assert '"changed_features": 0' in out


def test_a_graph_and_semantics(folders: Folders, traced: Path) -> None:
    for options in (
        ("--semantics", "constrained", "--layers", "0-2"),
        ("--semantics", "iterative", "--live-attention"),
        ("--take", "0/3@2", "--from", "the capital of France is"),
    ):
        code, out, err = call(folders, "-g", traced, "--set", "1/3@2=5", *options)
        assert code == 0, err
        assert "semantics" in out


@pytest.mark.few
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--ablate", "0/3"), "either --prompt"),
        (("-p", PROMPT), "say what to change"),
        (("-p", PROMPT, "--ablate", "three"), "LAYER/FEATURE"),
        (("-p", PROMPT, "--ablate", "0/3@later"), "not understood"),
        (("-p", PROMPT, "--ablate", "9/3"), "layers: 0 to 2"),
        (("-p", PROMPT, "--ablate", "0/3@17"), "positions 0 to 5"),
        (("-p", PROMPT, "--set", "0/3=1e39"), "not finite in float32"),
        (("-p", PROMPT, "--add", "0/3=-1e39"), "not finite in float32"),
        (("-p", PROMPT, "--take", "0/3"), "belong together"),
        (("-p", PROMPT, "--head", "L0H1"), "HEADS=ACTION"),
        (("-p", PROMPT, "--head", "0/1=zero"), "'0/1' names no head"),
        (("-p", PROMPT, "--head", "L0H1@later=zero"), "not understood"),
        (("-p", PROMPT, "--head", "L0H1=out"), "action is 'out'"),
        (("-p", PROMPT, "--head", "L0H1=patch"), "the other prompt"),
        (("-p", PROMPT, "--head", "L0H99=zero"), "there is no head L0H99"),
        (("-p", PROMPT, "--head", "L9H0=zero"), "there is no head L9H0"),
        (("-p", PROMPT, "--head", "L0H0@17=zero"), "positions 0 to 5"),
        (("-p", PROMPT, "--head", "L0H0=zero", "--head", "L0H0@1=mean"), "two edits of head L0H0 at position 1"),
        (("-p", PROMPT, "--ablate", "0/3", "--layers", "a-b", "--semantics", "iterative"), "range"),
    ],
)
def test_bad_input(folders: Folders, arguments: tuple[str, ...], expected: str) -> None:
    code, _, err = call(folders, *arguments)
    assert code == 2, err
    assert expected in err


def test_supernodes_hold_supernodes() -> None:
    named = edit_options.read_supernodes(["A=0/1@2", "B=A,1/5"])
    assert [str(feature) for feature in named["B"].features] == ["0/1", "1/5"]
    assert named["B"].features[0].position == 2
    with pytest.raises(InputError, match="NAME=FEATURES"):
        edit_options.read_supernodes(["A"])
