"""The notebooks run from top to bottom, and end where their text says. Cells run in IPython, without a kernel or a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_models import saved

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the files that a notebook writes, and a fresh shell afterwards."""
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    yield
    InteractiveShell.clear_instance()


def run(name: str) -> dict[str, Any]:
    """The variables that a notebook leaves; an exception in a cell is raised with the cell in front of it."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] == "code":
            result = shell.run_cell("".join(cell["source"]), store_history=False)
            if not result.success:
                raise AssertionError(f"{name}, cell {number}:\n{''.join(cell['source'])}") from (
                    result.error_in_exec or result.error_before_exec
                )
    return shell.user_ns


def cells(name: str) -> list[dict[str, Any]]:
    return json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.usefixtures("elsewhere")
def test_the_embedded_world() -> None:
    left = run("1_embedded_world.ipynb")
    assert left["graph"].targets.label[0].strip() == "Austin"
    assert left["texas"].features
    assert left["california"].features
    assert left["swapped"].tokens(1)[0].text.strip() == "Sacramento"
    assert left["told"].strongest(1)["first"][0][:2] == left["told"].strongest(1)["last"][0][:2] == (1, 0)
    assert left["look"].strongest(2)["key"][1].node == left["state"]
    assert Path("dallas.svg").stat().st_size > 0
    assert Path("patching.svg").stat().st_size > 0


@pytest.mark.slow("a whole notebook, validation of every node: 8 s")
@pytest.mark.usefixtures("elsewhere")
def test_is_this_graph_faithful() -> None:
    left = run("3_is_this_graph_faithful.ipynb")
    assert left["report"].verdict
    assert left["graph"].validation is left["report"]


@pytest.mark.real_model
@pytest.mark.slow("trains a dictionary of a real model, then traces and patches it")
@pytest.mark.usefixtures("elsewhere")
def test_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOK_MODEL", str(saved("smollm2", tmp_path / "smollm2")))
    monkeypatch.setenv("NOTEBOOK_TOKENS", "8192")
    left = run("2_real_model.ipynb")
    assert left["graph"].targets.label[0] == " Paris"
    assert Path("graph.svg").stat().st_size > 0
