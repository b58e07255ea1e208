"""What the pages for people of other libraries say to write here can be written: every cell of the columns "Here" runs.

A page's blocks of Python run first, in one namespace with the cells, all in the order of the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from circuit_tracer.cli.main import app
from tests.support.code_blocks import ROOT, blocks

PAGES = [page for page in sorted((ROOT / "docs" / "coming-from").glob("*.md")) if page.stem != "index"]
each = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def cells(page: Path) -> Iterator[tuple[int, str]]:
    """(line, code) of the code in the second column of tables whose second column is called Here."""
    here = False
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), start=1):
        columns = [column.strip() for column in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
        here = bool(columns) and (here or columns[1] == "Here")
        if here and len(columns) > 1:
            yield from ((number, code) for code in re.findall(r"`([^`]+)`", columns[1]))


@each
def test_a_table_says_what_is_here(page: Path) -> None:
    assert len(list(cells(page))) >= 7
    assert all("…" not in code for _, code in cells(page)), "the right column is run as it stands"


@pytest.mark.slow("traces and intervenes as the pages do: seconds a page")
@each
def test_the_right_column_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = [(block.line, block.text) for block in blocks(page) if block.is_run and block.language == "python"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, code in sorted([*steps, *cells(page)], key=lambda step: step[0]):
        if code.startswith("circuit-tracer "):
            outcome = CliRunner().invoke(app, shlex.split(code)[1:])
            assert outcome.exit_code == 0, f"{page.name}:{line}: {code}\n{outcome.output}"
        else:
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
