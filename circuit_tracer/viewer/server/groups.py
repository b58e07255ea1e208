"""Groups that the page offers: made from the graph, named, those that tell the story. Nothing is kept yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuit_tracer.circuits import Grouping, contract, group_nodes
from circuit_tracer.circuits.keeping import shown_groups
from circuit_tracer.circuits.naming import name_groups
from circuit_tracer.circuits.naming.titles import titles
from circuit_tracer.viewer.server.messages import OfferedGroups

if TYPE_CHECKING:
    from circuit_tracer.circuits.naming.promoted import Records
    from circuit_tracer.graph.files.viewer_json import Labels
    from circuit_tracer.graph.graph import Graph

_THRESHOLDS = ("node_threshold", "edge_threshold", "policy")


def offered_groups(
    graph: Graph, document: Mapping[str, Any], labels: Labels | None = None, features: Records | None = None
) -> OfferedGroups:
    """Groups of the nodes that a graph's file shows, pruned as the file was. labels and features: for their names."""
    settings = document["metadata"].get("pruning_settings") or {}
    thresholds = {name: settings[name] for name in _THRESHOLDS if name in settings}
    of_features = {place: text for place, text in (labels or {}).items() if isinstance(place, tuple)}
    grouping = group_nodes(graph, labels=labels, **thresholds)
    assert grouping.score is not None
    named = name_groups(graph, grouping, labels=of_features, features=features)
    circuit = contract(graph, named)
    present = {node["node_id"] for node in document["nodes"]}
    shown = Grouping(tuple(circuit.groups[number] for number in shown_groups(graph, circuit)))
    supernodes, pinned = [], list[str]()
    for group, title in zip(shown, titles(graph, shown), strict=True):
        members = [name for name in group.members if name in present]
        pinned += members
        if members and (group.name or len(members) > 1):
            supernodes.append([title, *members])
    return OfferedGroups(
        supernodes=supernodes,
        pinned=pinned,
        purity=grouping.score.purity,
    )
