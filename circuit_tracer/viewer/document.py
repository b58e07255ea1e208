"""What the page is given to show: viewer JSON, with what the sum rule says of each node."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_tracer.errors import InputError
from circuit_tracer.graph.files.read_json import load_viewer_json
from circuit_tracer.viewer.sum_rule import sum_rules

if TYPE_CHECKING:
    from circuit_tracer.graph.files.viewer_json import Labels
    from circuit_tracer.graph.graph import Graph


def viewer_document(
    graph: Graph | Mapping[str, Any] | str | Path,
    *,
    labels: Labels | None = None,
    slug: str = "graph",
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
) -> Mapping[str, Any]:
    """A graph, pruned at the thresholds and labelled, with ``sum_rule`` in its nodes; or viewer JSON as it is.

    graph: a graph; viewer JSON as a mapping; or the path of a file of such. Raises InputError for what is no graph.
    """
    from circuit_tracer.graph.files.viewer_json import graph_document
    from circuit_tracer.graph.graph import Graph

    if isinstance(graph, Graph):
        exported = graph_document(
            graph, slug, node_threshold=node_threshold, edge_threshold=edge_threshold, labels=labels
        )
        return with_sum_rules(json.loads(exported.text), graph)
    if not isinstance(graph, Mapping):
        return load_viewer_json(graph)
    if not {"metadata", "nodes", "links"} <= set(graph) or not isinstance(graph["metadata"], Mapping):
        raise InputError("this is no viewer JSON: it lacks metadata, nodes or links at its top level")
    return graph


def with_sum_rules(document: dict[str, Any], graph: Graph) -> dict[str, Any]:
    """The document, its nodes with what their rows of the whole graph add up to."""
    rules = sum_rules(graph)
    for node in document["nodes"]:
        if node["node_id"] in rules:
            node["sum_rule"] = rules[node["node_id"]]
    return document
