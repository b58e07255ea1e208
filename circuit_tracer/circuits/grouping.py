"""Supernodes by themselves: the nodes of a pruned graph that do one thing together, from the graph's own matrices.

    grouping = group_nodes(graph)                       # or graph.supernodes()
    grouping = group_nodes(graph, model, labels=labels) # the cut by what taking groups out of the model does

Likeness, constraints and the cut: README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from circuit_tracer.arguments import typed
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits.agglomerate import Bounds, Merge, agglomerate
from circuit_tracer.circuits.profiles import Profiles, kept_apart, label_of, likeness, node_profiles, subject
from circuit_tracer.circuits.purity import MeasuredEffects, PredictedEffects, purities
from circuit_tracer.circuits.supernodes import Grouping, GroupingScore, Role, Supernode
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.pruning import PrunePolicy, PruneResult, prune_graph
from circuit_tracer.interventions.validation.statistics import agreement, mean
from circuit_tracer.models.surroundings import fitting_threads, plain_torch
from circuit_tracer.progress import doing

LIKENESS = 0.5  # of the halves of a group at least: more alike than not
PURITY = 0.85  # of a group at least
MAX_LAYERS, MAX_POSITIONS = 4, 1  # that the ends of a group differ by


@typed
@plain_torch()
@torch.no_grad()
@doing("grouping")
def group_nodes(
    graph: Graph,
    model: Traceable | None = None,
    *,
    labels: Mapping[Any, str] | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    policy: PrunePolicy = "circuit-tracer",
    purity: float = PURITY,
    max_layers: int = MAX_LAYERS,
    max_positions: int = MAX_POSITIONS,
) -> Grouping:
    """All nodes of the graph, pruned at the thresholds, in groups that do one thing each; tokens and outputs stay alone.

    The most alike merge first, and a branch of the resulting tree becomes a group where its purity is high enough: taken
    out at once it does what each of its members does, and its members are moved by the same. Deterministic.

    Args:
        graph: The attribution graph.
        model: Measures what taking out does, instead of the graph's prediction of it (two runs of the prompt a node).
        labels: Texts by node id or (layer, index).
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).
        policy: How nodes are kept: "circuit-tracer" or "paper" (`prune_graph`).
        purity: 1 groups only what is the same; lower makes fewer groups.
        max_layers: The most that the first and last layer of a group differ by.
        max_positions: The same of positions.

    Returns:
        The groups, in the graph's order, unnamed, with how well they do one thing each.

    Raises:
        InputError: For a number outside of its range.
        CompatibilityError: For a model that the graph is not of.
    """
    if not 0.0 <= purity <= 1.0:
        raise InputError(f"purity is {purity}; expected a share between 0 and 1, such as {PURITY}")
    for name, most in (("max_layers", max_layers), ("max_positions", max_positions)):
        if most < 0:
            raise InputError(f"{name} is {most}; expected 0 (none) or more")
    pruned = prune_graph(graph, node_threshold, edge_threshold, policy)
    profiles = node_profiles(graph, pruned, labels)
    subjects = _subjects(graph, profiles, labels or {})
    layer, position = (column.cpu()[profiles.nodes] for column in (graph.nodes.layer, graph.nodes.position))
    tree = agglomerate(
        likeness(profiles, subjects),
        profiles.edges,
        kept_apart(profiles, subjects, position, set(graph.targets.position.tolist())),
        layer,
        position,
        Bounds(max_layers, max_positions, LIKENESS),
    )
    with fitting_threads(graph.cfg.d_model):
        rows, score = _cut(graph, pruned, profiles, tree, model, purity)
    settings = {
        "node_threshold": node_threshold,
        "edge_threshold": edge_threshold,
        "policy": policy,
        "purity": purity,
        "max_layers": max_layers,
        "max_positions": max_positions,
    }
    return Grouping(_supernodes(graph, profiles, rows), settings, score)


def _subjects(graph: Graph, profiles: Profiles, labels: Mapping[Any, str]) -> list[frozenset[str]]:
    nodes, which = graph.nodes, profiles.nodes.to(graph.device)
    columns = (nodes.kind[which].tolist(), nodes.layer[which].tolist(), nodes.feature[which].tolist())
    return [
        subject(label_of(labels, name, layer, feature)) if kind == NodeKind.FEATURE else frozenset()
        for name, kind, layer, feature in zip(nodes.ids(which), *columns, strict=True)
    ]


def _cut(
    graph: Graph, pruned: PruneResult, profiles: Profiles, tree: list[Merge], model: Traceable | None, purity: float
) -> tuple[list[list[int]], GroupingScore]:
    """Rows of the groups, and how good they are: from the top, the first branches that are pure enough."""
    predicted = PredictedEffects(graph, pruned, profiles)
    effects = predicted if model is None else MeasuredEffects(graph, pruned, profiles, model)
    alone = [[row] for row in range(len(profiles.roles))]
    caused = predicted.of(alone)
    single = caused if model is None else effects.of(alone)
    branches = [merge.rows for merge in tree]
    at_once = effects.of(branches)
    pure = purities(branches, single, at_once, caused.T, profiles.influence)
    chosen = _branches(tree, [each >= purity for each in pure])
    grouped = {row for number in chosen for row in branches[number]}
    groups = [branches[number] for number in chosen] + [[row] for row in range(len(alone)) if row not in grouped]
    free = profiles.groupable
    values, weights = torch.ones(len(alone), dtype=torch.float64), torch.where(free, profiles.influence, 0.0)
    for number in chosen:
        values[branches[number]] = pure[number]
    slope = None
    if model is not None and chosen:
        targets = [row for row, role in enumerate(profiles.roles) if role == "logit"]
        said = predicted.of([branches[number] for number in chosen])[:, targets]
        slope = agreement(said.flatten(), at_once[chosen][:, targets].flatten()).slope
    singles = int(free.sum())
    return sorted(groups), GroupingScore(
        purity=mean(values, weights) or 1.0,
        compression=(singles - len(grouped) + len(chosen)) / max(1, singles),
        measured=model is not None,
        calibration=slope,
    )


def _branches(tree: Sequence[Merge], pure: Sequence[bool]) -> list[int]:
    """Numbers of the merges at which the tree is cut, ascending."""
    inner = {part for merge in tree for part in merge.parts}
    waiting, chosen = [number for number in range(len(tree)) if number not in inner], list[int]()
    while waiting:
        number = waiting.pop()
        if pure[number]:
            chosen.append(number)
        else:
            waiting += [part for part in tree[number].parts if part >= 0]
    return sorted(chosen)


def _supernodes(graph: Graph, profiles: Profiles, groups: Sequence[Sequence[int]]) -> tuple[Supernode, ...]:
    ids = graph.nodes.ids(profiles.nodes.to(graph.device))
    return tuple(
        Supernode("", _role([profiles.roles[row] for row in rows]), tuple(ids[row] for row in rows)) for rows in groups
    )


def _role(roles: Sequence[Role]) -> Role:
    """That of its members; "mixed" ones follow the others."""
    return next((role for role in roles if role != "mixed"), "mixed")
