"""`circuit-tracer patch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuit_tracer.cli.main import app
from tests.support.command import Folders
from tests.support.json_lines import require_lines

CLEAN, CORRUPTED = "the capital of Texas is", "the capital of France is"


def call(folders: Folders, *arguments: object) -> tuple[int, str, str]:
    given = ["patch", "-t", folders.transcoder, "-m", folders.model, "--device", "cpu", *map(str, arguments)]
    result = CliRunner().invoke(app, given)
    if "--json" in given:
        require_lines(given, result.exit_code, result.stdout)
    return result.exit_code, result.stdout, result.stderr


def test_text_and_files(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ("-o", tmp_path / "t.csv", "-o", tmp_path / "t.svg")
    code, out, err = call(folders, "-p", CLEAN, "-c", CORRUPTED, "--answer", "Austin", "--instead", "Paris", *files)
    assert code == 0, err
    assert "Texas / France" in out
    assert (tmp_path / "t.csv").read_text().startswith("site,layer")
    assert (tmp_path / "t.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments",
    [
        ("--answer", "Austin", "--noising", "--sites", "head", "--together"),
        ("--answer", "id:9", "--log-probability", "--sites", "none", "--features", "3"),
        ("--answer", "Austin", "--approximate", "2", "--layers", "1-2"),
    ],
)
def test_json(folders: Folders, arguments: tuple[str, ...]) -> None:
    code, out, err = call(folders, "-p", CLEAN, "-c", CORRUPTED, *arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["patches"]
    assert found["estimated"] == ("--approximate" in arguments)


def test_positions_and_named_features(folders: Folders) -> None:
    question = ("-p", CLEAN, "-c", CORRUPTED, "--answer", "Austin", "--json")
    arguments = (*question, "--positions", "4,-1")
    code, out, err = call(folders, *arguments, "--sites", "resid", "--layers", "1", "--features", "0/3,1/4@2")
    assert code == 0, err
    found = [(row["site"], row["layer"], row["position"], row["unit"]) for row in json.loads(out)["patches"]]
    assert found == [
        ("resid", 1, 4, None),
        ("resid", 1, 5, None),
        ("feature", 0, 4, 3),
        ("feature", 0, 5, 3),
        ("feature", 1, 2, 4),
    ]
    for how in ((), ("--approximate", 1)):
        code, out, err = call(folders, *arguments, "--sites", "none", "--features", 3, *how)
        assert code == 0, err
        assert {row["position"] for row in json.loads(out)["patches"]} <= {4, 5}
    code, out, err = call(folders, *question, "--sites", "resid", "--layers", "1", "--positions", "3:5")
    assert [row["position"] for row in json.loads(out)["patches"]] == [3, 4]


@pytest.mark.few
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-p", CLEAN, "-c", CORRUPTED, "--positions", "3", "--together"), "choose one"),
        (("-p", CLEAN, "-c", CORRUPTED, "--positions", "3,last"), "'last' is no position"),
        (("-p", CLEAN, "-c", CORRUPTED, "--answer", "Austin", "--positions", "9"), "positions 0 to 5"),
        (("-p", CLEAN, "-c", CORRUPTED, "--features", "three"), "LAYER/FEATURE"),
        (("-p", CLEAN, "-c", CORRUPTED, "--features", "0/3@2:4"), "must be one position"),
        (("-p", CLEAN, "-c", CORRUPTED, "--features", "0/3", "--approximate", "2"), "say how many"),
        (("-p", CLEAN, "-c", "the capital is"), "6 and 4 tokens"),
        (("-p", CLEAN, "-c", CLEAN), "same tokens"),
        (("-p", CLEAN, "-c", CORRUPTED, "--instead", "Paris"), "--answer"),
        (("-p", CLEAN, "-c", CORRUPTED, "--answer", "Austin Paris"), "not one known token"),
        (("-p", CLEAN, "-c", CORRUPTED, "--answer", "Austin", "--sites", "keys"), "unknown"),
        (("-p", CLEAN, "-c", CORRUPTED, "-o", "table.txt"), "end it in .csv, .png"),
    ],
)
def test_bad_input(folders: Folders, arguments: tuple[str, ...], expected: str) -> None:
    code, _, err = call(folders, *arguments)
    assert code == 2, err
    assert expected in err


def test_prompts_of_one_answer_need_something_to_judge_by() -> None:
    prompt = "the capital of the state containing {} is"
    asked = ["patch", "--demo", "-p", prompt.format("Dallas"), "-c", prompt.format("Houston")]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2
    assert "both prompts are answered with 'Austin'" in refused.stderr
    assert "--answer TOKEN" in refused.stderr
