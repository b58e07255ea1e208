"""What the server does with a model, against the same done in Python: traces, interventions, steering, jobs."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.demo import PROMPT
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.interventions import Sampling, Supernode, ablate, apply_edits, scale, steer
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.viewer.server import Server
from circuit_tracer.viewer.server.jobs import Job, Jobs
from circuit_tracer.viewer.server.problems import Busy, NotThere
from tests.support.asking import ask, finished


def traced(server: Server, **more: Any) -> dict[str, Any]:
    report = finished(server, ask(server, "/api/traces", {"prompt": PROMPT, "slug": "demo", **more}))
    assert report["state"] == "done", report
    return ask(server, "/api/graphs/demo").json


def features(document: dict[str, Any], count: int) -> list[str]:
    kind = "cross layer transcoder"
    nodes = [node for node in document["nodes"] if node["feature_type"] == kind]
    return [node["node_id"] for node in sorted(nodes, key=lambda node: node["influence"])[:count]]


def places(names: list[str]) -> list[tuple[int, int, int]]:
    return [(int(layer), int(position), int(index)) for layer, index, position in (n.split("_") for n in names)]


def test_a_trace_is_that_of_attribute_and_saved_whole(served: Server, graph_folder: Path, demo_graph: Graph) -> None:
    document = traced(served, node_threshold=0.95)
    again = Graph.load(graph_folder / "demo.safetensors")
    assert (again.adjacency_matrix == demo_graph.adjacency_matrix).all()
    assert document["metadata"]["node_threshold"] == 0.95
    assert any(node["clerp"] and node["feature_type"] == "cross layer transcoder" for node in document["nodes"])
    index = json.loads((graph_folder / "graph-metadata.json").read_text())["graphs"]
    assert [entry["slug"] for entry in index] == ["small", "demo"]


@pytest.mark.slow("takes 1.4 s")
def test_what_the_page_asks_for_and_what_a_cell_does_beside_it_are_right(
    served: Server, graph_folder: Path, demo_model: ReplacementModel, demo_graph: Graph
) -> None:
    wrong: list[int] = []

    def cell() -> None:
        for number in range(6):
            demo_model.feature_intervention("the language of the country containing Lyon is", [(0, 1, 2, 50.0)])
            if not (attribute(PROMPT, demo_model).adjacency_matrix == demo_graph.adjacency_matrix).all():
                wrong.append(number)

    beside = threading.Thread(target=cell)
    beside.start()
    while beside.is_alive():
        traced(served, replace=True)
        saved = Graph.load(graph_folder / "demo.safetensors")
        assert (saved.adjacency_matrix == demo_graph.adjacency_matrix).all()
    assert not wrong


def test_names_of_traces(served: Server) -> None:
    traced(served)
    assert ask(served, "/api/traces", {"prompt": PROMPT, "slug": "demo"}).status == 409
    traced(served, replace=True)
    for expected in ("of-the-state-containing-dallas-is", "of-the-state-containing-dallas-is-2"):
        report = finished(served, ask(served, "/api/traces", {"prompt": PROMPT}))
        assert report["result"]["slug"] == expected


def test_tokens_are_those_that_are_traced(served: Server) -> None:
    shown = ask(served, "/api/tokens", {"prompt": PROMPT}).json
    document = traced(served)
    assert [token["text"] for token in shown["tokens"]] == document["metadata"]["prompt_tokens"]
    assert shown["most"] == 64


def test_outputs_are_what_the_model_says_next(served: Server, demo_model: ReplacementModel) -> None:
    shown = ask(served, "/api/outputs", {"prompt": PROMPT}).json["outputs"]
    odds = demo_model(PROMPT)[0, -1].softmax(-1)
    assert [each["id"] for each in shown] == odds.topk(8).indices.tolist()
    assert [each["probability"] for each in shown] == pytest.approx(odds.topk(8).values.tolist(), abs=1e-5)
    assert shown[0]["text"].strip() == "Austin"
    assert "at most 64" in ask(served, "/api/outputs", {"prompt": "the " * 100}).error
    with served.site.jobs.alone("something else"):
        assert ask(served, "/api/outputs", {"prompt": PROMPT}).json == {"outputs": []}


@pytest.mark.few
@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"prompt": "the capital", "targets": ["no such token at all"]}, 200, "no such token"),
        ({"prompt": "the " * 100}, 200, "64"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, 200, "not both"),
        ({"messages": [{"role": "user", "content": "b"}]}, 200, "no chat template"),
        ({"prompt": "a", "max_n_logits": 0}, 400, "max_n_logits"),
        ({"prompt": "a", "max_n_logits": "3"}, 400, "max_n_logits"),
        ({"prompt": "a", "unknown": 1}, 400, "unknown"),
        ({"prompt": 7}, 400, "prompt"),
    ],
)
def test_what_cannot_be_traced_is_said(served: Server, body: dict[str, Any], status: int, part: str) -> None:
    answer = ask(served, "/api/traces", body)
    assert answer.status == status
    error = answer.error if status == 400 else finished(served, answer)["error"]
    assert part in error


def test_interventions_are_those_of_python(served: Server, demo_model: ReplacementModel, demo_graph: Graph) -> None:
    document = traced(served)
    first, second, third = features(document, 3)
    edits = [
        {"nodes": [first, second], "how": "ablate", "name": "a pair"},
        {"nodes": [third], "how": "scale", "amount": 2.0},
    ]
    for semantics in ("direct", "constrained", "iterative"):
        asked = {"edits": edits, "semantics": semantics}
        report = finished(served, ask(served, "/api/graphs/demo/intervene", asked))
        assert report["state"] == "done", report
        found = report["result"]
        pair = Supernode("a pair", places([first, second]))
        outcome = apply_edits(demo_model, demo_graph, [ablate(pair), scale(places([third])[0], 2.0)], semantics)
        assert found["edits"] == [str(edit) for edit in outcome.edits]
        assert found["edits"][0] == "a pair set to 0"
        expected = {token.token_id: token for token in outcome.tokens(8)}
        for token in found["tokens"]:
            if token["token_id"] in expected:
                here = expected[token["token_id"]]
                assert token["probability_after"] == pytest.approx(here.probability_after, abs=1e-6)
                assert token["rank_after"] == here.rank_after
        moved = {str(feature): (before, after) for feature, before, after in outcome.features.largest(3)}
        assert moved
        assert found["given"][first] == 0
        targets = [node for node in document["nodes"] if node["feature_type"] == "logit"]
        for node in targets:
            assert found["nodes"][node["node_id"]][0] == pytest.approx(node["token_prob"], abs=1e-5)


def test_a_graph_without_its_whole_file_is_rerun_from_its_own_tokens(served: Server, graph_folder: Path) -> None:
    document = traced(served)
    edits = {"edits": [{"nodes": features(document, 2), "how": "ablate"}]}
    with_file = finished(served, ask(served, "/api/graphs/demo/intervene", edits))["result"]
    (graph_folder / "demo.safetensors").unlink()
    assert finished(served, ask(served, "/api/graphs/demo/intervene", edits))["result"] == with_file
    del document["metadata"]["digest"]
    document["nodes"] = [
        {**node, "activation": 2 * node["activation"]} if node["activation"] else node for node in document["nodes"]
    ]
    (graph_folder / "demo.json").write_text(json.dumps(document))
    assert "another model" in finished(served, ask(served, "/api/graphs/demo/intervene", edits))["error"]
    elsewhere = {"edits": [{"nodes": ["0_0_1"], "how": "set", "amount": 1}]}
    assert "0_0_1" not in {node["node_id"] for node in document["nodes"]}
    assert "another model" in finished(served, ask(served, "/api/graphs/demo/intervene", elsewhere))["error"]
    for node in document["nodes"]:
        node.pop("activation", None)
    (graph_folder / "demo.json").write_text(json.dumps(document))
    for asked in (edits, elsewhere):
        error = finished(served, ask(served, "/api/graphs/demo/intervene", asked))["error"]
        assert "says no activation" in error
        assert "put the whole graph" in error


@pytest.mark.few
@pytest.mark.parametrize(
    ("edit", "part"),
    [
        ({"nodes": ["E_1_0"], "how": "ablate"}, "no feature"),
        ({"nodes": ["0_-1_1"], "how": "ablate"}, "no feature"),
        ({"nodes": ["0_999999_1"], "how": "ablate"}, "layer 0 has features 0 to "),
        ({"nodes": ["99_1_1"], "how": "ablate"}, "layer 99"),
        ({"nodes": ["0_1_60"], "how": "ablate"}, "position 60"),
        ({"nodes": ["0_1_1"], "how": "ablate", "at": "generated"}, "generated"),
    ],
)
def test_what_cannot_be_changed_is_said(served: Server, edit: dict[str, Any], part: str) -> None:
    traced(served)
    report = finished(served, ask(served, "/api/graphs/demo/intervene", {"edits": [edit]}))
    assert report["state"] == "failed"
    assert part in report["error"]


def test_a_graph_of_another_model_is_refused(served: Server) -> None:
    edits = {"edits": [{"nodes": ["0_5_0"], "how": "ablate"}]}
    report = finished(served, ask(served, "/api/graphs/small/intervene", edits))
    assert report["state"] == "failed"
    assert "another model" in report["error"]


def test_steering_is_that_of_python_and_streamed(
    served: Server, demo_model: ReplacementModel, demo_graph: Graph
) -> None:
    document = traced(served)
    names = features(document, 3)
    edits = [{"nodes": names, "how": "scale", "amount": -3.0, "at": "all"}]
    asked = {"edits": edits, "max_new_tokens": 6, "temperature": 0.8, "seed": 4}
    report = finished(served, ask(served, "/api/graphs/demo/steer", asked))
    expected = steer(demo_model, demo_graph.input_tokens, [scale(places(names), -3.0, "all")], Sampling(6, 0.8, seed=4))
    found = report["result"]
    assert found["steered"]["text"] == expected.steered.text == report["text"]
    assert expected.unsteered is not None
    assert found["unsteered"]["text"] == expected.unsteered.text
    assert len(found["steered"]["tokens"]) == len(expected.steered.ids)


def test_progress_is_streamed_as_events_until_the_end(served: Server) -> None:
    started = ask(served, "/api/traces", {"prompt": PROMPT, "slug": "demo"})
    answer = ask(served, f"/api/jobs/{started.json['id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    reports = [json.loads(line.removeprefix("data: ")) for line in answer.data.decode().split("\n\n") if line]
    assert reports[-1]["state"] == "done"
    assert reports[-1]["result"]["slug"] == "demo"
    assert all(report["state"] == "running" for report in reports[:-1])
    assert ask(served, "/api/jobs/none").status == 404
    assert ask(served, "/api/jobs/none/events").status == 404


def test_a_trace_is_cancelled_between_blocks_of_rows(
    served: Server, graph_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Job.progress

    def wait_for_the_cancel(job: Job, stage: str, done: int = 0, total: int = 0) -> None:
        slow(job, stage, done, total)
        while done and not job.cancelling:
            time.sleep(0.01)

    monkeypatch.setattr(Job, "progress", wait_for_the_cancel)
    started = ask(served, "/api/traces", {"prompt": PROMPT, "slug": "demo"})
    address = f"/api/jobs/{started.json['id']}"
    while not (report := ask(served, address).json)["done"]:
        assert report["state"] == "running"
        time.sleep(0.01)
    assert 0 < report["done"] <= report["total"]
    assert ask(served, "/api/traces", {"prompt": PROMPT, "slug": "two"}).status == 503
    assert ask(served, "/check-busy", headers={"x-secret-key": "secret"}).json == {"busy": True}
    assert ask(served, address, method="DELETE").status == 200
    report = finished(served, started)
    assert (report["state"], report["error"]) == ("cancelled", None)
    assert not (graph_folder / "demo.json").exists()
    monkeypatch.undo()
    traced(served)


def test_stopping_the_server_ends_what_it_does(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Job.progress

    def wait_for_the_end(job: Job, stage: str, done: int = 0, total: int = 0) -> None:
        slow(job, stage, done, total)
        while done and not job.cancelling:
            time.sleep(0.01)

    monkeypatch.setattr(Job, "progress", wait_for_the_end)
    started = ask(served, "/api/traces", {"prompt": PROMPT, "slug": "demo"}).json
    served.stop()
    assert served.site.jobs.find(started["id"]).state == "cancelled"


def test_jobs_one_at_a_time_and_a_failure_frees_the_place() -> None:
    jobs = Jobs()
    with jobs.alone("something"):
        assert jobs.busy
        with pytest.raises(Busy, match="something"):
            jobs.start("trace", lambda job: {})
    for error, words in ((InputError("a reason"), "a reason"), (ZeroDivisionError("a slip"), "a failure of ours")):

        def fail(job: Job, error: Exception = error) -> dict[str, Any]:
            raise error

        job = jobs.start("trace", fail)
        while job.state == "running":
            time.sleep(0.001)
        assert job.state == "failed"
        assert words in str(job.error)
    with pytest.raises(NotThere):
        jobs.find("none")
