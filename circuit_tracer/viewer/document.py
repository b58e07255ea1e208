"""What the page is given to show: viewer JSON, with what the sum rule says of each node; labels and views put into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.graph.files.node_ids import cantor_unpair
from circuit_tracer.graph.files.read_json import load_viewer_json
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.files.viewer_json import Labels, graph_document
from circuit_tracer.graph.graph import Graph
from circuit_tracer.viewer.sum_rule import sum_rules

_SHOWN = 5  # problems of one document


def viewer_document(
    graph: Graph | Mapping[str, Any] | str | Path,
    *,
    labels: Labels | None = None,
    slug: str = "graph",
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
) -> Mapping[str, Any]:
    """A graph, pruned at the thresholds and labelled, with ``sum_rule`` in its nodes; or viewer JSON, with labels where it has
    none.

    graph: a graph; viewer JSON as a mapping; or the path of a file of such. The thresholds default to those of the graph's
    groups, so that shares are those of their picture and story, else to the usual ones. Raises InputError for what is no graph.
    """
    if isinstance(graph, Graph):
        given = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
        pruning = grouped_at(graph) | {name: value for name, value in given.items() if value is not None}
        exported = graph_document(graph, slug, labels=labels, **pruning)
        return with_sum_rules(json.loads(exported.text), graph)
    if not isinstance(graph, Mapping):
        return labelled(load_viewer_json(graph), labels or {})
    if not {"metadata", "nodes", "links"} <= set(graph) or not isinstance(graph["metadata"], Mapping):
        raise InputError("this is no viewer JSON: it lacks metadata, nodes or links at its top level")
    return labelled(graph, labels or {})


def grouped_at(graph: Graph) -> dict[str, Any]:
    """How the graph was pruned when the groups that it keeps were made; {} if it keeps none, or they were made by hand."""
    settings = (graph.grouping or {}).get("settings") or {}
    return {name: settings[name] for name in ("node_threshold", "edge_threshold", "policy") if name in settings}


def unshowable(document: Mapping[str, Any]) -> list[str]:
    """Why a page would show nothing of what ``load_viewer_json`` reads, a sentence each: what `readGraph` of
    static/read_graph.js refuses.
    """
    tokens, nodes = document["metadata"].get("prompt_tokens"), document["nodes"]
    problems = [] if nodes else ["there are no nodes"]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        problems.append("metadata.prompt_tokens must be a list of strings, one a position")
        tokens = []
    for node in nodes:
        name, position, layer = node.get("node_id"), node.get("ctx_idx"), str(node.get("layer"))
        if not isinstance(name, str):
            problems.append("a node has no node_id")
        elif tokens and not (isinstance(position, int) and 0 <= position < len(tokens)):
            problems.append(f"node {name} has ctx_idx {position!r}; the prompt has {len(tokens)} tokens")
        elif not (layer.isdecimal() or node.get("feature_type") == "embedding"):
            problems.append(f"node {name} has layer {layer}; expected E or a number")
        if len(problems) > _SHOWN:
            break
    return problems


def labelled(document: Mapping[str, Any], labels: Labels) -> Mapping[str, Any]:
    """Viewer JSON with labels, by node id or by (layer, index), for the features that it does not name."""
    if not labels:
        return document
    by_any = dict[Any, str](labels.items())

    def named(node: Any) -> Any:
        if not isinstance(node, Mapping) or node.get("clerp"):
            return node
        text = by_any.get(node.get("node_id")) or by_any.get(_place(node, document["metadata"]))
        return {**node, "clerp": text} if text else node

    return {**document, "nodes": [named(node) for node in document["nodes"]]}


def with_view(document: Mapping[str, Any], view: View) -> dict[str, Any]:
    """Viewer JSON that opens with a view in place of its own. Raises InputError for nodes that it does not have."""
    names = {node.get("node_id") for node in document["nodes"] if isinstance(node, Mapping)}
    if missing := sorted({*view.nodes, *filter(None, [view.clicked])} - names):
        raise InputError(
            f"nodes of the view are not in this file ({', '.join(missing[:5])}); export the graph with higher thresholds"
        )

    def named(node: Any) -> Any:
        text = view.labels.get(str(node.get("node_id"))) if isinstance(node, Mapping) else None
        return {**node, "clerp": text} if text else node

    before = document.get("qParams") or {}
    labels = {**View.from_q_params(before).labels, **view.labels}
    q_params = {**before, **view.q_params(), **({"clerps": [list(pair) for pair in labels.items()]} if labels else {})}
    return {**document, "qParams": q_params, "nodes": [named(node) for node in document["nodes"]]}


def _place(node: Mapping[str, Any], metadata: Mapping[str, Any]) -> tuple[int, int] | None:
    """(layer, index) of a transcoder's feature; None for other nodes."""
    number, layer = node.get("feature"), str(node.get("layer"))
    if node.get("feature_type") != "cross layer transcoder" or not isinstance(number, int) or number < 0:
        return None
    if metadata.get("schema_version") == 1:
        return cantor_unpair(number)
    return (int(layer), number) if layer.isdecimal() else None


def with_sum_rules(document: dict[str, Any], graph: Graph) -> dict[str, Any]:
    """The document, its nodes with what their rows of the whole graph add up to."""
    rules = sum_rules(graph)
    for node in document["nodes"]:
        if node["node_id"] in rules:
            node["sum_rule"] = rules[node["node_id"]]
    return document
