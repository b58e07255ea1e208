"""`aggregate`: a run over a few prompts, its tables, pictures and what is printed; columns and libraries that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from circuit_tracer.cli.aggregate import as_json, as_text
from circuit_tracer.many import Row
from circuit_tracer.many.aggregate import Aggregate, aggregate_graphs
from circuit_tracer.many.runs.run import run as run_rows
from tests.support.aggregate_cases import six_graphs
from tests.support.command import Folders, Run

PROMPTS = {
    "texas": ("the capital of Texas is", "one"),
    "dallas": ("the state containing Dallas is", "two"),
    "france": ("the capital of France is", "one"),
    "paris": ("a state containing Paris", "two"),
}


@pytest.fixture(scope="module")
def done(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four rows, with labels, roles, and a row that fails."""
    rows = [
        Row(name, text, label=label, extra={"roles": {"last": -1}, "length": len(text.split())})
        for name, (text, label) in PROMPTS.items()
    ]
    place = tmp_path_factory.mktemp("run")
    run_rows([*rows, Row("empty", "", label="one")], place, {"opening": {"transcoders": folders.transcoder}})
    return place


def test_tables_pictures_and_words(done: Path, run: Run) -> None:
    outcome = run("aggregate", done, "--resamples", 20)
    assert outcome.code == 0, outcome.err
    assert "graphs     4" in outcome.out
    found = Aggregate.read(done)
    assert found.overview["n_graphs"] == 4
    assert set(found.labels["label"]) == {"one", "two"}
    assert found.families["id"].tolist() == list(PROMPTS)
    for name in ("common", "labels", "families"):
        assert (done / "aggregate" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_json_roles_and_another_column(done: Path, run: Run, tmp_path: Path) -> None:
    names = tmp_path / "labels.json"
    outcome = run("aggregate", done, "--json", "--no-pictures", "--positions", "roles", "--label", "length",
                  "--resamples", 20, "--families", 2, "--node-threshold", 0.9)  # fmt: skip
    assert outcome.code == 2, "three rows of 5 tokens and one of 4 are no two groups"
    assert "at least 2 graphs each" in outcome.err
    given = ["--json", "--no-pictures", "--positions", "roles", "--resamples", 20, "--families", 2, "--label", "none"]
    outcome = run("aggregate", done, *given)
    assert outcome.code == 0, outcome.err
    assert outcome.json["labels"] == []
    assert len(outcome.json["families"]) == 2
    assert outcome.json["settings"]["positions"] == "named"
    assert {each["item"].partition("@")[2] for each in outcome.json["features"]} <= {"last", "other"}
    outcome = run("aggregate", done, "--positions", "role")
    assert outcome.code == 2
    assert "no column 'role'" in outcome.err
    outcome = run("aggregate", done, "--names", names)
    assert outcome.code == 2
    assert "no labels" in outcome.err


def test_families_that_are_not_shown_are_counted() -> None:
    summary = as_json(aggregate_graphs(six_graphs().items()), [])
    summary["families"] = [{"size": size, "medoid": str(size), "labels": {}} for size in range(12, 0, -1)]
    assert as_text(summary).splitlines()[-3:] == [
        "        6  such as 6",
        "        5  such as 5",
        "       10  in 4 more families",
    ]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(Exception, match=r"'sklearn': pip install 'circuit-tracing\[many\]'"):
        aggregate_graphs(six_graphs().items())
