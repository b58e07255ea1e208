"""Names of groups without any model's opinion: from their members' labels, the tokens they promote, and examples.

A group that detects is named by the concept that half of its members' labels name, by influence, and clearly more than any
other: what labels of several concepts have in common. A label of several things is read as what it means on this prompt, if
that shows (context.py), and labels that only repeat the token that a feature stands on give way to others. One that says, by
the tokens that its members together make likelier on this prompt, should any count (promoted.py): that is what it does here,
where a label is what it does elsewhere; behind the kind of thing to say if labels name one ("say a capital: Austin"); else by
a concept of what to say. Where no concept leads so, the first two name the group and "…" says that there are more. Without
labels the tokens of examples on which its members are most active name it; one that says, the output that it promotes most by
its edges. What is left without a name is called by where it is (titles.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits.naming.concepts import (
    Concept,
    is_kind,
    leading,
    several,
    shortened_name,
    tally,
)
from circuit_tracer.circuits.naming.context import labels_in_context
from circuit_tracer.circuits.naming.namesakes import join_namesakes
from circuit_tracer.circuits.naming.promoted import Active, Records, promoted_by, promoted_in
from circuit_tracer.circuits.naming.titles import titles
from circuit_tracer.circuits.profiles import label_of
from circuit_tracer.circuits.supernodes import Grouping, Role, Supernode, members_of
from circuit_tracer.features.labels import WORDS, read_totals, shown_token
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.progress import doing


@doing("naming groups")
def name_groups(
    graph: Graph,
    grouping: Grouping,
    *,
    labels: Mapping[Any, str] | None = None,
    features: Records | None = None,
    model: Traceable | None = None,
    over: bool = False,
) -> Grouping:
    """The grouping with names for its groups of features.

    Groups of tokens, errors and outputs are left without: `titles` says what they are. Groups of features that get one
    name, role and place become one (namesakes.py); no two names are alike.

    Args:
        graph: The attribution graph.
        grouping: Its groups (`group_nodes`).
        labels: By node id, or of features by (layer, index).
        features: Records by (layer, index), such as a ``FeatureFolder``.
        model: The one that the graph was traced with, for the tokens that groups promote; without it, from the records.
        over: Groups that have a name get a new one too.

    Returns:
        A new grouping with names.

    Examples:
        >>> from circuit_tracer.circuits.naming import name_groups, titles
        >>> from circuit_tracer.demo import load_labels
        >>> titles(graph, name_groups(graph, graph.supernodes(), labels=load_labels()))[1]
        'Texas at “Dallas”'
    """
    named, outputs = {}, output_tokens(graph)
    here = labels_in_context(graph, labels) if labels else {}
    for place, members in enumerate(active_members(graph, grouping)):
        group = grouping.supernodes[place]
        if members and (over or not group.name):
            name = _name(group.role, members, here, features, model, outputs) or _toward(graph, group)
            named[place] = shortened_name(name or "")
    named = {place: name for place, name in named.items() if name}
    fresh = {member for place in named for member in grouping.supernodes[place].members}
    found = join_namesakes(graph, grouping.named(named), named)
    told = titles(graph, found)  # alike ones apart
    return found.named({place: told[place] for place, group in enumerate(found) if group.members[0] in fresh})


def output_tokens(graph: Graph) -> set[int]:
    """Token ids of the outputs that a graph explains."""
    table = graph.targets
    return {int(table.token_id[row]) for row, kind in enumerate(table.kind) if kind == "logit"}


def active_members(graph: Graph, grouping: Grouping) -> list[list[Active]]:
    """The features in each group, each with its influence."""
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights).tolist()
    table = graph.nodes
    return [
        [
            Active(
                (int(table.layer[node]), int(table.feature[node])),
                float(table.activation[node]),
                influence[node],
                member,
                graph.token_texts[int(table.position[node])].strip(),
            )
            for node, member in zip(members_of(graph, group), group.members, strict=True)
            if node < table.layout.n_features
        ]
        for group in grouping
    ]


def _name(
    role: Role,
    members: Sequence[Active],
    labels: Mapping[Any, str],
    features: Records | None,
    model: Traceable | None,
    outputs: Collection[int],
) -> str | None:
    telling = _telling(members, labels)
    weights, total = _tallied(telling, labels), sum(member.weight for member in telling)
    said, read = _of_kind(weights, says=True), _of_kind(weights, says=False)
    if role == "says":
        promoted, kind = _promoted(members, features, model, outputs), leading(said, total)
        if promoted and kind and is_kind(kind):
            return f"{kind}: {promoted.removeprefix('say ')}"
        return promoted or kind or leading(read, total)
    return (
        leading(read, total)
        or leading(said, total)
        or several(weights, total)
        or _examples(members, features)
        or _promoted(members, features, model, outputs)
    )


def _telling(members: Sequence[Active], labels: Mapping[Any, str]) -> Sequence[Active]:
    """Without those whose label is the token that they stand on, as that only says where the group is; all if no other is
    labelled.
    """
    told = [(member, label_of(labels, member.node, *member.place)) for member in members]
    beyond = [(member, label) for member, label in told if not label or label.strip('"') != member.token]
    return [member for member, _ in beyond] if any(label for _, label in beyond) else members


def _tallied(members: Sequence[Active], labels: Mapping[Any, str]) -> dict[Concept, float]:
    known = ((label_of(labels, member.node, *member.place), member.weight) for member in members)
    return tally((label, weight) for label, weight in known if label)


def _toward(graph: Graph, group: Supernode) -> str | None:
    """The output that a group that says promotes most, by its edges."""
    if group.role != "says":
        return None
    layout = graph.nodes.layout
    members = torch.tensor(members_of(graph, group), device=graph.device)
    edges = graph.edges.select(torch.isin(graph.edges.source, members) & (graph.edges.target >= layout.target_start))
    given = edges.row_sum(edges.weight)[layout.targets]
    best = int(given.argmax())
    if given[best] <= 0 or graph.targets.kind[best] != "logit":
        return None
    return f"say {shown_token(graph.targets.label[best])}"


def _of_kind(weights: Mapping[Concept, float], says: bool) -> dict[Concept, float]:
    return {concept: weight for concept, weight in weights.items() if concept.says is says}


def _promoted(
    members: Sequence[Active], features: Records | None, model: Traceable | None, outputs: Collection[int]
) -> str | None:
    tokens = promoted_by(members, model, outputs) if model is not None else promoted_in(members, features or {})
    return f"say {', '.join(tokens)}" if tokens else None


def _examples(members: Sequence[Active], features: Records | None) -> str | None:
    """The tokens on which the members are most active, each member's examples weighed by its influence."""
    totals: defaultdict[str, float] = defaultdict(float)
    for member in members:
        record = None if features is None else features.get(member.place)
        read = {} if record is None else read_totals(record)
        whole = sum(read.values())
        for token, activation in read.items():
            totals[token] += member.weight * activation / whole
    tokens = sorted(totals, key=lambda token: (-totals[token], token))[:WORDS]
    return ", ".join(f"“{token}”" for token in tokens) or None
