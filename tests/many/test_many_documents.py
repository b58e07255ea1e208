"""examples/*.sbatch, modal_run.py and the pages about runs: every command and option that they give exists."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from circuit_tracer.cli.main import app
from circuit_tracer.cli.run import Sharing
from circuit_tracer.errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "how-to" / f"{name}.md" for name in ("run-many", "slurm", "ray")]
SCRIPT, MODAL = ROOT / "examples" / "run.sbatch", ROOT / "examples" / "modal_run.py"


def commands() -> list[list[str]]:
    """The words behind `circuit-tracer run` in the pages (in quotes of other commands too), the script and the Modal file."""
    joined = [path.read_text(encoding="utf-8").replace("\\\n", " ") for path in (*PAGES, SCRIPT)]
    lines = [line for text in joined for line in text.splitlines() if not line.startswith("#")]
    found = (re.search(r"circuit-tracer run ([^`'#]+)", line) for line in lines)
    given = [[word for word in shlex.split(match[1]) if word != "$@"] for match in found if match]
    for part in ast.walk(ast.parse(MODAL.read_text(encoding="utf-8"))):
        if isinstance(part, ast.List) and ast.unparse(part).startswith("['circuit-tracer', 'run'"):
            words = [word.value if isinstance(word, ast.Constant) else "x" for word in part.elts]
            given.append([str(word) for word in words[2:-1]])  # the last are options that are handed on
    return given


COMMANDS = [words for words in commands() if "-o" in words]


def test_they_are_found() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_exists(words: list[str]) -> None:
    root = get_command(app)
    command = root.get_command(root.make_context("circuit-tracer", [], resilient_parsing=True), "run")
    given = command.make_context("run", list(words)).params
    assert given["output"]


@pytest.mark.parametrize("name", ["run", "train"])
def test_the_files_for_slurm_are_scripts(name: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "examples" / f"{name}.sbatch")], check=True)


@pytest.mark.parametrize("option", ["cluster", "gpus_per_worker", "cpus_per_worker"])
def test_options_of_ray_need_ray(option: str) -> None:
    value = "10.0.0.1:6379" if option == "cluster" else 1.0
    assert getattr(Sharing(engine="ray", **{option: value}), option) == value
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} is for Ray: give --engine ray"):
        Sharing(**{option: value})
