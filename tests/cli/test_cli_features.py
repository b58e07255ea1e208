"""`circuit-tracer features`: from text to a page that shows examples, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import Folders, Run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "lines.jsonl"
    lines = ["the capital of Texas is Austin", "the capital of", "Texas is the capital"] * 4
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
    return path


def test_build_export_and_view(run: Run, folders: Folders, text: Path, traced: Path, tmp_path: Path) -> None:
    built = tmp_path / "built"
    arguments = ("features", "build", "-t", folders.transcoder, "--data", text, "-o", built, "--context-length", 8)
    done = run(*arguments, "--separate", "--device", "cpu")
    assert done.code == 0, done.err
    names = {path.name for path in built.iterdir()}
    assert {"index.json.gz", "features.json", "labels.json", "layer_0.bin"} <= names
    assert not any(name.startswith(".") for name in names)
    assert run(*arguments, "--separate", "--device", "cpu", "--json").json == {"files": [str(built)]}
    assert "belongs to another" in run(*arguments, "--device", "cpu").err

    exported = tmp_path / "json"
    assert run("features", "export", built, "-o", exported, "--graph", traced, "--json").json["count"] == len(
        list(exported.iterdir())
    )
    assert 0 < len(list(exported.iterdir())) <= 60
    assert "--model-id" in run("features", "export", built, "-o", exported, "--to", "neuronpedia").err
    named = ("--model-id", "tiny", "--source-set", "set")
    assert run("features", "export", built, "-o", tmp_path / "np", "--to", "neuronpedia", *named).code == 0
    assert json.loads(next((tmp_path / "np").iterdir()).read_text(encoding="utf-8"))["modelId"] == "tiny"

    page = tmp_path / "page.html"
    assert run("view", traced, "-o", page, "--features", built, "--json").json == {"files": [str(page)]}
    assert '"examples_quantiles"' in page.read_text(encoding="utf-8")


def test_features_of_a_graph_alone(run: Run, folders: Folders, text: Path, traced: Path, tmp_path: Path) -> None:
    built = tmp_path / "built"
    done = run(
        *("features", "build", "-t", folders.transcoder, "--data", text, "-o", built),
        *("--graph", traced, "--context-length", 8, "--device", "cpu"),
    )
    assert done.code == 0, done.err
    assert "chosen" in json.loads((built / "features.json").read_text(encoding="utf-8"))["settings"]["features"]


def test_what_does_not_go_together_is_said(run: Run, folders: Folders, text: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("-t", folders.transcoder), "--data"),
        (("--data", text), "-t"),
        (("--demo", "--data", text), "--demo brings its own"),
        (("-t", folders.transcoder, "--data", tmp_path / "x.bin"), "cannot tell what"),
    ):
        done = run("features", "build", "-o", tmp_path / "out", *arguments, "--device", "cpu")
        assert done.code == 2
        assert said in done.err
    assert "holds no features" in run("features", "export", tmp_path, "-o", tmp_path / "out").err
