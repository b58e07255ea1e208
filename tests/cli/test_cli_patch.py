"""`circuit-tracer patch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from command import Folders
from typer.testing import CliRunner

from circuit_tracer.cli.main import Commands
from circuit_tracer.cli.patch import patch

CLEAN, CORRUPTED = "the capital of Texas is", "the capital of France is"


def call(folders: Folders, *arguments: object) -> tuple[int, str, str]:
    app = typer.Typer(cls=Commands, context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
    app.command("patch")(patch)
    app.command("other")(lambda: None)
    given = ["patch", "-t", folders.transcoder, "-m", folders.model, "--device", "cpu", *map(str, arguments)]
    result = CliRunner().invoke(app, given)
    return result.exit_code, result.stdout, result.stderr


def test_text_and_files(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ("--csv", tmp_path / "t.csv", "--picture", tmp_path / "t.svg")
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-p", CLEAN, "-c", "the capital is"), "6 and 4 tokens"),
        (("-p", CLEAN, "-c", CLEAN), "same tokens"),
        (("-p", CLEAN, "-c", CORRUPTED, "--instead", "Paris"), "--answer"),
        (("-p", CLEAN, "-c", CORRUPTED, "--answer", "Austin Paris"), "not one known token"),
        (("-p", CLEAN, "-c", CORRUPTED, "--answer", "Austin", "--sites", "keys"), "unknown"),
    ],
)
def test_bad_input(folders: Folders, arguments: tuple[str, ...], expected: str) -> None:
    code, _, err = call(folders, *arguments)
    assert code == 2, err
    assert expected in err
