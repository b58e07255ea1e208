"""The plan of the house names every folder, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture" / "index.md"


def test_the_plan_names_the_packages_that_there_are() -> None:
    plan = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    inside = plan[: plan.index("\nkernels/")]
    named = {name for line in inside.splitlines()[1:] for name in re.findall(r"(?<![\w/])(\w+)/(?=[ ,]|$)", line[:50])}
    package = ROOT / "circuit_tracer"
    packages = {path.parent.name for path in package.glob("*/__init__.py")} - {"kernels"}
    assert packages <= named
    assert all((package / name).exists() for name in named - {"formats", "static", "files"})


def test_the_places_for_a_change_exist() -> None:
    rows = re.findall(r"^\| (?:an? |a )[^|]*\| (.*?) \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 10
    named = {name for row in rows for cell in row for name in re.findall(r"`([\w./*]+)`", cell)}
    paths = {name.rstrip("/").replace("NAME", "*") for name in named if "/" in name or "." in name}
    assert len(paths) > 15
    missing = {path for path in paths if not any(ROOT.glob(path)) and not any((ROOT / "circuit_tracer").glob(path))}
    assert not missing
