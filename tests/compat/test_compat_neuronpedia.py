"""What Neuronpedia's graph server does with circuit-tracer, by its import paths and arguments, gives our own results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from circuit_tracer import Graph, attribute
from circuit_tracer.frontend.graph_models import Model, Node
from circuit_tracer.frontend.utils import add_graph_metadata, process_token
from circuit_tracer.graph import prune_graph
from circuit_tracer.graph.files.graph_index import read_index
from circuit_tracer.graph.files.validate import validate_document
from circuit_tracer.graph.files.viewer_json import graph_document
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.utils.create_graph_files import (
    build_graph_model,
    build_model,
    create_nodes,
    create_used_nodes_and_edges,
    load_graph_data,
)
from circuit_tracer.utils.salient_logits import compute_salient_logits

PEER = Path(__file__).parents[1] / "interventions" / "peer"
PROMPT = "the capital of Texas is"


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained(
        str(PEER / "model"),
        str(PEER / "clt"),
        device=torch.device("cpu"),
        dtype=torch.float32,
        lazy_encoder=False,
        lazy_decoder=True,
        backend="interp_engine",
    )


@pytest.fixture(scope="module")
def graph(model: ReplacementModel) -> Graph:
    graph = attribute(
        PROMPT,
        model,
        max_n_logits=10,
        desired_logit_prob=0.95,
        batch_size=48,
        max_feature_nodes=100,
        offload=None,
        update_interval=1000,
    )
    graph.to(torch.device("cpu"))
    return graph


def steps(model: ReplacementModel, graph: Graph, scan: Any) -> Model:
    """A graph file, step by step."""
    node_mask, edge_mask, scores = (each.cpu() for each in prune_graph(graph, 0.8, 0.98))
    tokenizer = AutoTokenizer.from_pretrained(model.cfg.tokenizer_name)
    nodes = create_nodes(graph, node_mask, tokenizer, scores)
    used_nodes, used_edges = create_used_nodes_and_edges(graph, nodes, edge_mask)
    return build_model(graph, used_nodes, used_edges, "slug", scan, 0.8, tokenizer)


def by_ends(links: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    return {(link["source"], link["target"]): link["weight"] for link in links}


def test_a_graph_made_step_by_step_is_the_graph_file(model: ReplacementModel, graph: Graph) -> None:
    made = json.loads(steps(model, graph, "gemma-2-2b").model_dump_json())
    assert validate_document(made) == []
    whole = json.loads(graph_document(graph, "slug", "gemma-2-2b").text)
    assert [node["node_id"] for node in made["nodes"]] == [node["node_id"] for node in whole["nodes"]]
    for mine, theirs in zip(made["nodes"], whole["nodes"], strict=True):
        assert mine == pytest.approx(theirs)
    assert by_ends(made["links"]) == pytest.approx(by_ends(whole["links"]))
    assert {name: whole["metadata"][name] for name in made["metadata"]} == made["metadata"]
    json.dumps(steps(model, graph, "gemma-2-2b").model_dump())


def test_scans_of_every_layer_have_one_name(model: ReplacementModel, graph: Graph) -> None:
    metadata = steps(model, graph, ["a", "b", "c"]).metadata
    assert metadata.scan.startswith("custom-")
    assert metadata.transcoder_list == ["a", "b", "c"]
    assert build_graph_model is build_model


def test_nodes_filled_by_hand_are_those_of_a_file(model: ReplacementModel, graph: Graph) -> None:
    nodes = {node.node_id: node for node in steps(model, graph, "x").nodes}
    row = 0
    layer, position, index = graph.active_features[graph.selected_features[row]].tolist()
    feature = Node.feature_node(layer, position, index)
    assert feature.node_id in {f"{layer}_{index}_{position}"}
    token, logit = int(graph.input_tokens[1]), graph.logit_targets[0]
    last = graph.n_pos - 1
    made = [
        Node.token_node(1, token),
        Node.logit_node(
            last, logit.vocab_idx, logit.token_str, graph.n_layers, True, float(graph.logit_probabilities[0])
        ),
        *(Node.error_node(layer, position) for layer in range(3) for position in range(graph.n_pos)),
    ]
    found = [each for each in made if each.node_id in nodes]
    assert len(found) > 2
    for each in found:
        same = nodes[each.node_id].model_copy(update={"influence": None, "activation": None})
        assert each.model_dump() == {**same.model_dump(exclude={"token", "input_mass"})}


def test_a_forward_pass_gives_the_likely_tokens(model: ReplacementModel, graph: Graph) -> None:
    ids = torch.tensor([[model.tokenizer.bos_token_id, *model.tokenizer.encode(PROMPT, add_special_tokens=False)]])
    output = model(ids)
    assert not hasattr(output, "logits")
    tokens, probabilities, vectors = compute_salient_logits(
        output[0, -1], model.unembed_weight, max_n_logits=10, desired_logit_prob=0.95
    )
    assert len(tokens) == len(probabilities) == len(vectors) == 10
    assert tokens.tolist() == graph.logit_token_ids.tolist()


def test_steering_gives_tokens_and_their_logits(model: ReplacementModel) -> None:
    _, activations = model.get_activations(PROMPT, sparse=True)
    layer, position, index = activations.indices()[:, -1].tolist()
    value = activations[(layer, position, index)] + 2.0
    options: dict[str, Any] = {
        "do_sample": True,
        "verbose": False,
        "stop_at_eos": True,
        "temperature": 0.7,
        "freq_penalty": 0.1,
        "return_type": "tokens",
    }
    torch.manual_seed(1)
    default = model.generate(PROMPT, use_past_kv_cache=False, max_new_tokens=4, **options)[0]
    torch.manual_seed(1)
    steered, logits, _ = model.feature_intervention_generate(
        PROMPT, [(layer, position, index, value)], freeze_attention=True, max_new_tokens=5, **options
    )
    n_pos = len(model.ensure_tokenized(PROMPT))
    assert default[:n_pos].tolist() == steered[0, :n_pos].tolist() == model.ensure_tokenized(PROMPT).tolist()
    assert logits.shape == (steered.shape[1] - n_pos, 47)
    assert model(default[None]).shape == (1, len(default), 47)


def test_the_list_of_graphs(tmp_path: Path, graph: Graph) -> None:
    entry = {"slug": "a", "scan": "s"}
    for path in (tmp_path, tmp_path / "graph-metadata.json"):
        add_graph_metadata(entry, path)
    assert read_index(tmp_path) == [entry]
    assert process_token("a\n\tb") == "a⏎→b"
    assert len(load_graph_data(file_path=graph.save(tmp_path / "g.safetensors")).edges) == len(graph.edges)
