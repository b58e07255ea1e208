from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.graph import Edges, Graph, LogitTarget, TargetTable, prune_graph
from circuit_tracer.graph.files.node_ids import cantor_pair, cantor_unpair
from circuit_tracer.graph.files.read_json import from_json, load_viewer_json, typed_q_params
from circuit_tracer.graph.files.validate import upload_size_problems, validate_document
from circuit_tracer.graph.files.viewer_json import create_graph_files, scan_name
from tests.support.graph_cases import graphs, random_graph

GOLDEN = Path(__file__).parent / "data" / "golden-graph.json"


def golden_graph() -> Graph:
    """Two tokens, one layer of error nodes, two features, two targets, one of them with a quote and a newline."""
    target, source, weight = zip(
        (0, 4, 1.5), (1, 5, -0.25), (1, 4, 0.5), (6, 0, 2.0), (6, 1, -1.0), (6, 3, 0.125), (7, 1, 4.0), (7, 5, 1e-6),
        strict=True,
    )  # fmt: skip
    return Graph(
        input_string="<s>a",
        input_tokens=torch.tensor([1, 9]),
        active_features=torch.tensor([[0, 0, 3], [0, 1, 2], [0, 1, 8]]),
        adjacency_matrix=Edges.from_coo(torch.tensor(target), torch.tensor(source), torch.tensor(weight), 8),
        cfg={"n_layers": 1, "d_vocab": 20, "model_name": "org/tiny"},
        selected_features=torch.tensor([0, 2]),
        activation_values=torch.tensor([0.5, 9.0, 0.1]),
        logit_targets=[LogitTarget("b", 5), LogitTarget('"\n', 6)],
        logit_probabilities=torch.tensor([0.75, 0.25]),
        token_strings=["<s>", "a"],
        provenance={"settings": {"max_n_logits": 10, "max_feature_nodes": None}},
    )


def written(graph: Graph, folder: Path, slug: str = "g", **options: Any) -> dict[str, Any]:
    return json.loads(create_graph_files(graph, slug, folder, **options).read_text(encoding="utf-8"))


def test_golden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1.5)
    monkeypatch.setattr("circuit_tracer.graph.files.viewer_json.package_version", lambda: "1.2.3")
    document = written(golden_graph(), tmp_path, node_threshold=1.0, edge_threshold=1.0, labels={(0, 3): "three"})
    assert document == json.loads(GOLDEN.read_text(encoding="utf-8"))


@given(graphs(torch.float32), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["circuit-tracer", "paper"]))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_export_is_valid_and_comes_back(
    tmp_path: Path, graph: Graph, node_threshold: float, edge_threshold: float, policy: str
) -> None:
    thresholds = {"node_threshold": node_threshold, "edge_threshold": edge_threshold, "policy": policy}
    document = written(graph, tmp_path, **thresholds)
    assert validate_document(document) == []
    pruned = prune_graph(graph, node_threshold, edge_threshold, policy)  # type: ignore[arg-type]
    directed = from_json(document)
    assert directed.graph["repairs"] == []
    weights = torch.tensor([link["weight"] for link in document["links"]], dtype=torch.float32)
    assert torch.equal(weights, pruned.pruned_edges.weight)
    assert directed.number_of_edges() == len(weights)
    kinds = [data["kind"] for _, data in directed.nodes(data=True)]
    assert kinds.count("token") == graph.n_pos
    assert kinds.count("target") == len(graph.targets)
    features = {(d["layer"], d["position"], d["index"]) for _, d in directed.nodes(data=True) if d["kind"] == "feature"}
    active = {tuple(row) for row in graph.active_features[graph.selected_features].tolist()}
    assert features <= active


def test_index_keeps_one_entry_a_slug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for slug, scan in (("a", "first"), ("b", "second"), ("a", "third")):
        create_graph_files(random_graph(), slug, "relative/folder", scan)
    index = json.loads(Path("relative/folder/graph-metadata.json").read_text())
    assert [(entry["slug"], entry["scan"]) for entry in index["graphs"]] == [("a", "third"), ("b", "second")]
    Path("relative/folder/graph-metadata.json").write_text("{}")
    before = Path("relative/folder/a.json").read_bytes()
    with pytest.raises(FileFormatError, match="mend it"):
        create_graph_files(random_graph(seed=1), "a", "relative/folder")
    assert Path("relative/folder/a.json").read_bytes() == before


def test_files_are_exported_too(tmp_path: Path) -> None:
    graph = random_graph(dtype=torch.float32)
    graph.save(tmp_path / "g.safetensors")
    graph.to_pt(tmp_path / "g.pt")
    direct = written(graph, tmp_path)
    from_native = written(tmp_path / "g.safetensors", tmp_path, slug="n")
    from_pt = written(tmp_path / "g.pt", tmp_path, slug="p", token_strings=graph.token_strings)
    assert direct["nodes"] == from_native["nodes"] == from_pt["nodes"]
    assert direct["links"] == from_native["links"] == from_pt["links"]
    with pytest.raises(InputError, match="token_strings"):
        create_graph_files(tmp_path / "g.pt", "p", tmp_path)


def test_what_cannot_be_exported_is_said_before_writing(tmp_path: Path) -> None:
    graph = random_graph()
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (("../x", tmp_path), "slug"),
        (("", tmp_path), "slug"),
        (("graph-metadata", tmp_path), "slug"),
        (("x", tmp_path / "file"), "cannot write"),
    ):
        with pytest.raises(InputError, match=message):
            create_graph_files(graph, *arguments)
    with pytest.raises(InputError, match="2 token strings for 4"):
        create_graph_files(graph, "x", tmp_path, token_strings=["a", "b"])
    with pytest.raises(InputError, match="target is 'other'"):
        create_graph_files(graph, "x", tmp_path, target="other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"slug 'a b'.*scan 'some/transcoders'"):
        create_graph_files(graph, "a b", tmp_path, target="neuronpedia")
    both = {"feature_json_base_url": "https://x.org", "neuronpedia_source_set": "set"}
    with pytest.raises(InputError, match="R14"):
        create_graph_files(graph, "x", tmp_path, "gemma-2-2b", target="neuronpedia", feature_details=both)
    twice = random_graph()
    twice.targets = TargetTable.from_logits([twice.logit_targets[0]] * 3, twice.logit_probabilities, 3, 4, 90)
    del twice.__dict__["nodes"]
    with pytest.raises(InputError, match="more than once"):
        create_graph_files(twice, "x", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_metadata_for_neuronpedia(tmp_path: Path) -> None:
    details = {"neuronpedia_source_set": "gemmascope-transcoder-16k"}
    metadata = written(random_graph(), tmp_path, scan="gemma-2-2b", target="neuronpedia", feature_details=details)[
        "metadata"
    ]
    assert metadata["schema_version"] == 1
    assert metadata["info"]["neuronpedia_source_set"] == "gemmascope-transcoder-16k"
    assert metadata["generation_settings"] == {"max_n_logits": 10, "desired_logit_prob": 0.95}
    assert 0 <= metadata["replacement_score"] <= 1
    assert metadata["sum_rule_residual"] < 1e-12
    url = {"feature_json_base_url": "https://x.org/f"}
    other = written(random_graph(), tmp_path, scan="gemma-2-2b", target="neuronpedia", feature_details=url)
    assert "schema_version" not in other["metadata"]
    listed = written(random_graph(), tmp_path, scan=["a", "b"])["metadata"]
    assert listed["scan"] == scan_name(["a", "b"]) != scan_name(["ab"])
    assert listed["transcoder_list"] == ["a", "b"]


def test_targets_of_every_kind_and_place(tmp_path: Path) -> None:
    graph = random_graph(n_targets=3)
    graph.targets = TargetTable(
        label=['say "yes"', "difference", "feature 2/5"],
        layer=torch.tensor([3, 3, 2]),
        position=torch.tensor([3, 1, 2]),
        weight=torch.tensor([0.5, -2.0, 1.0]),
        token_id=torch.tensor([4, 90, 91]),
        kind=["logit", "direction", "feature"],
    )
    del graph.__dict__["nodes"]
    document = written(graph, tmp_path)
    targets = [node for node in document["nodes"] if node["feature_type"] == "logit"]
    assert [node["node_id"] for node in targets] == ["4_4_3", "4_90_1", "4_91_2"]
    assert [node["clerp"] for node in targets] == [
        'Output "say \N{RIGHT DOUBLE QUOTATION MARK}yes\N{RIGHT DOUBLE QUOTATION MARK}" (p=0.500)',
        'Output "difference" (p=2.000)',
        'Output "feature 2/5" (p=1.000)',
    ]
    assert [node.get("weight") for node in targets] == [None, -2.0, 1.0]
    assert [node["is_target_logit"] for node in targets] == [True, False, False]


def broken(change: Any) -> dict[str, Any]:
    document = copy.deepcopy(json.loads(GOLDEN.read_text(encoding="utf-8")))
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("qParams"), "qParams is missing"),
        (lambda d: d["metadata"].pop("scan"), "scan"),
        (lambda d: d["metadata"].update(node_threshold=None), "R15"),
        (lambda d: d["metadata"].update(node_threshold="0.8"), "finite number"),
        (lambda d: d["metadata"].update(schema_version="1"), "R4"),
        (lambda d: d["metadata"].update(prompt_tokens=[1]), "R12"),
        (lambda d: d["metadata"].update(generation_settings={"max_n_logits": 10.5}), "R15"),
        (lambda d: d["metadata"].update(generation_settings=[]), "generation_settings"),
        (lambda d: d["qParams"].update(clickedId=None), "R9"),
        (lambda d: d["qParams"].update(pinnedIds="a,b"), "R9"),
        (lambda d: d["qParams"].update(supernodes=["a"]), "R9"),
        (lambda d: d["qParams"].update(linkType="all"), "linkType"),
        (lambda d: d["nodes"].append(d["nodes"][0]), "more than once"),
        (lambda d: d["nodes"].append("x"), "no objects"),
        (lambda d: d["nodes"][0].pop("node_id"), "R1"),
        (lambda d: d["nodes"][0].update(jsNodeId="0_3-0"), "R2"),
        (lambda d: d["nodes"][0].update(feature=None), "R3"),
        (lambda d: d["nodes"][0].update(layer=None), "R5"),
        (lambda d: d["nodes"][0].update(ctx_idx=2), "R12"),
        (lambda d: d["nodes"][0].update(clerp=None), "R10"),
        (lambda d: d["nodes"][0].update(feature_type="other"), "R16"),
        (lambda d: d["nodes"][0].pop("influence"), "R8"),
        (lambda d: d["nodes"][0].update(activation=float("nan")), "R11"),
        (lambda d: d["nodes"][-1].update(clerp="b"), "R6"),
        (lambda d: d["nodes"][-1].pop("token_prob"), "R7"),
        (lambda d: [n.update(feature=0) for n in d["nodes"] if n["feature_type"] == "embedding"], "R3"),
        (lambda d: d["nodes"].clear(), "no nodes"),
        (lambda d: d["links"][0].update(source="0_0_0"), "not there"),
        (lambda d: d["links"][0].update(weight=None), "R11"),
        (lambda d: d["links"][0].pop("weight"), "links without"),
        (lambda d: d["links"].append(d["links"][0]), "links that occur more"),
    ],
)
def test_validator_says_what_is_wrong(change: Any, message: str) -> None:
    assert validate_document(broken(lambda d: None)) == []
    problems = validate_document(broken(change))
    assert any(message in problem for problem in problems), problems


def test_validator_knows_when_neuronpedia_stops() -> None:
    assert any("No layer found" in p for p in validate_document(broken(lambda d: None), "neuronpedia"))
    assert validate_document([]) != []
    assert upload_size_problems(2000) == []
    assert "R18" in upload_size_problems(10)[0]
    assert "R18" in upload_size_problems(200_000_000)[0]


def old_document() -> dict[str, Any]:
    """As circuit-tracer 0.5.0 and its page write it: old error ids, one of which is also a feature's, strings, nulls."""

    def node(name: str, kind: str, layer: str, feature: Any, position: int) -> dict[str, Any]:
        return {"node_id": name, "feature": feature, "layer": layer, "ctx_idx": position, "feature_type": kind}

    return {
        "metadata": {"slug": "s", "scan": "x", "prompt": "ab", "prompt_tokens": ["a", "b"], "schema_version": 1},
        "qParams": {
            "pinnedIds": "0_2_1,E_1_0",
            "supernodes": '[["name","0_2_1"]]',
            "clickedId": None,
            "linkType": None,
        },
        "nodes": [
            node("0_2_1", "cross layer transcoder", "0", cantor_pair(0, 2), 1),
            node("0_2_1", "mlp reconstruction error", "2", -1, 1),
            node("0_1_0", "mlp reconstruction error", "1", -1, 0),
            node("E_1_0", "embedding", "E", None, 0),
            node("4_5_1", "logit", "4", 5, 1),
        ],
        "links": [
            {"source": "0_2_1", "target": "4_5_1", "weight": 1},
            {"source": "0_1_0", "target": "4_5_1", "weight": 2},
            {"source": "E_1_0", "target": "gone", "weight": 3},
        ],
    }


def test_old_files_are_mended_and_the_repairs_told(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_bytes(gzip.compress(json.dumps(old_document()).encode()))
    graph = from_json(path)
    assert set(graph) == {"0_2_1", "2_-1_1", "1_-1_0", "E_1_0", "4_5_1"}
    assert graph.edges["1_-1_0", "4_5_1"]["weight"] == 2
    assert graph.nodes["0_2_1"]["index"] == 2
    assert graph.nodes["E_1_0"]["layer"] == -1
    assert len(graph.graph["repairs"]) == 4
    assert graph.graph["q_params"] == {
        "pinnedIds": ["0_2_1", "E_1_0"],
        "supernodes": [["name", "0_2_1"]],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
    }


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    for data in (b"{", b"[]", b'{"nodes": []}', gzip.compress(b"{}" * 999)[:20], b"\xff"):
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=r"g\.json"):
            load_viewer_json(path)
    with pytest.raises(InputError, match="no such file"):
        load_viewer_json(tmp_path / "absent")
    for change in (lambda d: d["nodes"][0].pop("layer"), lambda d: d["links"][0].update(weight="x")):
        with pytest.raises(FileFormatError, match="node or link"):
            from_json(broken(change))
    with pytest.raises(FileFormatError, match="supernodes"):
        typed_q_params({"supernodes": "["})


@given(st.integers(0, 200), st.integers(0, 50_000_000))
def test_pairing_is_reversible_and_safe_in_javascript(layer: int, index: int) -> None:
    number = cantor_pair(layer, index)
    assert cantor_unpair(number) == (layer, index)
    assert number < 2**53
