"""What surrounds the code says what the code says: workflows, the citation, the Dockerfile, the changelog."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def _yaml(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def _scripts(workflow: dict[Any, Any]) -> str:
    return "\n".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_files_that_there_are_and_ask_for_little(path: Path) -> None:
    workflow = _yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name in re.findall(r"[\w./-]+\.(?:py|txt|sh)\b|\.ci/run", _scripts(workflow)):
        assert (ROOT / name).is_file(), name
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_the_oldest_and_the_newest_python_are_run_on_linux() -> None:
    listed = [entry.split(" :: ")[-1] for entry in PROJECT["classifiers"] if ":: Python ::" in entry]
    jobs = _yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == [listed[0], listed[-1]]
    assert jobs["elsewhere"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]


def test_a_release_is_made_of_a_tag_with_the_name_of_the_distribution() -> None:
    workflow = _yaml(ROOT / ".github" / "workflows" / "release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as a truth value
    assert workflow["jobs"]["release"]["permissions"]["id-token"] == "write"
    assert f"dist/{PROJECT['name'].replace('-', '_')}-" in _scripts(workflow)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_of_issues_can_be_filled_in(path: Path) -> None:
    form = _yaml(path)
    assert set(form) == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] in ("textarea", "input")]
    assert fields == form["body"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_the_citation_is_of_this_project() -> None:
    citation = _yaml(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"].startswith(f"{PROJECT['name']}:")
    assert citation["license"] == PROJECT["license"]
    assert {"message", "authors"} <= set(citation)


def test_the_dockerfile_copies_what_there_is_and_what_the_image_may_see() -> None:
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] == "!"}
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    for name in copied:
        assert (ROOT / name).exists()
        assert name.split("/")[0] in seen
    extras = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(extras[0].split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_changelog_has_a_part_for_what_is_not_released_and_one_for_each_tag() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    listed = subprocess.run(["git", "tag", "--list", "v*"], cwd=ROOT, capture_output=True, text=True)
    assert {tag.removeprefix("v") for tag in listed.stdout.split()} <= set(headings)
