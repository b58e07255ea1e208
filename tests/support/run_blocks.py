"""Running the code blocks of a page: in a folder of its own, from top to bottom.

Blocks of Python share one namespace a page. Commands of this package run in this process, where nothing of a shell stands
around them and no memory is given: that counts what the process holds, which is not the reader's. The rest goes to bash.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from circuit_tracer.cli.main import app
from tests.support.code_blocks import INSTALLATION, PAGES, ROOT, Block, blocks, commands, not_printed

# what waits for Ctrl-C; tests/docs/test_blocks_are_read.py checks its options
WAITING = {"serve", "start-server", "mcp", "--server"}
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?%?$")
SHELL = re.compile(r"[|<>$;&*?`(){}]")
COMPOUND = re.compile(r"^(for|while|if|cd|export|[A-Za-z_]+=\S*$)\b", re.MULTILINE)
EXAMPLE = re.compile(r"^python examples/\w+\.py$")  # run by tests/examples
# README.md and every page with something to run
RUNNABLE = [page for page in PAGES if any(block.is_run for block in blocks(page))]


def run_page(page: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Every block of a page that is run; the error of a block has its line of the page.

    Of text right behind commands every line is one that they print, or part of one. Text called "Printed" is what the Python
    before it prints, up to rounding.
    """
    _prepare(folder, patch)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed, told = None, ""
    for block in blocks(page):
        if block.is_run and block.language == "python":
            with redirect_stdout(StringIO()) as out:
                exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
            told = out.getvalue()
        elif block.title == "Printed":
            assert _words(told) == [_rounded(word) for word in _words(block.text)], f"{block}: it prints\n{told}"
        elif block.language == "text" and printed is not None:
            assert not (other := not_printed(block, printed)), f"{block}: the commands above do not print {other}"
        printed = _run_shell(block) if block.is_run and block.language == "bash" else None


def _prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The folder that a page works in; its `circuit-tracer` and `python` are this tree's and this interpreter."""
    programs, here = folder / "bin", folder / "here"
    programs.mkdir()
    here.mkdir()
    for name, words in {"circuit-tracer": " -m circuit_tracer", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (programs / name).chmod(0o755)
    for name in ("circuit_tracer", "examples"):  # what pages name by its place in the repository
        (here / name).symlink_to(ROOT / name)
    patch.chdir(here)
    patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("BROWSER", "true")  # what --open opens
    patch.setenv("COLUMNS", "120")


def _words(text: str) -> list[str | float]:
    """What is printed, word by word, numbers as numbers."""
    words = re.split(r"[\s\[\],;]+", text.strip())
    return [float(word.rstrip("%")) if NUMBER.match(word) else word for word in words]


def _rounded(word: str | float) -> Any:
    return pytest.approx(word, rel=0.01, abs=2e-4) if isinstance(word, float) else word


def _run_shell(block: Block) -> str:
    """What its commands print."""
    if COMPOUND.search(block.text):
        return _bash(block, block.text)
    printed = ""
    for command in commands(block):
        words = shlex.split(command, comments=True)
        if INSTALLATION.match(command) or EXAMPLE.match(command) or set(words) & WAITING:
            continue
        if _is_ours(command, words):
            outcome = CliRunner().invoke(app, words[1:])
            assert outcome.exit_code == 0, f"{block}: {command}\n{outcome.output}"
            printed += outcome.output
        else:
            printed += _bash(block, command)
    return printed


def _is_ours(command: str, words: list[str]) -> bool:
    """Whether it is a command of this package that does the same in any process."""
    shell = SHELL.search(re.sub(r"'[^']*'|\"[^\"$`]*\"|#.*", "", command))
    return words[0] == "circuit-tracer" and not shell and not any(word.startswith("--memory") for word in words)


def _bash(block: Block, script: str) -> str:
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{block}: {script}\n{done.stdout}{done.stderr}"
    return done.stdout
