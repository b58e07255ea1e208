"""Graphs of a folder: listed, handed out whole or in parts, saved and pruned anew."""

from __future__ import annotations

import gzip
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.circuits import group_nodes
from circuit_tracer.circuits.naming import name_groups
from circuit_tracer.demo import FEATURES, load_labels
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.read_json import load_viewer_json
from circuit_tracer.graph.files.validate import validate_document
from circuit_tracer.viewer.server import Server, serve
from circuit_tracer.viewer.server.columns import Columns
from tests.support.asking import ask, finished
from tests.support.documents import large_document, small_document


def test_the_list_names_graphs_of_the_index_and_others(served: Server, graph_folder: Path) -> None:
    (graph_folder / "unlisted.json").write_text("{}")
    (graph_folder / "packed.json.gz").write_bytes(gzip.compress(json.dumps(small_document()).encode()))
    (graph_folder / "small.safetensors").write_bytes(b"")
    listed = ask(served, "/api/graphs").json
    assert listed["warning"] is None
    assert [entry["slug"] for entry in listed["graphs"]] == ["small", "packed", "unlisted"]
    first = listed["graphs"][0]
    assert (first["prompt"], first["can_prune"]) == ("one two", True)
    assert first["bytes"] == (graph_folder / "small.json").stat().st_size


def test_a_damaged_index_is_said_and_the_graphs_are_listed_all_the_same(served: Server, graph_folder: Path) -> None:
    (graph_folder / "graph-metadata.json").write_text("{")
    listed = ask(served, "/api/graphs").json
    assert "mend it" in listed["warning"]
    assert [entry["slug"] for entry in listed["graphs"]] == ["small"]


def test_circuit_tracers_addresses(served: Server, graph_folder: Path) -> None:
    assert ask(served, "/data/graph-metadata.json").json["graphs"][0]["slug"] == "small"
    for path in ("/graph_data/small.json", "/data/small.json", "/api/graphs/small"):
        assert ask(served, path).json == small_document()
    answer = ask(served, "/save_graph/small", {"qParams": {"pinnedIds": "0_5_0,1_7_1", "supernodes": None, "x": 1}})
    assert answer.status == 200
    saved = json.loads((graph_folder / "small.json").read_text())
    assert saved["qParams"]["pinnedIds"] == ["0_5_0", "1_7_1"]
    assert validate_document(saved) == []


def test_large_files_are_compressed_for_those_who_take_it(served: Server, graph_folder: Path) -> None:
    document = large_document(3000, 20_000)
    (graph_folder / "large.json").write_text(json.dumps(document))
    plain = ask(served, "/graph_data/large.json")
    packed = ask(served, "/graph_data/large.json", headers={"accept-encoding": "gzip, br"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert len(packed.data) < len(plain.data) / 3


def test_a_packed_graph_is_read_and_saved_packed(served: Server, graph_folder: Path) -> None:
    path = graph_folder / "packed.json.gz"
    path.write_bytes(gzip.compress(json.dumps(small_document()).encode()))
    assert ask(served, "/api/graphs/packed").json["metadata"]["prompt"] == "one two"
    assert ask(served, "/data/packed.json.gz").json == small_document()
    assert ask(served, "/api/graphs/packed/view", {"pinnedIds": ["0_5_0"]}, "PUT").status == 200
    assert json.loads(gzip.decompress(path.read_bytes()))["qParams"]["pinnedIds"] == ["0_5_0"]


def test_a_view_is_saved_and_the_rest_of_the_file_stays(served: Server, graph_folder: Path) -> None:
    view = {
        "pinnedIds": ["0_5_0", "1_7_1"],
        "supernodes": [["a <b>pair</b>", "0_5_0", "1_7_1"]],
        "sg_pos": "10 20",
        "clerps": [["0_5_0", "été \u2028 </script>"]],
        "clickedId": "1_7_1",
        "linkType": "input",
    }
    answer = ask(served, "/api/graphs/small/view", view, "PUT")
    assert answer.json == view
    assert load_viewer_json(graph_folder / "small.json") == {**small_document(), "qParams": view}
    assert ask(served, "/api/graphs/small").json == json.loads((graph_folder / "small.json").read_text())


def test_labels_of_nodes_that_a_pruned_file_lacks_are_kept(served: Server, graph_folder: Path) -> None:
    document = small_document()
    document["qParams"]["clerps"] = [["5_99_1", "elsewhere"], ["0_5_0", "old"]]
    (graph_folder / "small.json").write_text(json.dumps(document))
    answer = ask(served, "/api/graphs/small/view", {"clerps": [["0_6_1", "new"]]}, "PUT")
    assert answer.json["clerps"] == [["0_6_1", "new"], ["5_99_1", "elsewhere"]]


@pytest.mark.few
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty; expected JSON"),
        ('{"metadata": {}', "not readable JSON"),
        ("[]", "no graph"),
        ('{"metadata": {}, "nodes": [{}], "links": []}', "lacks a field"),
        ('{"metadata": {}, "nodes": [], "links": 3}', "its links are 3"),
        ('{"metadata": {}, "nodes": [], "links": [{}]}', "lacks a field"),
    ],
)
def test_a_malformed_graph_gives_a_message(served: Server, graph_folder: Path, text: str, part: str) -> None:
    (graph_folder / "bad.json").write_text(text)
    for answer in (ask(served, "/api/graphs/bad?nodes=10"), ask(served, "/api/graphs/bad/view", {}, "PUT")):
        assert answer.status == 400
        assert part in answer.error
    assert (graph_folder / "bad.json").read_text() == text


def test_pruning_anew_keeps_the_view_and_needs_the_whole_graph(
    served: Server, graph_folder: Path, demo_graph: Graph
) -> None:
    demo_graph.save(graph_folder / "demo.safetensors")
    demo_graph.to_json("demo", graph_folder)
    first = ask(served, "/api/graphs/demo").json
    feature = next(node["node_id"] for node in first["nodes"] if node["feature_type"] == "cross layer transcoder")
    ask(served, "/api/graphs/demo/view", {"pinnedIds": [feature], "clerps": [[feature, "mine"]]}, "PUT")
    answer = ask(served, "/api/graphs/demo/prune", {"node_threshold": 0.99, "edge_threshold": 0.99})
    again = ask(served, "/api/graphs/demo").json
    assert answer.json == {"nodes": len(again["nodes"]), "links": len(again["links"])}
    assert len(again["nodes"]) > len(first["nodes"])
    assert again["qParams"]["pinnedIds"] == [feature]
    assert again["qParams"]["clerps"] == [[feature, "mine"]]
    assert again["metadata"]["node_threshold"] == 0.99
    assert any("sum_rule" in node for node in again["nodes"])
    assert validate_document(again) == []
    assert ask(served, "/api/graphs/small/prune", {}).status == 409
    assert ask(served, "/api/graphs/demo/prune", {"node_threshold": 2}).status == 400


def test_pruning_anew_keeps_what_the_file_says(graph_folder: Path, demo_graph: Graph) -> None:
    demo_graph.save(graph_folder / "demo.safetensors")
    details = {"neuronpedia_source_set": "mine"}
    demo_graph.to_json(
        "demo",
        graph_folder,
        scan=["one", "two"],
        labels=load_labels(),
        policy="paper",
        feature_details=details,
        info={"creator_name": "me"},
        node_threshold=0.5,
    )
    with serve(graph_folder, port=0) as server:
        first = ask(server, "/api/graphs/demo").json
        assert ask(server, "/api/graphs/demo/prune", {"node_threshold": 0.95}).status == 200
        again = ask(server, "/api/graphs/demo").json
    before, after = _labelled(first), _labelled(again)
    assert before.items() <= after.items()
    features = {name.rsplit("_", 1)[0] for name in before}
    assert {name for name in _features(again) if name.rsplit("_", 1)[0] in features} <= set(after)
    metadata = again["metadata"]
    assert metadata["feature_details"] == details
    assert metadata["pruning_settings"] == {"node_threshold": 0.95, "edge_threshold": 0.98, "policy": "paper"}
    assert metadata["info"]["creator_name"] == "me"
    assert metadata["info"]["create_time_ms"] >= first["metadata"]["info"]["create_time_ms"]
    assert (metadata["scan"], metadata["transcoder_list"]) == (first["metadata"]["scan"], ["one", "two"])


def test_labels_of_the_folder_of_features_name_features_that_come_in(graph_folder: Path, demo_graph: Graph) -> None:
    demo_graph.save(graph_folder / "demo.safetensors")
    demo_graph.to_json("demo", graph_folder, node_threshold=0.5)
    with serve(graph_folder, features_dir=FEATURES, port=0) as server:
        assert ask(server, "/api/graphs/demo/prune", {"node_threshold": 0.9}).status == 200
        document = ask(server, "/api/graphs/demo").json
    assert set(_labelled(document)) == set(_features(document))


def test_pinned_and_grouped_nodes_stay_when_less_is_kept(graph_folder: Path, demo_graph: Graph) -> None:
    demo_graph.save(graph_folder / "demo.safetensors")
    demo_graph.to_json("demo", graph_folder, node_threshold=1.0, edge_threshold=1.0)
    with serve(graph_folder, port=0) as server:
        whole = ask(server, "/api/graphs/demo").json
        kinds = ("cross layer transcoder", "mlp reconstruction error")
        weak = sorted((n for n in whole["nodes"] if n["feature_type"] in kinds), key=lambda n: -n["influence"])
        pinned, *members = [node["node_id"] for node in weak[:3]]
        view = {"pinnedIds": [pinned, "99_0_0", "no node"], "supernodes": [["weak", *members]]}
        ask(server, "/api/graphs/demo/view", view, "PUT")
        assert ask(server, "/api/graphs/demo/prune", {"node_threshold": 0.3}).status == 200
        again = ask(server, "/api/graphs/demo").json
    assert {pinned, *members} <= {node["node_id"] for node in again["nodes"]}
    assert len(again["nodes"]) < len(whole["nodes"]) / 2
    weights = {(link["source"], link["target"]): link["weight"] for link in whole["links"]}
    links = {(link["source"], link["target"]): link["weight"] for link in again["links"]}
    assert links.items() <= weights.items()
    left = {node["node_id"] for node in again["nodes"]}
    ends = [pair for pair in weights if pinned in pair and left.issuperset(pair)]
    assert ends
    assert links.keys() >= set(ends)
    assert validate_document(again) == []


def _features(document: dict[str, Any]) -> list[str]:
    return [node["node_id"] for node in document["nodes"] if node["feature_type"] == "cross layer transcoder"]


def _labelled(document: dict[str, Any]) -> dict[str, str]:
    features = set(_features(document))
    return {
        node["node_id"]: node["clerp"] for node in document["nodes"] if node["node_id"] in features and node["clerp"]
    }


@settings(max_examples=30, deadline=None)
@given(nodes=st.integers(1, 400), links=st.integers(1, 1500), around=st.integers(60, 299))
def test_a_part_is_a_graph_whose_shares_are_those_of_the_whole(nodes: int, links: int, around: int) -> None:
    document = _document()
    centre = document["nodes"][around]["node_id"]
    part = Columns(document).part(nodes, links, [centre])
    if nodes >= 300 and links >= 1200:
        assert part is document
        return
    assert validate_document(part) == []
    facts = part["metadata"]["part"]
    assert (facts["nodes"], facts["of_nodes"]) == (len(part["nodes"]), 300)
    assert (facts["links"], facts["of_links"]) == (len(part["links"]), 1200)
    assert len(part["links"]) <= links
    names = {node["node_id"] for node in part["nodes"]}
    always = {n["node_id"] for n in document["nodes"] if n["feature_type"] in ("embedding", "logit")}
    assert always | {centre} <= names
    mass = defaultdict(float)
    for link in document["links"]:
        mass[link["target"]] += abs(link["weight"])
    assert all(math.isclose(node["input_mass"], mass[node["node_id"]], abs_tol=1e-9) for node in part["nodes"])
    known = {(link["source"], link["target"]): link["weight"] for link in document["links"]}
    assert all(known[link["source"], link["target"]] == link["weight"] for link in part["links"])
    neighbours = {s for s, t in known if t == centre} | {t for s, t in known if s == centre}
    assert neighbours <= names


def _document() -> dict[str, Any]:
    return large_document(300, 1200)


def test_large_graphs_are_served_in_parts(served: Server, graph_folder: Path) -> None:
    document = large_document(400, 3000)
    (graph_folder / "large.json").write_text(json.dumps(document))
    small = ask(served, "/api/graphs/large?nodes=100&links=200").json
    facts = small["metadata"]["part"]
    assert (facts["nodes"], facts["of_nodes"], facts["of_links"]) == (100, 400, 3000)
    assert facts["links"] == len(small["links"]) <= 200
    shown = {node["node_id"] for node in small["nodes"]}
    weak = next(node["node_id"] for node in document["nodes"] if node["node_id"] not in shown)
    near = ask(served, f"/api/graphs/large?nodes=100&links=200&around={weak},no_such_node").json
    assert weak in {node["node_id"] for node in near["nodes"]}
    assert ask(served, "/api/graphs/large").json == document
    for query in ("nodes=0", "nodes=-1", "links=x", "nodes=99999999999999999999"):
        assert ask(served, f"/api/graphs/large?{query}").status == 400


def test_features_come_by_file_and_by_range(served: Server, graph_folder: Path) -> None:
    assert ask(served, "/features/20.json").status == 404
    (graph_folder / "features").mkdir()
    (graph_folder / "features" / "20.json").write_text('{"index": 5}')
    (graph_folder / "features" / "layer.bin").write_bytes(bytes(range(256)) * 100)
    packed = gzip.compress(b"{}")
    (graph_folder / "features" / "index.json.gz").write_bytes(packed)
    assert ask(served, "/features/20.json").json == {"index": 5}
    answer = ask(served, "/features/layer.bin", headers={"range": "bytes=256-300", "accept-encoding": "gzip"})
    assert (answer.status, answer.data) == (206, bytes(range(45)))
    index = ask(served, "/features/index.json.gz", headers={"accept-encoding": "gzip"})
    assert index.data == packed
    assert "content-encoding" not in index.headers


def test_a_taken_port_gives_way_to_a_free_one(served: Server, graph_folder: Path) -> None:
    with serve(graph_folder, port=served.port) as other:
        assert other.port != served.port
        assert ask(other, "/api/session").json["model"] is None
        assert ask(other, "/api/traces", {"prompt": "a"}).status == 409
        assert "without a model" in ask(other, "/api/tokens", {"prompt": "a"}).error
        other.stop()
        other.stop()
    with pytest.raises(OSError, match="refused"):
        ask(other, "/")


def test_folders_that_are_not_there_are_refused(graph_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of graphs"):
        serve(tmp_path / "gone")
    with pytest.raises(InputError, match="no folder of features"):
        serve(graph_folder, features_dir=tmp_path / "gone")
    with pytest.raises(InputError, match=r"index\.html"):
        serve(graph_folder, frontend_dir=tmp_path)
    with pytest.raises(InputError, match="port 70000"):
        serve(graph_folder, port=70_000)
    with pytest.raises(InputError, match="empty"):
        serve(graph_folder, neuronpedia_secret=" ")


def test_another_page_can_be_served(graph_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "index.html").write_text("<p>mine</p>")
    with serve(graph_folder, tmp_path / "front", port=0) as server:
        answer = ask(server, "/")
        assert answer.data == b"<p>mine</p>"
        assert "content-security-policy" not in answer.headers
        assert "SameSite=strict" in answer.headers["set-cookie"]
        assert any("GET / 200" in line for line in server.get_logs())


def test_circuit_tracers_import_path() -> None:
    from circuit_tracer.frontend.local_server import serve as theirs

    assert theirs is serve


def test_groups_that_are_offered_are_those_of_python_and_change_nothing(
    demo_served: Server, graph_folder: Path, demo_graph: Graph
) -> None:
    before = (graph_folder / "demo.json").read_bytes()
    report = finished(demo_served, ask(demo_served, "/api/graphs/demo/group", {}))
    assert report["state"] == "done", report
    offered = report["result"]
    grouping = group_nodes(demo_graph, labels=load_labels(), node_threshold=0.9)
    groups = {group.members for group in name_groups(demo_graph, grouping, labels=load_labels())}
    assert {tuple(members) for _, *members in offered["supernodes"]} <= groups
    assert all(name for name, *_ in offered["supernodes"])
    assert {name for _, *members in offered["supernodes"] for name in members} < set(offered["pinned"])
    assert offered["purity"] == grouping.score.purity
    assert (graph_folder / "demo.json").read_bytes() == before
    (graph_folder / "demo.safetensors").unlink()
    assert "needs the whole graph" in ask(demo_served, "/api/graphs/demo/group", {}).error
