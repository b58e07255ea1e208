"""What is said of Python's versions says the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_oldest_and_the_newest_python_are_named_alike() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = [entry.split(" :: ")[-1] for entry in settings["project"]["classifiers"] if ":: Python ::" in entry]
    oldest, newest = listed[0], listed[-1]
    assert settings["project"]["requires-python"] == f">={oldest}"
    assert settings["tool"]["mypy"]["python_version"] == oldest
    assert settings["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"NEWEST ?= python{newest}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"Python ([\d.]+) to ([\d.]+)", readme) == [(oldest, newest)]
