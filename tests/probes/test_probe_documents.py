"""docs/how-to/probe.md: every command that it gives can be given, and its Python can be read."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from textwrap import dedent

import click
import pytest
from typer.main import get_command

from circuit_tracer.cli.main import app

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "probe.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(match) for match in re.findall(r"^    .*?circuit-tracer (.+)$", TEXT, re.MULTILINE)]


def test_they_are_found() -> None:
    assert {" ".join(words[:2]) for words in COMMANDS} >= {
        "probe fit",
        "probe explain",
        "monitor watch",
        "monitor calibrate",
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_can_be_given(words: list[str]) -> None:
    command, given = get_command(app), list(words)
    while isinstance(command, click.Group) or hasattr(command, "get_command"):
        context = command.make_context("circuit-tracer", [], resilient_parsing=True)
        command = command.get_command(context, given.pop(0))
    assert command.make_context("command", given).params


def test_options_in_the_text_exist() -> None:
    root = get_command(app)
    context = root.make_context("circuit-tracer", [], resilient_parsing=True)
    groups = [root.get_command(context, name) for name in ("probe", "monitor")]
    every = [each for group in groups for each in group.commands.values()]
    there = {name for each in every for parameter in each.params for name in parameter.opts}
    named = set(re.findall(r"`(--[a-z-]+)", TEXT)) - {"--probe FOLDER"}
    assert len(named) >= 10
    assert named <= there


def test_its_python_can_be_read() -> None:
    blocks = re.findall(r"(?:^    .*\n|^\n)+", TEXT, re.MULTILINE)
    read = [dedent(block) for block in blocks if "import" in block]
    assert len(read) == 2
    for block in read:
        for part in ast.walk(ast.parse(block)):
            if isinstance(part, ast.ImportFrom):
                module = __import__(str(part.module), fromlist=["x"])
                assert all(hasattr(module, name.name) for name in part.names)
