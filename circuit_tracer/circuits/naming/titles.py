"""What a group is called where it is shown: its name, or what its nodes are; no two groups of a grouping alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from circuit_tracer.circuits.supernodes import Grouping, Supernode, members_of
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.words import feature_name, feature_noun, left_over


def titles(graph: Graph, grouping: Grouping) -> list[str]:
    """One a group, in order. Groups of one name get their tokens, their layers, and at last numbers behind it.

    Args:
        graph: The attribution graph.
        grouping: Its groups (`group_nodes`).

    Returns:
        A title a group.
    """
    members = [members_of(graph, group) for group in grouping]
    found = [group.name or _of_nodes(graph, nodes) for group, nodes in zip(grouping, members, strict=True)]
    for tell in (_at, _layers):
        again = Counter(found)
        found = [
            f"{title} {told}" if again[title] > 1 and not title.endswith(told := tell(graph, nodes)) else title
            for title, nodes in zip(found, members, strict=True)
        ]
    seen: Counter[str] = Counter()
    again = Counter(found)
    for place, title in enumerate(found):
        seen[title] += 1
        found[place] = f"{title} #{seen[title]}" if again[title] > 1 else title
    return found


def whereabouts(graph: Graph, group: Supernode) -> str:
    """Such as "2 features of layer 0 at “Dallas”"."""
    nodes = members_of(graph, group)
    many = len(nodes) > 1
    noun = f"{feature_noun(graph)}{'s' if many else ''}"
    count = f"{len(nodes)} {left_over(graph, many) if group.role == 'error' else noun}"
    layers = sorted({int(graph.nodes.layer[node]) for node in nodes})
    of = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    return f"{count} of {of} {_at(graph, nodes)}"


def quoted(graph: Graph, position: int) -> str:
    """A token between quotes, as it reads."""
    text = graph.token_texts[position]
    return f"“{text.strip() or text.encode('unicode_escape').decode()}”"


def _of_nodes(graph: Graph, nodes: Sequence[int]) -> str:
    kind = NodeKind(int(graph.nodes.kind[nodes[0]]))
    if kind is NodeKind.TOKEN:
        return quoted(graph, int(graph.nodes.position[nodes[0]]))
    if kind is NodeKind.TARGET:
        row = nodes[0] - graph.nodes.layout.target_start
        label = graph.targets.label[row]
        return f"“{label.strip() or label}”" if graph.targets.kind[row] == "logit" else label.strip() or label
    if kind is NodeKind.ERROR:
        return f"{left_over(graph, len(nodes) > 1)} {_layers(graph, nodes)} {_at(graph, nodes)}"
    if len(nodes) == 1:
        layer, index = int(graph.nodes.layer[nodes[0]]), int(graph.nodes.feature[nodes[0]])
        return f"{feature_name(graph, layer, index)} {_at(graph, nodes)}"
    return f"group of {len(nodes)} {_at(graph, nodes)}"


def _at(graph: Graph, nodes: Sequence[int]) -> str:
    kind = NodeKind(int(graph.nodes.kind[nodes[0]]))
    places = sorted({int(graph.nodes.position[node]) for node in nodes})
    if kind in (NodeKind.TOKEN, NodeKind.TARGET):  # their names hold the token already
        return f"at {', '.join(map(str, places))}"
    return "at " + ", ".join(dict.fromkeys(quoted(graph, place) for place in places))


def _layers(graph: Graph, nodes: Sequence[int]) -> str:
    layers = sorted({int(graph.nodes.layer[node]) for node in nodes})
    return f"L{layers[0]}" if len(layers) == 1 else f"L{layers[0]}–{layers[-1]}"
