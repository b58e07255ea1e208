"""`circuit-tracer monitor` and `circuit-tracer steer --watch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer.demo import load_labels
from tests.support.command import Folders, Run

PROMPT = "the capital of Texas is"
LINES = [{"text": PROMPT}, {"id": "b", "text": "Paris France"}, {"text": " "}, {"text": "a state"}]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in LINES) + "{broken\n")
    return path


def given(folders: Folders) -> tuple[str, ...]:
    return ("-t", folders.transcoder, "-m", folders.model, "--device", "cpu")


def test_a_file_standard_input_and_a_folder_are_watched(
    folders: Folders, run: Run, texts: Path, tmp_path: Path
) -> None:
    watched = ("--feature", "0/3", "--feature", "1/4>0.01", *given(folders))
    outcome = run("monitor", "watch", texts, *watched)
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [row["id"] for row in rows] == ["1", "b", "3", "4", "5"]
    assert ["problem" in row for row in rows] == [False, False, True, False, True]
    assert set(rows[0]["scores"]) == {"feature 0/3", "feature 1/4"}
    assert "5 texts" in outcome.err
    assert "2 problems" in outcome.err
    piped = run("monitor", "watch", "-", *watched, "--ahead", 1, stdin=texts.read_text())
    assert [json.loads(line)["id"] for line in piped.out.splitlines()] == [row["id"] for row in rows]
    later = run("monitor", "watch", texts, *watched, "--skip", 3, "-o", tmp_path / "out.jsonl")
    assert (later.code, later.out) == (0, "")
    again = run("monitor", "watch", texts, *watched, "--skip", 4, "-o", tmp_path / "out.jsonl")
    assert again.code == 0, again.err
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["4", "5", "5"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.txt").write_text(PROMPT)
    of_demo = run("monitor", "watch", tmp_path / "folder", "--feature", "0/78", "--demo").json
    assert of_demo["flags"][0]["features"][0]["label"] == load_labels()[0, 78]
    folder = run("monitor", "watch", tmp_path / "folder", *watched, "--json").json
    assert folder["id"] == "one.txt"
    assert folder["scores"] == pytest.approx(rows[0]["scores"], rel=1e-4, abs=1e-5)


def test_thresholds_are_set_on_negatives_and_kept(folders: Folders, run: Run, tmp_path: Path) -> None:
    words = ["the", "capital", "of", "Texas", "is", "Austin", "Dallas", "state", "containing", "France", "Paris", "a"]
    negatives = tmp_path / "negatives.txt"
    negatives.write_text("\n".join(f"{one} {other}" for one in words for other in words))
    made = run(
        "monitor",
        "calibrate",
        negatives,
        "--feature",
        "1/4",
        "--rate",
        0.1,
        "-o",
        tmp_path / "set",
        *given(folders),
        "--json",
    )
    assert made.code == 0, made.err
    assert made.json["negatives"] == 144
    assert made.json["low"] < made.json["rate"] <= 0.1
    watched = run("monitor", "watch", negatives, "--probe", tmp_path / "set", "--only-flagged", *given(folders))
    assert watched.code == 0, watched.err
    assert len(watched.out.splitlines()) <= 14
    few = run(
        "monitor", "calibrate", negatives, "--feature", "1/4", "--rate", 1e-4, "-o", tmp_path / "few", *given(folders)
    )
    assert "too few texts" in few.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("watch", "{texts}"), "say what to watch for"),
        (("watch", "nowhere.jsonl", "--feature", "0/3"), "no texts at nowhere.jsonl"),
        (("watch", "{texts}", "--feature", "0-3"), "write LAYER/FEATURE>VALUE"),
        (("watch", "{texts}", "--probe", "{texts}"), "safetensors"),
        (("calibrate", "{texts}", "--feature", "0/3", "-o", "{folder}"), "negative text 3"),
    ],
)
def test_bad_input(
    folders: Folders, run: Run, texts: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    places = [each.format(texts=texts, folder=tmp_path / "made") for each in arguments]
    outcome = run("monitor", *places, *given(folders))
    assert outcome.code == 2
    assert expected in outcome.err


def test_a_generation_is_watched_and_steered_once_a_feature_is_active(folders: Folders, run: Run) -> None:
    asked = ("steer", *given(folders), "-p", PROMPT, "--max-new-tokens", 3)
    watched = run(*asked, "--watch", "0/3", "--json")
    assert watched.code == 0, watched.err
    assert watched.json["unsteered"] is None  # nothing is changed: it would be the same text
    found = watched.json["watched"]
    scores = found["scores"]["feature 0/3"]
    assert scores[0] is None
    assert len(scores) == 6 + len(watched.json["steered"]["ids"])
    assert found["since"] == 0
    active = next((at for at, score in enumerate(scores) if score), None)
    steered = run(*asked, "--set", "1/2=50", "--steer-when", "0/3", "--json").json["watched"]
    assert steered["fired"].get("feature 0/3") == active
    never = run(*asked, "--set", "1/2=50", "--steer-when", "0/3>1e9")
    assert never.code == 0, never.err
    assert "steered     never" in never.out
    refused = run(*asked, "--steer-when", "0/3")
    assert (refused.code, "say what to change" in refused.err) == (2, True)
