"""`circuit-tracer probe`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer.demo import MODEL, world
from circuit_tracer.probes.probe import Probe
from tests.support.command import Run

ENTITIES = [*world.entities()[:8], *world.entities()[-8:]]
DEMO = ("--demo", "--draws", 20)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "places.jsonl"
    rows = [
        {"text": f"{city} is in", "label": one.kind == "state", "group": one.name}
        for one in ENTITIES
        for city in one.open_cities[:3]
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_fit_score_and_explain(run: Run, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    fitted = run(
        "probe", "fit", "--data", data, "--layer", 2, "--method", "mean", "--folds", 3, *DEMO, "-o", file, "--verbose"
    )
    assert fitted.code == 0, fitted.err
    for line in ("stream ", "features ", "both ", "random dictionary ", "bag of words ", "reading the model "):
        assert any(each.startswith(line) for each in fitted.out.splitlines())
    assert fitted.out.splitlines()[-1] == f"wrote      {file}"
    assert Probe.load(file).name == "state"

    texts = run("probe", "score", file, "-p", "Dallas is in", "-p", "Lyon is in", "--tokens", "--json", *DEMO)
    assert texts.code == 0, texts.err
    dallas, lyon = (json.loads(line) for line in texts.out.splitlines())
    assert dallas["score"] > lyon["score"]
    assert [each["text"] for each in dallas["tokens"]] == ["Dallas", "is", "in"]
    assert dallas["tokens"][-1]["score"] == pytest.approx(dallas["score"])
    labelled = run("probe", "score", file, "--data", data, *DEMO)
    assert labelled.code == 0, labelled.err
    assert "24 positive and 24 negative texts, 16 groups" in labelled.out

    talk = run("probe", "score", file, "-p", "Dallas is in", "--chat", *DEMO)
    assert "-p 'Dallas is in': this tokenizer has no chat template" in talk.err

    html = tmp_path / "why.html"
    why = run("probe", "explain", file, "-p", "Dallas is in", "--top", 2, "--demo", "-o", html)
    assert why.code == 0, why.err
    assert "Texas (places) at 'Dallas'@1" in why.out
    assert "all of them together" in why.out
    assert html.stat().st_size > 10_000
    found = run(
        "probe", "explain", file, "-p", "Dallas is in", "--position", 1, "--no-validate", "--demo", "--json"
    ).json
    assert (found["token"], found["tests"]) == ("Dallas", [])
    assert sum(found["direct"].values()) == pytest.approx(found["score"], rel=1e-4)


def test_a_model_by_itself(run: Run, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    given = (
        "--data",
        data,
        "--layer",
        1,
        "--method",
        "mean",
        "--folds",
        3,
        "--draws",
        20,
        "-m",
        MODEL,
        "--device",
        "cpu",
    )
    outcome = run("probe", "fit", *given, "-o", file, "--json")
    assert outcome.code == 0, outcome.err
    assert [each["name"] for each in outcome.json["card"]["scores"]] == ["stream", "bag of words"]
    assert outcome.json["file"] == str(file)


def test_what_is_asked_wrong(run: Run, data: Path, tmp_path: Path) -> None:
    fit = ("probe", "fit", "--data", data, "--layer", 1, "-o")
    file = tmp_path / "p.safetensors"
    for arguments, message in (
        ((*fit, tmp_path / "p.json", "--demo"), "end it in .safetensors"),
        ((*fit, file), "name the model with -m, or its transcoders with -t, or use --demo"),
        ((*fit, file, "-m", MODEL, "--select", "l0=1"), "--select say something of the transcoders"),
        (("probe", "score", file, "--demo"), "give texts with --data FILE or with -p TEXT"),
        (("probe", "score", file, "-p", "a", "--demo"), "no such file"),
        (("probe", "explain", file, "-p", "a", "--demo", "-o", tmp_path / "g.pt"), "end it in .safetensors or .html"),
    ):
        outcome = run(*arguments)
        assert outcome.code != 0
        assert message in outcome.err
    assert not file.exists()
