"""The notebooks as they are kept: with outputs of the code that is in them, nothing of a machine, a way to Colab. Slow: run
again, they show the same.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from notebooks import run
from tests.support.real_models import saved

NOTEBOOKS = sorted(run.HERE.glob("*.ipynb"))
OFFLINE = [path for path in NOTEBOOKS if path.stem != "2_real_model"]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


# One trains dictionaries: where another CPU rounds differently, they become others.
SHARE = {"3_is_this_graph_faithful": 0.3}


def is_close(a: str, b: str, share: float = 0.05, least: float = 0.02) -> bool:
    """The same words in the same order; numbers within a share of the larger one, or within ``least``."""
    if NUMBER.sub("0", a).split() != NUMBER.sub("0", b).split():
        return False
    pairs = zip(map(float, NUMBER.findall(a)), map(float, NUMBER.findall(b)), strict=True)
    return all(abs(one - two) <= max(least, share * max(abs(one), abs(two))) for one, two in pairs)


@each
def test_outputs_are_kept_and_are_of_this_code(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    again = "its code changed since its outputs were made: python -m notebooks.run"
    assert notebook["metadata"]["code_digest"] == run.code_digest(notebook), again
    assert [cell["execution_count"] for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not any(output["output_type"] == "error" for cell in code(notebook) for output in cell["outputs"])
    assert sum(bool(text) for text in run.texts(notebook)) >= 4
    kinds = {kind for cell in code(notebook) for output in cell["outputs"] for kind in output.get("data", {})}
    assert "image/svg+xml" in kinds or path.stem == "3_is_this_graph_faithful"


@each
def test_they_show_nothing_of_a_machine_and_are_small(path: Path) -> None:
    notebook = read(path)
    assert not run.of_a_machine(notebook)
    assert path.stat().st_size <= run.SIZE
    assert not any("execution" in cell["metadata"] for cell in notebook["cells"])
    assert set(notebook["metadata"]) == {"code_digest", "kernelspec", "language_info"}


@each
def test_they_open_on_colab_from_one_address(path: Path) -> None:
    notebook = read(path)
    fresh = run.with_front(notebook, path.stem)
    title = "".join(notebook["cells"][0]["source"])
    assert title == fresh["cells"][0]["source"], "python -m notebooks.run --front writes badges and first cells anew"
    assert "".join(notebook["cells"][1]["source"]) == fresh["cells"][1]["source"]
    assert title.startswith(f"[![Open in Colab]({run.BADGE})](https://colab.research.google.com/github/")
    assert f"/notebooks/{path.name})" in title
    assert "google.colab" in "".join(code(notebook)[0]["source"])
    assert [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"]] == [
        {**cell, "source": "".join(cell["source"])} for cell in fresh["cells"]
    ]


def test_the_list_of_notebooks_has_all_of_them() -> None:
    text = (run.HERE / "README.md").read_text(encoding="utf-8")
    assert run.with_badges(text) == text, "python -m notebooks.run --front writes the badges anew"
    for path in NOTEBOOKS:
        assert f"| [{path.stem}]({path.name}) |" in text
        assert run.badge(path.stem) in text
    assert run.with_badges(text.replace("/github/", "/github/elsewhere/")) == text


def test_the_address_is_that_of_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run.repository().startswith("https://github.com/")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(run, "HERE", tmp_path / "notebooks")
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "x"\n', encoding="utf-8")
    assert run.repository() == run.PLACEHOLDER
    project.write_text('[project]\nname = "x"\nurls.Repository = "https://github.com/a/b/"\n', encoding="utf-8")
    assert run.badge("n").endswith("/github/a/b/blob/main/notebooks/n.ipynb)")
    assert "git+https://github.com/a/b" in run.first_cell()


def test_a_badge_is_put_before_a_notebook_that_has_none() -> None:
    cells = [
        {"cell_type": "markdown", "id": "7-00", "metadata": {}, "source": ["# Title\n", "\n", "Text."]},
        {"cell_type": "code", "id": "7-01", "metadata": {}, "outputs": [], "execution_count": None, "source": ["1"]},
    ]
    once = run.with_front({"cells": cells, "metadata": {}}, "7_x")
    assert once["cells"][0]["source"] == f"{run.badge('7_x')}\n\n# Title\n\nText."
    assert [cell["id"] for cell in once["cells"]] == ["7-00", "7-install", "7-01"]
    assert run.with_front(once, "7_x") == once


@pytest.mark.parametrize(
    "text",
    ["/home/me/model", "read /tmp/x/y", "<object at 0x7f1234567890>", "http://127.0.0.1:8032/?slug=a", "'/work/a'"],
)
def test_what_is_of_a_machine_is_not_written(text: str, tmp_path: Path) -> None:
    notebook = copy.deepcopy(read(OFFLINE[0]))
    code(notebook)[1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [text]}]
    with pytest.raises(ValueError, match="belongs to this machine"):
        run.write(notebook, tmp_path / "x.ipynb")
    assert not list(tmp_path.iterdir())


def test_outputs_are_cleaned() -> None:
    raw = {
        "cells": [
            {
                "cell_type": "code",
                "id": "a",
                "metadata": {"execution": {"iopub.execute_input": "2026"}, "tags": ["varies"]},
                "execution_count": 12,
                "source": "f()",
                "outputs": [
                    {"output_type": "stream", "name": "stdout", "text": "one\ntw"},
                    {"output_type": "stream", "name": "stderr", "text": "x.py:3: UserWarning"},
                    {"output_type": "stream", "name": "stdout", "text": "o\n"},
                    {
                        "output_type": "execute_result",
                        "execution_count": 12,
                        "metadata": {},
                        "data": {"text/plain": "3"},
                    },
                ],
            }
        ],
        "metadata": {"language_info": {"version": "3.11.4"}},
    }
    clean = run.cleaned(raw)
    cell = clean["cells"][0]
    assert cell["metadata"] == {"tags": ["varies"]}
    assert [each["output_type"] for each in cell["outputs"]] == ["stream", "execute_result"]
    assert cell["outputs"][0]["text"] == ["one\n", "two\n"]
    assert (cell["execution_count"], cell["outputs"][1]["execution_count"]) == (1, 1)
    assert clean["metadata"]["language_info"] == {"name": "python"}
    assert run.texts(clean) == [""]


def test_texts_are_compared_by_words_and_numbers() -> None:
    assert is_close("Austin 99.7% -> 0.1%", "Austin  99.6% -> 0.11%")
    assert is_close("residual 2.9e-07", "residual 1.1e-06")
    assert not is_close("Austin 99.7%", "Austin 70.4%")
    assert not is_close("Austin 99.7%", "Dallas 99.7%")
    assert not is_close("1 of 2", "1 of")


@pytest.mark.slow("each is executed by a kernel of its own: 10 to 20 s")
@pytest.mark.parametrize("path", OFFLINE, ids=lambda path: path.stem)
def test_run_again_they_show_the_same(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    kept = read(path)
    again = run.executed(kept, tmp_path)
    assert not run.of_a_machine(again)
    for cell, before, now in zip(code(kept), run.texts(kept), run.texts(again), strict=True):
        assert is_close(before, now, SHARE.get(path.stem, 0.05)), f"{path.name}, {cell['id']}:\n{before}\nnow:\n{now}"


@pytest.mark.real_model
@pytest.mark.slow("trains a dictionary of a real model, then traces and patches it")
def test_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    monkeypatch.setenv("NOTEBOOK_MODEL", str(saved("smollm2", tmp_path / "smollm2")))
    monkeypatch.setenv("NOTEBOOK_TOKENS", "8192")
    found = "\n".join(run.texts(run.executed(read(run.HERE / "2_real_model.ipynb"), tmp_path)))
    assert re.search(r"targets: ' Paris'", found)
    assert (tmp_path / "graph.svg").stat().st_size > 0
    assert (tmp_path / "patching.svg").stat().st_size > 0
