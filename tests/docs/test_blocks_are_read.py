"""Every code block of README.md and docs/: it is run, or says why not; and what is not run could be.

Those that are run are run by test_how_to_run.py and test_other_pages_run.py, which are slow. Here every command is parsed,
with its options, and every piece of Python is compiled and finds what it imports.
"""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from circuit_tracer.cli.main import app
from tests.support.code_blocks import INSTALLATION, PAGES, REASONS, ROOT, RUN, SHOWN, Block, blocks, commands, program

BLOCKS = [block for page in PAGES for block in blocks(page)]


def test_blocks_are_found() -> None:
    assert sum(block.is_run for block in BLOCKS) >= 5
    assert len(PAGES) > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        assert block.language in (*RUN, *SHOWN), f"{block}: give the fence a language ({', '.join((*RUN, *SHOWN))})"
        if block.reason is not None:
            assert block.language in RUN, f"{block}: {block.language} is not run anyway; leave the mark out"
            assert block.reason in REASONS, f"{block}: a block may be left out because it {' / '.join(REASONS)}"
        if block.snippet:
            assert block.snippet.parent == ROOT / "examples", f"{block}: shows a script that no test runs"
            assert block.snippet.is_file(), f"{block}: {block.snippet} is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_hides_in_an_indented_block(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        text = text.replace(block.text, "")
    hidden = re.findall(r"\n\n {4,}((?:circuit-tracer|torchrun|from \S+ import|import) .*)", text)
    assert not hidden, f"put {hidden[0]!r} into a fence, so that it is run"


@pytest.mark.few
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_can_be_given(page: Path) -> None:
    for block in (each for each in blocks(page) if each.language == "bash"):
        for command in commands(block):
            words = program(command)
            if words is not None and not any(word.startswith("$") for word in words):
                _parse(words, f"{block}: {command}")
            elif INSTALLATION.match(command):
                _installs(command)


def _parse(words: list[str], where: str) -> None:
    """Options as typer takes them, without running anything."""
    command: Any = get_command(app)
    context = command.make_context("circuit-tracer", [], resilient_parsing=True)
    given = list(words)
    if given[:1] in (["--help"], ["--version"], ["--install-completion"], []):
        return
    try:
        while hasattr(command, "get_command") and given and not given[0].startswith("-"):
            name = given.pop(0)
            command = command.get_command(context, name)
            assert command is not None, f"{where}: there is no command {name}"
            context = command.context_class(command, info_name=name, parent=context)
        if "--help" not in given and "-h" not in given:
            command.make_context(command.name, given, parent=context.parent)
    except Exception as error:
        raise AssertionError(f"{where}: {error}") from error


def _installs(command: str) -> None:
    """Targets of make and extras of the package exist."""
    targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if command.startswith("make "):
        assert command.split()[1] in targets
    for named in re.findall(r"(?:\.|circuit-tracing)\[([\w,]+)\]", command):
        assert set(named.split(",")) <= set(extras)


@pytest.mark.few
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles_and_finds_what_it_imports(page: Path) -> None:
    for block in (each for each in blocks(page) if each.language == "python" and not each.snippet):
        for part in ast.walk(ast.parse(block.text, str(block))):
            if isinstance(part, ast.ImportFrom) and str(part.module).startswith("circuit_tracer"):
                _imports(block, part)


def _imports(block: Block, part: ast.ImportFrom) -> None:
    module = import_module(str(part.module))
    for name in part.names:
        if not hasattr(module, name.name):
            import_module(f"{part.module}.{name.name}")  # a module of the package; an error names it
