"""`report`: its two files and what is printed, on a run of a few prompts; labels and columns that do not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer.many import Row
from circuit_tracer.many.runs.run import run as run_rows
from tests.support.command import Folders, Run

PROMPTS = {
    "texas": ("the capital of Texas is", "one"),
    "dallas": ("the state containing Dallas is", "two"),
    "france": ("the capital of France is", "one"),
    "empty": ("", "one"),
}


@pytest.fixture(scope="module")
def done(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels, and a row that fails."""
    place = tmp_path_factory.mktemp("run")
    rows = [Row(name, text, label=label) for name, (text, label) in PROMPTS.items()]
    run_rows(rows, place, {"opening": {"transcoders": folders.transcoder}})
    return place


def test_a_report_without_labels_is_written(done: Path, run: Run, tmp_path: Path) -> None:
    outcome = run("report", done, "--label", "none", "--validated", 1, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("No row has a label, so nothing was compared.")
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert found["behaviour"][0]["failed"] == {"InputError": 1}
    assert len(found["trust"]["tested"]) == 1
    assert "<h2>To repeat it</h2>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "'one' (2), 'two' (1); expected two labels of at least 4 rows"),
        (("--label", "kind"), "no column 'kind'"),
    ],
    ids=["few-rows", "no-column"],
)
def test_labels_that_cannot_be_compared_are_refused(done: Path, run: Run, given: tuple[str, ...], says: str) -> None:
    outcome = run("report", done, *given)
    assert outcome.code == 2
    assert says in " ".join(outcome.err.split())
    assert not list(done.glob("report/*"))
