"""The examples in docstrings do what they say, on the embedded model."""

from __future__ import annotations

import doctest
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import circuit_tracer
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER

SOURCE = Path(circuit_tracer.__file__).parent


def _examples() -> Iterator[doctest.DocTest]:
    """Of the modules in whose text there are any, so that no others are imported."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages([str(SOURCE)], "circuit_tracer.", onerror=lambda _: None):
        path = SOURCE.joinpath(*found.name.split(".")[1:])
        file = path / "__init__.py" if found.ispkg else path.with_suffix(".py")
        if ">>>" in file.read_text(encoding="utf-8"):
            yield from (each for each in finder.find(import_module(found.name)) if each.examples)


EXAMPLES = list(_examples())


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What examples may use without saying where it is from; docs/reference/api/index.md lists it."""
    model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
    return {"PROMPT": PROMPT, "graph": attribute(PROMPT, model), "model": model, "torch": torch}


@pytest.mark.few
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.name.removeprefix("circuit_tracer."))
def test_an_example_does_what_it_says(
    example: doctest.DocTest, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    example.globs = dict(names)
    failed, _ = doctest.DocTestRunner(verbose=False).run(example, out=said.append, clear_globs=False)
    assert not failed, "".join(said)


def test_the_most_used_functions_have_examples() -> None:
    assert len(EXAMPLES) >= 30
