"""How alike the members of a group are in what they cause and in what causes them, measured by taking nodes out.

effects_st is the change of t's input, in shares of the influence on the targets, when s is taken out: along all paths of the
pruned graph (`path_effects`: features follow their inputs down to 0), or as the model does it. A group is taken out at once.

Letters: n nodes of the pruned graph, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits.profiles import Profiles, harmonic, overlap
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import row_mass
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.subgraph import subgraph
from circuit_tracer.interventions.validation.bench import Bench, Condition, Sources
from circuit_tracer.interventions.validation.prediction import padded, path_effects
from circuit_tracer.interventions.validation.target_reads import measurable_targets

# MLPs react; norms that move would touch every node a little, whatever is taken out, and hide what groups do.
REACTING = Condition("reacting", "none", freeze_attention=True, freeze_norms=True)

Rows = Sequence[int]


class PredictedEffects:
    """By the pruned graph alone."""

    def __init__(self, graph: Graph, pruned: PruneResult, profiles: Profiles) -> None:
        layout, nodes = graph.nodes.layout, profiles.nodes
        stays = pruned.node_mask.cpu().clone()
        stays[layout.error_start :] = True
        self.place = (torch.cumsum(stays, 0) - 1)[nodes]
        self.graph = subgraph(graph, pruned)
        flow = pruned.influence.cpu()[nodes] + graph.target_weights.cpu()[nodes]
        self.scale = flow / row_mass(graph.edges).cpu()[nodes]

    def of(self, groups: Sequence[Rows]) -> Tensor:
        """(G, n) of each group taken out at once."""
        if not groups:
            return torch.zeros(0, len(self.place), dtype=torch.float64)
        return (path_effects(self.graph, self.place[padded(groups)])[self.place] * self.scale[:, None]).T


class MeasuredEffects:
    """By the model: its MLPs react, attention and norms are held. Tokens are not taken out, and errors have no input: their
    effects, and those on them, are 0.
    """

    def __init__(self, graph: Graph, pruned: PruneResult, profiles: Profiles, model: Traceable) -> None:
        layout, self.nodes = graph.nodes.layout, profiles.nodes
        features = self.nodes[self.nodes < layout.n_features]
        self.bench = Bench(model, graph, features, measurable_targets(graph), batch_size=16)
        read = torch.cat([features, layout.target_start + self.bench.targets.rows.cpu()])
        self.columns = torch.searchsorted(self.nodes, read)
        flow = (pruned.influence.cpu() + graph.target_weights.cpu())[read]
        self.scale = flow / row_mass(graph.edges).cpu()[read]
        self.graph, self.token_start = graph, layout.token_start

    def of(self, groups: Sequence[Rows]) -> Tensor:
        """(G, n) of each group taken out at once."""
        found = torch.zeros(len(groups), len(self.nodes), dtype=torch.float64)
        there = [row for row, group in enumerate(groups) if int(self.nodes[list(group)].max()) < self.token_start]
        if there:
            sources = [Sources.of_nodes(self.graph, self.nodes[list(groups[row])]) for row in there]
            readings = self.bench.run(sources, REACTING)
            changes = torch.cat([readings.features.cpu(), readings.targets.cpu()], 1).double() * self.scale
            found[torch.tensor(there)[:, None], self.columns] = changes
        return found


def purities(groups: Sequence[Rows], single: Tensor, at_once: Tensor, caused: Tensor, influence: Tensor) -> list[float]:
    """Of each group: the mean over its members, by influence, of the harmonic mean of two overlaps: of what the member does
    with what the group does at once, and of what changes the member with what changes the group's members in the mean. What
    happens inside of the group counts in neither. 1 for a group of one.

    single: (n, n) effects of a node (row) on all; at_once: (G, n) of each group; caused: (n, n), of each node (column) on a
    node (row). influence: (n,).
    """
    return [_purity(list(rows), single, done, caused, influence) for rows, done in zip(groups, at_once, strict=True)]


def _purity(rows: list[int], single: Tensor, done: Tensor, caused: Tensor, influence: Tensor) -> float:
    if len(rows) == 1:
        return 1.0
    outside = torch.ones(len(single), dtype=torch.float64)
    outside[rows] = 0
    weight = influence[rows] / influence[rows].sum().clamp(min=torch.finfo(torch.float64).tiny)
    does = overlap(single[rows] * outside, (done * outside)[None])[:, 0]
    changed = caused[rows] * outside
    size = changed.abs().sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    comes = overlap(changed, (weight[:, None] * changed / size).sum(0)[None])[:, 0]
    return float((weight * harmonic(does, comes)).sum())
