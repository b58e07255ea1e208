"""`circuit-tracer fingerprints`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from circuit_tracer.many import open_run
from circuit_tracer.many.fingerprints import fingerprint, names
from tests.support.command import Folders, Run

ROWS = 16


@pytest.mark.slow("takes 2.8 s")
def test_vectors_of_a_run_and_a_label_predicted_from_them(run: Run, folders: Folders, tmp_path: Path) -> None:
    """Options of the run hold for the graphs beside it; a row that failed is in no table."""
    rows = [
        {"id": f"r{number}", "tokens": [1, 3 + number, 5 + number % 7], "wrong": number % 2 == 0, "topic": number // 2}
        for number in range(ROWS)
    ]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "x"
    prompts.write_text("\n".join(map(json.dumps, [*rows, {"id": "bad", "prompt": "", "wrong": True, "topic": 1}])))
    made = ("run", prompts, "-t", folders.transcoder, "-o", out, "--device", "cpu", "--max-feature-nodes", 9)
    assert run(*made).code == 0

    plain = run("fingerprints", out, "--node-threshold", 0.6)
    files = out / "fingerprints"
    assert plain.out.splitlines() == [
        f"{ROWS} graphs, {len(names(3))} numbers each",
        "",
        f"wrote      {files / 'fingerprints.parquet'}",
    ]
    table = parquet.read_table(files / "fingerprints.parquet").to_pylist()
    graph = open_run(out).graph("r3")
    assert table[3] == {"id": "r3", **fingerprint(graph, node_threshold=0.6)}

    found = run("fingerprints", out, "--label", "wrong", "--groups", "topic", "--folds", 2, "--json")
    assert found.code == 0, found.err
    assert (found.json["rows"], found.json["positives"], found.json["groups"]) == (ROWS, ROWS // 2, ROWS // 2)
    written = json.loads((files / "prediction.json").read_text())
    assert found.json == {**written, "files": [str(files / name) for name in sorted_files(files)]}
    assert [each["name"] for each in written["scores"]][:5] == [
        "fingerprint",
        "logits alone",
        "logits alone, linear",
        "linear probe",
        "random dictionary",
    ]
    beside = parquet.read_table(files / "random_dictionary.parquet").to_pylist()
    assert {row["global.features"] for row in beside} == {9.0}
    assert parquet.read_table(files / "scores.parquet").num_rows == ROWS
    logits = parquet.read_table(files / "logits.parquet").to_pylist()[3]
    prediction = graph.provenance["prediction"]
    assert np.isclose(logits["probability"], prediction["probabilities"][0], rtol=1e-4)


def sorted_files(folder: Path) -> list[str]:
    """In the order in which they are written."""
    order = ["fingerprints", "random_dictionary", "logits", "scores", "prediction"]
    return sorted((file.name for file in folder.iterdir()), key=lambda name: order.index(name.partition(".")[0]))


@pytest.mark.slow("takes 1.5 s")
def test_labels_that_cannot_be_predicted_are_refused_before_any_work(
    run: Run, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "x"
    prompts.write_text('{"tokens": [1, 3, 5], "kind": "a"}\n{"tokens": [1, 4, 5], "kind": "b"}')
    assert run("run", prompts, "-t", folders.transcoder, "-o", out, "--device", "cpu").code == 0
    monkeypatch.setattr("circuit_tracer.many.fingerprints.evidence_of", None)
    for label, said in (("wrong", "has no column 'wrong'"), ("kind", "the label is 'a' or 'b'; say which")):
        refused = run("fingerprints", out, "--label", label)
        assert refused.code == 2
        assert said in refused.err
