"""Viewer JSON of other programs, mended: what every viewer needs (the rules of validate.py) and can be told from the rest.

What a file does not say, such as the weight of a link that is no number, stays as it is for the validator to name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from circuit_tracer.graph.files.read_json import typed_q_params

Node = dict[str, Any]
_LOGIT = re.compile(r'(?:Output )?"?(?P<token>.*?)"? \(p=(?P<p>\d+(?:\.\d+)?(?:e-?\d+)?)\)', re.DOTALL)
_TOKEN = re.compile(r'Emb: "(?P<token>.*)"', re.DOTALL)


def repaired(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The document as viewers want it, and sentences about what was mended; the one given is not changed."""
    nodes = [dict(node) if isinstance(node, dict) else node for node in document["nodes"]]
    metadata = dict(document["metadata"]) if isinstance(document["metadata"], dict) else document["metadata"]
    counts: Counter[str] = Counter()
    links = _renamed(nodes, document["links"], counts)
    for node in nodes:
        if isinstance(node, dict):
            counts.update(what for what, mend in _NODES.items() if mend(node))
    if isinstance(metadata, dict):
        counts.update(_mend_metadata(metadata, nodes))
    q_params = document.get("qParams")
    typed = typed_q_params(q_params if isinstance(q_params, dict) else {})
    if typed != q_params:
        counts["qParams of other types, or none"] += 1
    sentences = [f"{what}: {count}" for what, count in counts.items()]
    return {**document, "metadata": metadata, "qParams": typed, "nodes": nodes, "links": links}, sentences


def _renamed(nodes: list[Any], links: Any, counts: Counter[str]) -> Any:
    """Error nodes of circuit-tracer's id 0_{layer}_{position}, which a feature of layer 0 may have too, get their own.

    Links of such a pair of nodes stay with the feature, but for the second of two to one target: circuit-tracer writes the
    links of a target in the order of its nodes, features before errors.
    """
    named: Counter[Any] = Counter(node.get("node_id") for node in nodes if isinstance(node, dict))
    moved: dict[Any, str] = {}
    for node in nodes:
        if not isinstance(node, dict) or node.get("feature_type") != "mlp reconstruction error":
            continue
        old, new = node.get("node_id"), f"{node.get('layer')}_-1_{node.get('ctx_idx')}"
        if old == f"0_{node.get('layer')}_{node.get('ctx_idx')}" and new not in named:
            node["node_id"], moved[old] = new, new
            counts["error nodes whose id a feature may have"] += 1
    if not moved or not isinstance(links, list):
        return links
    seen: set[tuple[Any, Any]] = set()
    found = []
    for link in links:
        if isinstance(link, dict) and link.get("source") in moved:
            ends = (link["source"], link.get("target"))
            if named[ends[0]] == 1 or ends in seen:
                link = {**link, "source": moved[ends[0]]}
            seen.add(ends)
        found.append(link)
    return found


def _own_js_id(node: Node) -> bool:
    wrong = node.get("jsNodeId") != node.get("node_id")
    if wrong:
        node["jsNodeId"] = node.get("node_id")
    return wrong


def _label(node: Node) -> bool:
    wrong = node.get("clerp") is None
    if wrong:
        node["clerp"] = ""
    return wrong


def _number(node: Node) -> bool:
    if node.get("feature") is None or (
        node.get("feature_type") == "embedding" and node["feature"] != node.get("ctx_idx")
    ):
        node["feature"] = node.get("ctx_idx") if node.get("feature_type") == "embedding" else -1
        return True
    return False


def _output(node: Node) -> bool:
    """The label of a logit without quotes inside, and its probability as a number."""
    match = _LOGIT.fullmatch(str(node.get("clerp"))) if node.get("feature_type") == "logit" else None
    if match is None:
        return False
    before = (node["clerp"], node.get("token_prob"))
    token = match["token"].replace('"', "″")
    node["clerp"] = f'Output "{token}" (p={match["p"]})'
    if not isinstance(node.get("token_prob"), int | float):
        node["token_prob"] = float(match["p"])
    return before != (node["clerp"], node["token_prob"])


def _null_probability(node: Node) -> bool:
    """Influence and activation may be null: there are none of some nodes."""
    return "token_prob" in node and node["token_prob"] is None and node.pop("token_prob") is None


_NODES: dict[str, Callable[[Node], bool]] = {
    "nodes whose jsNodeId was another than their node_id": _own_js_id,
    "nodes without a label": _label,
    "nodes without a number of their own": _number,
    "targets whose label had quotes, or no probability": _output,
    "nodes whose probability was null": _null_probability,
}


def _mend_metadata(metadata: dict[str, Any], nodes: list[Any]) -> list[str]:
    said = []
    empty = [name for name, value in metadata.items() if value is None]
    settings = metadata.get("generation_settings")
    if isinstance(settings, dict) and None in settings.values():
        metadata["generation_settings"] = {name: value for name, value in settings.items() if value is not None}
        empty.append("generation_settings")
    for name in empty:
        if metadata[name] is None:
            del metadata[name]
    said += ["metadata with nulls"] * bool(empty)
    if "prompt_tokens" not in metadata and (tokens := _tokens_of(nodes)):
        metadata["prompt_tokens"] = tokens
        said.append("no prompt_tokens: taken from the labels of the embeddings")
    layered = {"cross layer transcoder", "mlp reconstruction error"}
    hidden = [n for n in nodes if isinstance(n, dict) and n.get("feature_type") in layered and "influence" not in n]
    if "node_threshold" in metadata and hidden:
        del metadata["node_threshold"]
        said.append("a node_threshold that would hide nodes without influence")
    return said


def _tokens_of(nodes: list[Any]) -> list[str]:
    """The prompt by its embedding nodes; [] if one is missing."""
    found = {
        node.get("ctx_idx"): match["token"]
        for node in nodes
        if isinstance(node, dict) and node.get("feature_type") == "embedding"
        if (match := _TOKEN.fullmatch(str(node.get("clerp"))))
    }
    places = [node.get("ctx_idx") for node in nodes if isinstance(node, dict)]
    length = max((place for place in places if isinstance(place, int)), default=-1) + 1
    return [found[place] for place in range(length)] if all(place in found for place in range(length)) else []
