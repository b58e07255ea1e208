"""What the server says of attention heads, against the same asked in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuit_tracer.attention import explain_edge, explain_score
from circuit_tracer.demo import load_labels
from circuit_tracer.graph import Graph
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.viewer.server import Server, serve
from circuit_tracer.viewer.server.columns import Columns
from tests.support.asking import ask, finished
from tests.support.documents import small_document

TABLE = {
    "model": "a model",
    "scores": {
        "induction": "attention to tokens that followed an earlier equal token",
        "ablation": "loss without the head",
    },
    "heads": [{"layer": 0, "head": 1, "induction": 0.5, "ablation": None}],
}


def link_through_heads(document: dict[str, Any]) -> tuple[str, str]:
    """The strongest link between two tokens."""
    place = {node["node_id"]: node["ctx_idx"] for node in document["nodes"]}
    across = [link for link in document["links"] if place[link["source"]] != place[link["target"]]]
    strongest = max(across, key=lambda link: abs(link["weight"]))
    return strongest["source"], strongest["target"]


@pytest.fixture(scope="module")
def asked(
    tmp_path_factory: pytest.TempPathFactory, demo_model: ReplacementModel, demo_graph: Graph
) -> Iterator[Server]:
    """A server that is only asked: the embedded model's graph, and one without its whole file."""
    folder = tmp_path_factory.mktemp("asked")
    demo_graph.save(folder / "demo.safetensors")
    demo_graph.to_json("demo", folder, node_threshold=0.9)
    (folder / "bare.json").write_text(json.dumps(small_document()))
    with serve(folder, port=0, model=demo_model, labels=load_labels()) as server:
        yield server


def document_of(server: Server) -> dict[str, Any]:
    return ask(server, "/api/graphs/demo").json


def test_a_link_is_split_as_python_splits_it(asked: Server, demo_model: ReplacementModel, demo_graph: Graph) -> None:
    source, target = link_through_heads(document_of(asked))
    answer = ask(asked, "/api/graphs/demo/explain-edge", {"source": source, "target": target, "paths": 3})
    assert answer.status == 200, answer.error
    found = answer.json
    assert found == explain_edge(demo_graph, source, target, demo_model, paths=3).to_dict()
    assert sum(weight for *_, weight in found["first"]) + found["direct"] == pytest.approx(found["weight"], rel=1e-4)


@pytest.mark.parametrize(
    ("slug", "body", "status", "part"),
    [
        ("demo", {"source": "E_1_0", "target": "99_1_1"}, 400, "99_1_1"),
        ("demo", {"source": "TARGET", "target": "SOURCE"}, 400, "no edge from"),
        ("demo", {"source": "SOURCE", "target": "TARGET", "paths": -1}, 400, "paths"),
        ("demo", {"source": "SOURCE"}, 400, "target"),
        ("demo", {"source": "SOURCE", "target": 7}, 400, "target"),
        ("bare", {"source": "0_5_0", "target": "1_7_1"}, 409, "whole graph"),
        ("none", {"source": "0_5_0", "target": "1_7_1"}, 404, "no graph"),
    ],
    ids=["no node", "no edge", "no number of paths", "no target", "no text", "only its JSON", "no graph"],
)
def test_what_is_no_link_is_said(asked: Server, slug: str, body: dict[str, Any], status: int, part: str) -> None:
    ends = dict(zip(("SOURCE", "TARGET"), link_through_heads(document_of(asked)), strict=True))
    question = {name: ends.get(value, value) if isinstance(value, str) else value for name, value in body.items()}
    answer = ask(asked, f"/api/graphs/{slug}/explain-edge", question)
    assert (answer.status, part in answer.error) == (status, True), answer.error


def test_the_model_explains_one_thing_at_a_time(asked: Server) -> None:
    with asked.site.jobs.alone("something else"):
        answer = ask(asked, "/api/graphs/demo/explain-edge", {"source": "a", "target": "b"})
    assert (answer.status, "something else" in answer.error) == (503, True)


def test_a_table_of_heads_beside_the_features_is_handed_out(served: Server, graph_folder: Path) -> None:
    assert ask(served, "/api/session").json["heads"] is False
    assert ask(served, "/api/heads").status == 404
    (graph_folder / "features").mkdir()
    (graph_folder / "features" / "heads.json").write_text(json.dumps(TABLE))
    assert ask(served, "/api/session").json["heads"] is True
    assert ask(served, "/api/heads").json == TABLE
    for broken in ("{", "[]", '{"model": "a", "scores": {}, "heads": [{"layer": []}]}'):
        (graph_folder / "features" / "heads.json").write_text(broken)
        answer = ask(served, "/api/heads")
        assert (answer.status, "heads.json" in answer.error) == (400, True)


def test_the_look_of_a_head_is_traced_as_a_target(served: Server, graph_folder: Path) -> None:
    body = {
        "prompt": "the capital of the state containing Dallas is",
        "slug": "look",
        "targets": ["attn:L1H0:8:7:rest"],
    }
    report = finished(served, ask(served, "/api/traces", body))
    assert report["state"] == "done", report
    document = json.loads((graph_folder / "look.json").read_text())
    (target,) = [node for node in document["nodes"] if node["feature_type"] == "logit"]
    assert target["target_kind"] == "attention"
    assert target["token"].startswith("L1H0 ")
    report = finished(served, ask(served, "/api/traces", {**body, "targets": ["attn:L1H0:7:8"], "replace": True}))
    assert report["state"] == "failed"


def test_all_links_are_split_and_both_files_keep_it(
    demo_served: Server, graph_folder: Path, demo_model: ReplacementModel, demo_graph: Graph
) -> None:
    before = json.loads((graph_folder / "demo.json").read_text())
    report = finished(demo_served, ask(demo_served, "/api/graphs/demo/explain-links", {"keep": 2}))
    assert report["state"] == "done", report
    after = ask(demo_served, "/api/graphs/demo").json
    assert report["result"] == {"links": len(before["links"])}
    assert [{**link, "heads": None} for link in before["links"]] == [{**link, "heads": None} for link in after["links"]]
    source, target = link_through_heads(before)
    (heads,) = [each["heads"] for each in after["links"] if (each["source"], each["target"]) == (source, target)]
    expected = explain_edge(demo_graph, source, target, demo_model)
    assert heads["hops"] == pytest.approx(expected.mean_hops, rel=1e-4)
    assert [row[:2] for row in heads["first"]] == [[row.layer, row.head] for row in expected.strongest(2)["first"]]
    kept = Graph.load(graph_folder / "demo.safetensors").edge_heads
    assert kept is not None
    assert len(kept) == len(before["links"])
    part = Columns(after).part(1000, 5)
    assert all(link["heads"]["first"] is not None for link in part["links"])


def test_a_score_is_explained_as_python_explains_it(
    asked: Server, demo_model: ReplacementModel, demo_graph: Graph
) -> None:
    question = {"layer": 1, "head": 0, "query": 8, "key": 7, "versus": "rest"}
    answer = ask(asked, "/api/graphs/demo/explain-score", question)
    assert answer.status == 200, answer.error
    expected = explain_score(demo_graph, demo_model, 1, 0, 8, 7, "rest")
    found = answer.json
    labels = found.pop("labels")
    assert found == json.loads(json.dumps(expected.to_dict(20, 20)))
    assert set(labels) <= set(expected.kept(20, 20).ids)
    assert "Texas (places)" in labels.values()
    for versus in (2, None):
        answer = ask(asked, "/api/graphs/demo/explain-score", {**question, "versus": versus})
        assert answer.json["score"] == pytest.approx(explain_score(demo_graph, demo_model, 1, 0, 8, 7, versus).score)
    strongest = ask(asked, "/api/graphs/demo/explain-score", {"layer": 1, "head": 0, "query": 8}).json
    assert strongest["key"] == max(range(9), key=strongest["pattern"].__getitem__)


@pytest.mark.parametrize(
    ("change", "status", "part"),
    [
        ({"layer": 4}, 400, "layers"),
        ({"head": 2}, 400, "head"),
        ({"query": 9}, 400, "positions 0 to 8"),
        ({"query": 3, "key": 7}, 400, "sees nothing later"),
        ({"key": 50}, 400, "positions 0 to 8"),
        ({"versus": 7}, 400, "the key itself"),
        ({"versus": "all"}, 400, "versus"),
        ({"versus": True}, 400, "versus"),
        ({"layer": -1}, 400, "layer"),
        ({"head": None}, 400, "head"),
        ({"slug": "bare"}, 409, "whole graph"),
    ],
    ids=lambda value: "-".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else None,
)
def test_what_is_no_look_of_a_head_is_said(asked: Server, change: dict[str, Any], status: int, part: str) -> None:
    question = {"layer": 1, "head": 0, "query": 8, "key": 7, **change}
    answer = ask(asked, f"/api/graphs/{question.pop('slug', 'demo')}/explain-score", question)
    assert (answer.status, part in answer.error) == (status, True), answer.error
