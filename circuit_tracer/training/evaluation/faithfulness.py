"""Does the model do what a graph says? Sampled edges and groups of features, against ablation in the real model (README.md §4).

Nothing is held in the condition `live`; `window` holds MLPs from the source's layer to two layers on, and attention
(interventions/validation/README.md §1). Cost: passes over some twenty copies of the prompt, whatever the size of the graph.
Letters: n sources, m targets that are features, E edges sampled, g features of a group.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence, row_mass
from circuit_tracer.interventions.validation.bench import Bench, Condition, Sources
from circuit_tracer.interventions.validation.effects import CONDITIONS
from circuit_tracer.interventions.validation.prediction import path_effects
from circuit_tracer.interventions.validation.statistics import spearman
from circuit_tracer.training.evaluation.results import GraphScore

SOURCES = 16  # features taken out one by one
EDGES = 64  # between features, for all sources together
SHARES = (1 / 64, 1 / 16, 1 / 4, 1)  # strata end at these shares of a ranking; each gives equally many
GROUP = 8  # features taken out at once
GROUPS = 8  # of each kind
STRONG = 8 * GROUP  # features that groups of strong ones are drawn from
BATCH = 16  # experiments to a pass

_CONDITIONS = {condition.name: condition for condition in CONDITIONS}


def tested(score: GraphScore, graph: Graph, model: Traceable, seed: int) -> GraphScore:
    """The score of a graph with the numbers of `results.FAITHFULNESS`; NaN where there is too little to correlate."""
    generator = torch.Generator().manual_seed(seed)
    features = graph.nodes.layout.n_features
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights).cpu()[:features]
    ranked = influence.argsort(descending=True, stable=True)
    sources = _stratified(ranked, SOURCES, generator).sort().values
    edges = _edges(graph, sources, generator)
    watched = edges.target[edges.target < features].unique()
    bench = Bench(model, graph, watched, torch.tensor([0]), BATCH)
    live, window = (_edges_measured(bench, edges, sources, watched, _CONDITIONS[name]) for name in ("live", "window"))
    score = replace(score, edges_live=live, edges_window=window)
    return score if features < 2 * GROUP else _with_groups(score, bench, ranked, generator)


class _Edges:
    """E edges of a graph: source and target nodes, and what each is of its target's input, (E,)."""

    def __init__(self, graph: Graph, which_E: Tensor) -> None:
        edges = graph.edges
        self.source, self.target = edges.source.cpu()[which_E], edges.target.cpu()[which_E]
        self.mass = row_mass(edges).cpu()[self.target]
        self.share = edges.weight.cpu().double()[which_E] / self.mass


def _edges(graph: Graph, sources: Tensor, generator: torch.Generator) -> _Edges:
    """Of the sources: edges to features, stratified by share of the target's input, and all edges to the first target."""
    layout, edges = graph.nodes.layout, graph.edges
    source, target = edges.source.cpu(), edges.target.cpu()
    from_sources = torch.isin(source, sources)
    to_features = torch.nonzero(from_sources & (target < layout.n_features)).flatten()
    share = edges.weight.cpu().double().abs()[to_features] / row_mass(edges).cpu()[target[to_features]]
    ranked = to_features[share.argsort(descending=True, stable=True)]
    to_target = torch.nonzero(from_sources & (target == layout.target_start)).flatten()
    return _Edges(graph, torch.cat([_stratified(ranked, EDGES, generator), to_target]))


def _edges_measured(bench: Bench, edges: _Edges, sources: Tensor, watched: Tensor, condition: Condition) -> float:
    """Spearman of edges with what taking out their source takes from the target, both as shares of the target's input."""
    if not len(edges.source):
        return math.nan
    readings = bench.run([Sources.of_nodes(bench.graph, source[None]) for source in sources], condition)
    lost_nM = -torch.cat([readings.features.cpu(), readings.targets.cpu()], dim=1).double()
    column = torch.searchsorted(watched, edges.target)  # the target comes last, and its node is above all features
    measured = lost_nM[torch.searchsorted(sources, edges.source), column] / edges.mass
    return _number(spearman(edges.share, measured))


def _with_groups(score: GraphScore, bench: Bench, ranked: Tensor, generator: torch.Generator) -> GraphScore:
    """Groups of equal size taken out: the strongest features, others drawn among strong ones, and among all."""
    groups = [ranked[:GROUP]]
    for pool in (ranked[:STRONG], ranked):
        groups += [pool[torch.randperm(len(pool), generator=generator)[:GROUP]] for _ in range(GROUPS)]
    groups_ng = torch.stack(groups)
    predicted_n = path_effects(bench.graph, groups_ng)[bench.graph.nodes.layout.target_start]
    readings = bench.run([Sources.of_nodes(bench.graph, group) for group in groups_ng], _CONDITIONS["live"])
    measured_n = readings.targets[:, 0].cpu().double()
    return replace(
        score,
        groups_live=_number(spearman(predicted_n, measured_n)),
        top_group_moves=float(measured_n[0].abs()),
        random_group_moves=float(measured_n[-GROUPS:].abs().mean()),
    )


def _stratified(ranked: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of a ranking (all, if there are no more), as many from each of the strata; what one lacks the next ones give."""
    if len(ranked) <= count:
        return ranked
    chosen, start = list[Tensor](), 0
    for place, share in enumerate(SHARES):
        end = max(math.ceil(share * len(ranked)), start)
        wanted = (count - sum(map(len, chosen))) // (len(SHARES) - place)
        stratum = ranked[start:end]
        chosen.append(stratum[torch.randperm(len(stratum), generator=generator)[:wanted]])
        start = end
    return torch.cat(chosen)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
