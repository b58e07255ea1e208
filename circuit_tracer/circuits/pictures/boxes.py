"""What a picture of a circuit shows: boxes of nodes with a name and a role, from a grouping or from what a person pinned.

Letters: N nodes of the graph, G boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from circuit_tracer.circuits.pictures.canvas import token_text
from circuit_tracer.circuits.supernodes import Grouping, Role, members_of
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.words import feature_name, left_over

Labels = Mapping[tuple[int, int], str]

_ROLES: dict[NodeKind, Role] = {
    NodeKind.FEATURE: "mixed",
    NodeKind.ERROR: "error",
    NodeKind.TOKEN: "token",
    NodeKind.TARGET: "logit",
}


@dataclass(frozen=True)
class Box:
    """Nodes that are drawn as one. layer: their mean, tokens at -1 and outputs above the last. layers, position: of members."""

    name: str
    role: Role
    nodes: tuple[int, ...]
    layer: float
    layers: tuple[int, int]
    position: float

    @property
    def facts(self) -> str:
        """In small letters under the name: how many nodes, and where."""
        if self.role in ("token", "logit"):
            return f"{len(self.nodes)} {self.role}s" if len(self.nodes) > 1 else ""
        low, high = self.layers
        place = f"L{low}" if low == high else f"L{low}–{high}"
        noun = "error" if self.role == "error" else "feature"
        return f"{len(self.nodes)} {noun}{'s' * (len(self.nodes) > 1)} · {place}"


def boxes_of_grouping(graph: Graph, grouping: Grouping, labels: Labels, influence: Tensor) -> list[Box]:
    """One a group; those without a name are called after their member of most ``influence`` (N,)."""
    boxes = []
    for group in grouping:
        nodes = members_of(graph, group)
        chief = max(nodes, key=lambda node: float(influence[node]))
        boxes.append(_box(graph, group.name or node_name(graph, chief, labels), nodes, group.role))
    return boxes


def boxes_of_view(graph: Graph, view: View, labels: Labels) -> list[Box]:
    """The pinned nodes and supernodes of a view; its own labels come first."""
    grouped = {name for _, members in view.supernodes for name in members}
    groups = [*view.supernodes, *(("", (name,)) for name in view.pinned if name not in grouped)]
    boxes = []
    for name, members in groups:
        nodes = graph.nodes.numbers(members, "the view")
        text = name or view.labels.get(members[0]) or node_name(graph, nodes[0], labels)
        boxes.append(_box(graph, text, nodes, _ROLES[NodeKind(int(graph.nodes.kind[nodes[0]]))]))
    return boxes


def node_name(graph: Graph, node: int, labels: Labels) -> str:
    """One node in words."""
    nodes = graph.nodes
    kind, layer, position = NodeKind(int(nodes.kind[node])), int(nodes.layer[node]), int(nodes.position[node])
    word = token_text(graph.token_texts[position])
    if kind is NodeKind.TOKEN:
        return word
    if kind is NodeKind.TARGET:
        return target_name(graph, node - nodes.layout.target_start)
    if kind is NodeKind.ERROR:
        return f"{left_over(graph)} L{layer} at {word}"
    feature = int(nodes.feature[node])
    return labels.get((layer, feature)) or f"{feature_name(graph, layer, feature)} at {word}"


def target_name(graph: Graph, rank: int) -> str:
    """An output with its probability, or the label of another target with its weight."""
    label, weight = graph.targets.label[rank], float(graph.targets.weight[rank])
    if graph.targets.kind[rank] != "logit":
        return f"{label} {weight:.3g}"
    return f"{token_text(label)} {weight:.1%}" if weight >= 0.0005 else f"{token_text(label)} <0.1%"


def _box(graph: Graph, name: str, nodes: Sequence[int], role: Role) -> Box:
    layers = [_layer(graph, node) for node in nodes]
    positions = [int(graph.nodes.position[node]) for node in nodes]
    mean = sum(layers) / len(layers), sum(positions) / len(positions)
    return Box(name, role, tuple(nodes), mean[0], (min(layers), max(layers)), mean[1])


def _layer(graph: Graph, node: int) -> int:
    is_target = int(graph.nodes.kind[node]) == NodeKind.TARGET
    return graph.n_layers if is_target else int(graph.nodes.layer[node])
