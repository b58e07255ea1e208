"""Kept scores of attention as viewers read them: Neuronpedia's `qk_tracing_results` of nodes, and `qk_only_nodes`.

Neuronpedia's panel shows the results of whichever node is clicked. Ours stand on the target that a score explains: an
`AttentionTarget` of the same place. All kept scores, with targets or without, are in the document's `attention_scores` too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from circuit_tracer.graph.attention_scores import BIAS_TEXTS, AttentionScore
from circuit_tracer.graph.files.node_ids import cantor_pair
from circuit_tracer.graph.graph import Graph

BIAS_TYPE, ERROR_TYPE, FEATURE_TYPE, TOKEN_TYPE = (
    "bias",
    "mlp reconstruction error",
    "cross layer transcoder",
    "embedding",
)


def with_scores(graph: Graph, nodes: Sequence[dict[str, Any]], by_any: Mapping[Any, str]) -> dict[str, Any]:
    """Put results on nodes, in place; what the document has of kept scores beside them. by_any: as for `qk_only_nodes`."""
    if not graph.scores:
        return {}
    add_results(graph, nodes)
    return {
        "qk_only_nodes": qk_only_nodes(graph, {node["node_id"] for node in nodes}, by_any),
        "attention_scores": [score.to_dict() for score in graph.scores],
    }


def qk_results(score: AttentionScore) -> dict[str, Any]:
    """The strongest pairs and contributors of each side."""
    return {
        "pair_wise_contributors": [list(pair) for pair in score.pairs],
        "top_q_marginal_contributors": [list(each) for each in score.query_side.top],
        "top_k_marginal_contributors": [list(each) for each in score.key_side.top],
    }


def add_results(graph: Graph, nodes: Iterable[dict[str, Any]]) -> None:
    """Put the results of kept scores on the nodes of their targets, in place; of several of one place, the last."""
    of_label = {score.label: score for score in graph.scores}
    for node in nodes:
        if node.get("target_kind") == "attention" and node["token"] in of_label:
            node["qk_tracing_results"] = qk_results(of_label[node["token"]])


def qk_only_nodes(graph: Graph, present: set[str], by_any: Mapping[Any, str]) -> dict[str, dict[str, Any]]:
    """What contributors are that kept scores name and that are no nodes of the document, by id.

    present: ids of its nodes. by_any: labels by id or (layer, index).
    """
    wanted = dict.fromkeys(name for score in graph.scores for name in score.ids if name not in present)
    activations = _activations(graph, wanted)
    return {name: _descriptor(name, activations.get(name), by_any) for name in wanted}


def _descriptor(name: str, activation: float | None, by_any: Mapping[Any, str]) -> dict[str, Any]:
    layer, *kind, position = name.split("_")
    node = {"node_id": name, "layer": layer, "ctx_idx": int(position), "jsNodeId": name, "clerp": by_any.get(name, "")}
    if kind[0] == "bias":
        text = BIAS_TEXTS.get("_".join(kind[1:]), "constants")
        return {**node, "feature": None, "feature_type": BIAS_TYPE, "clerp": node["clerp"] or text}
    if layer == "E":
        return {**node, "feature": int(position), "feature_type": TOKEN_TYPE}
    if kind[0] == "-1":
        return {**node, "feature": -1, "feature_type": ERROR_TYPE}
    place = int(layer), int(kind[0])
    label = node["clerp"] or by_any.get(place, "")
    return {
        **node,
        "feature": cantor_pair(*place),
        "feature_type": FEATURE_TYPE,
        "clerp": label,
        "activation": activation,
    }


def _activations(graph: Graph, names: Iterable[str]) -> dict[str, float]:
    """Of features among some ids, where the graph knows them."""
    wanted = [name for name in names if not name.startswith("E") and name.split("_")[1].isdecimal()]
    if not wanted:
        return {}
    rows = torch.tensor([[int(number) for number in name.split("_")] for name in wanted])  # layer, feature, position
    features = graph.active_features.cpu().long()
    width = int(max(features[:, 2].max(), rows[:, 1].max())) + 1
    known = (features[:, 0] * graph.n_pos + features[:, 1]) * width + features[:, 2]
    keys = (rows[:, 0] * graph.n_pos + rows[:, 2]) * width + rows[:, 1]
    place = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    values = graph.activation_values.cpu().float()[place]
    found = (known[place] == keys).tolist()
    return {name: value for name, value, there in zip(wanted, values.tolist(), found, strict=True) if there}
