"""Uploads to Neuronpedia, against a server on this machine that is as strict; and links both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from circuit_tracer.cli.main import app
from circuit_tracer.demo import FEATURES
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.node_ids import node_ids
from circuit_tracer.graph.files.read_json import features_of, load_viewer_json
from circuit_tracer.graph.files.view import View
from tests.support.fake_neuronpedia import KEY, Uploads
from tests.support.fake_servers import FakeServer
from tests.support.json_lines import require_lines

MODEL = "gemma-2-2b"


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploads]:
    answers = Uploads()
    with FakeServer(answers).running() as server:
        answers.address = server.address
        monkeypatch.setenv("NEURONPEDIA_HOST", server.address)
        monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
        yield answers


@pytest.fixture
def graph_file(demo_graph: Graph, tmp_path: Path) -> Path:
    return demo_graph.save(tmp_path / "two-hop.safetensors")


def run(*arguments: object) -> Result:
    words = ["upload", *map(str, arguments)]
    found = CliRunner().invoke(app, words)
    if "--json" in words:
        require_lines(words, found.exit_code, found.stdout)
    return found


def test_a_graph_arrives_with_its_pins_and_labels(uploads: Uploads, graph_file: Path, demo_graph: Graph) -> None:
    first, second, third = node_ids(demo_graph)[-3:]
    view = View((first,), (("end", (second, third)),))
    done = run(
        *(graph_file, "--model-id", MODEL, "--source-set", "set", "--features", FEATURES),
        *("--view", view.to_url("http://127.0.0.1:1/?slug=x"), "--with-features"),
    )
    assert done.exit_code == 0, done.output
    document = uploads.graphs[MODEL, "two-hop"]
    assert View.from_q_params(document["qParams"]) == View(view.nodes, view.supernodes)
    assert document["metadata"]["feature_details"] == {"neuronpedia_source_set": "set"}
    labelled = [node["clerp"] for node in document["nodes"] if node["feature_type"] == "cross layer transcoder"]
    assert all(labelled)
    link = done.output.split(": ")[-1].replace("\n", "")
    assert link.startswith(f"{uploads.address}/{MODEL}/graph?slug=two-hop&")
    assert View.from_url(link) == View(view.nodes, view.supernodes)
    sent = [(int(source.split("-")[0]), one["index"]) for source, row in uploads.features.items() for one in row]
    assert sorted(sent) == sorted(set(features_of(document)))
    assert all(one["explanations"] for row in uploads.features.values() for one in row)


def test_a_dry_run_sends_nothing_and_needs_no_key(
    uploads: Uploads, graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEURONPEDIA_API_KEY")
    done = run(graph_file, "--model-id", MODEL, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "would upload two-hop for gemma-2-2b" in done.output
    assert not uploads.promised
    line = json.loads(run(graph_file, "--model-id", MODEL, "--dry-run", "--json").stdout)
    assert (line["sent"], line["slug"]) == (False, "two-hop")
    refused = run(graph_file, "--model-id", MODEL)
    assert refused.exit_code == 2
    assert "NEURONPEDIA_API_KEY is not set" in refused.output


def test_what_is_refused_is_said_before_or_after(
    uploads: Uploads, graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(graph_file)
    assert said.exit_code == 2
    assert "--model-id" in said.output
    said = run(graph_file, "--model-id", "Gemma 2")
    assert said.exit_code == 2
    assert "R13" in said.output
    assert not uploads.promised
    said = run(graph_file, "--model-id", "other-model")
    assert said.exit_code == 2
    assert "does not know this model" in said.output
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "wrong")
    said = run(graph_file, "--model-id", MODEL)
    assert said.exit_code == 2
    assert "401" in said.output
    assert "valid key" in said.output
    said = run(graph_file, "--model-id", MODEL, "--with-features")
    assert "--source-set" in said.output


def test_an_exported_file_is_uploaded_as_it_is(uploads: Uploads, demo_graph: Graph, tmp_path: Path) -> None:
    demo_graph.save(tmp_path / "g.safetensors")
    exported = tmp_path / "mine.json"
    arguments = [
        "convert",
        str(tmp_path / "g.safetensors"),
        "-o",
        str(exported),
        "--for",
        "neuronpedia",
        "--scan",
        MODEL,
    ]
    made = CliRunner().invoke(app, [*arguments, "--labels", FEATURES])
    assert made.exit_code == 0, made.output
    assert run(exported).exit_code == 0
    assert uploads.graphs[MODEL, "mine"] == load_viewer_json(exported)
    assert run(exported, "--model-id", MODEL).exit_code == 2
    said = run(exported, "--node-threshold", 0.8)
    assert said.exit_code == 2
    assert "leave --node-threshold out" in said.output
    local = demo_graph.to_json("local", tmp_path, scan="some/transcoders")
    said = run(local)
    assert said.exit_code == 2
    assert "would not take" in said.output


def test_an_exported_file_takes_a_view_and_labels(uploads: Uploads, demo_graph: Graph, tmp_path: Path) -> None:
    exported = demo_graph.to_json("mine", tmp_path, scan=MODEL, target="neuronpedia")
    before = json.loads(exported.read_text(encoding="utf-8"))
    features = [node["node_id"] for node in before["nodes"] if node["feature_type"] == "cross layer transcoder"]
    view = View((features[0],), (("pair", (features[1], features[2])),), {features[3]: "renamed"}, features[0])
    link = view.to_url("http://127.0.0.1:1/?slug=x")
    done = run(exported, "--view", link, "--features", FEATURES)
    assert done.exit_code == 0, done.output
    document = uploads.graphs[MODEL, "mine"]
    assert View.from_q_params(document["qParams"]) == View(view.nodes, view.supernodes, view.labels, view.clicked)
    labels = {node["node_id"]: node["clerp"] for node in document["nodes"]}
    assert labels[features[3]] == "renamed"
    assert all(labels[name] for name in features)
    said = run(exported, "--view", View(("9_9_9",)).to_url("http://127.0.0.1:1/"))
    assert said.exit_code == 2
    assert "9_9_9" in said.output


@pytest.mark.parametrize("clicked", ["none", "difference_3_20_1_3_21_1"])
def test_what_the_page_alone_knows_is_no_part_of_a_link(clicked: str) -> None:
    view = View.from_url(
        f"http://127.0.0.1:1/?clickedId={clicked}&pinnedIds=0_5_0,difference_3_20_1_3_21_1&supernodes=[]"
    )
    assert view == View(("0_5_0",))
