"""The code blocks of README.md and docs/ run: each page in a folder of its own, from top to bottom.

Blocks of Python share one namespace a page. Commands of this package run in this process, where nothing of a shell stands
around them; the rest goes to bash.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from circuit_tracer.cli.main import app
from tests.support.code_blocks import INSTALLATION, PAGES, ROOT, Block, blocks, commands

pytestmark = pytest.mark.slow("traces, tests and trains what the pages do: seconds a page")

WAITING = {
    "serve",
    "start-server",
    "mcp",
    "--server",
}  # until Ctrl-C; their options are checked by test_blocks_are_read
SHELL = re.compile(r"[|<>$;&*?`(){}]")
COMPOUND = re.compile(r"^(for|while|if|cd|export|[A-Za-z_]+=\S*$)\b", re.MULTILINE)
EXAMPLE = re.compile(r"^python examples/\w+\.py$")  # run by tests/examples
WITH_BLOCKS = [page for page in PAGES if any(block.is_run for block in blocks(page))]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a page works in; its `circuit-tracer` and `python` are this tree's and this interpreter."""
    programs, here = tmp_path / "bin", tmp_path / "here"
    programs.mkdir()
    here.mkdir()
    for name, words in {"circuit-tracer": " -m circuit_tracer", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (programs / name).chmod(0o755)
    for name in ("circuit_tracer", "examples"):  # what pages name by its place in the repository
        (here / name).symlink_to(ROOT / name)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("BROWSER", "true")  # what --open opens
    monkeypatch.setenv("COLUMNS", "120")
    return here


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.is_run and block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
        elif block.is_run:
            _run_shell(block)


def _run_shell(block: Block) -> None:
    if COMPOUND.search(block.text):
        _bash(block, block.text)
        return
    for command in commands(block):
        words = shlex.split(command, comments=True)
        if INSTALLATION.match(command) or EXAMPLE.match(command) or set(words) & WAITING:
            continue
        if words[0] == "circuit-tracer" and not SHELL.search(re.sub(r"'[^']*'|\"[^\"$`]*\"|#.*", "", command)):
            outcome = CliRunner().invoke(app, words[1:])
            assert outcome.exit_code == 0, f"{block}: {command}\n{outcome.output}"
        else:
            _bash(block, command)


def _bash(block: Block, script: str) -> None:
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{block}: {script}\n{done.stdout}{done.stderr}"
