"""A tiny model with a tokenizer and transcoders, as folders on disk, and a way to run the command line in process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.command import Folders, Outcome, Run, save_folders
from tests.support.json_lines import require_lines


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return save_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run() -> Run:
    from circuit_tracer.cli.main import app

    def call(*arguments: object, stdin: str | None = None) -> Outcome:
        words = [str(each) for each in arguments]
        result = CliRunner().invoke(app, words, input=stdin)
        if "--json" in words:
            require_lines(words, result.exit_code, result.stdout)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture(scope="session")
def traced_once(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from circuit_tracer import ReplacementModel, attribute

    model = ReplacementModel.from_pretrained(folders.model, folders.transcoder, device="cpu")
    return attribute("the capital of Texas is", model).save(tmp_path_factory.mktemp("traced") / "graph.safetensors")


@pytest.fixture
def traced(traced_once: Path, tmp_path: Path) -> Path:
    """A native graph file of a tiny trace."""
    return Path(shutil.copy(traced_once, tmp_path))
