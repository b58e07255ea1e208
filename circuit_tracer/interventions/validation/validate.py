"""Test a graph by the interventions that it predicts.

    report = validate(graph, model)
    print("\\n".join(report.verdict + report.distrust))
    graph.save("graph.safetensors")     # the report goes with it, as graph.validation

What is measured, and what it means: README.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch

from circuit_tracer.arguments import require_seed, typed
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence, row_mass
from circuit_tracer.graph.pruning import PrunePolicy, PruneResult, prune_graph
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.graph.validation import Accounting, Measures, ValidationReport
from circuit_tracer.graph.words import is_of_neurons, left_over
from circuit_tracer.interventions.validation.bench import Bench
from circuit_tracer.interventions.validation.circuit import circuit_tests
from circuit_tracer.interventions.validation.contrasts import kept_shares, measure_scores
from circuit_tracer.interventions.validation.controls import random_dictionary
from circuit_tracer.interventions.validation.curves import perturbation_curves
from circuit_tracer.interventions.validation.effects import NodeEffects
from circuit_tracer.interventions.validation.group_verdict import group_distrust, group_verdict
from circuit_tracer.interventions.validation.groups import measure_groups
from circuit_tracer.interventions.validation.loadings import kept_loadings, measure_loadings
from circuit_tracer.interventions.validation.stability import Stabilities, retrace, row_variations
from circuit_tracer.interventions.validation.statistics import mean
from circuit_tracer.interventions.validation.target_reads import measurable_targets
from circuit_tracer.interventions.validation.verdict import ERRORS, distrust, verdict
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.progress import Progress, silent
from circuit_tracer.transcoders.base import Transcoders


@typed
@plain_torch()
@torch.no_grad()
def validate(
    graph: Graph,
    model: Traceable,
    *,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    policy: PrunePolicy = "circuit-tracer",
    controls: Mapping[str, Transcoders] | None = None,
    random_control: bool = True,
    groups: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ValidationReport:
    """The report on a graph, pruned at the thresholds as a viewer would; it is also kept as `graph.validation`.

    Heads that the graph names for its edges (`explain_edges`) are tested too, and what it keeps of scores of attention
    (`explain_score`). Deterministic for a seed. Cost: a clean pass, four passes for every `batch_size` kept nodes, some
    traces with other numbers of rows, and the same for each control.

    Args:
        graph: The attribution graph.
        model: The replacement model that the graph was traced with.
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).
        policy: How nodes are kept: "circuit-tracer" or "paper" (`prune_graph`).
        controls: Other dictionaries of the same model by name, such as a per-layer one, measured alike on graphs of their
            own.
        random_control: A random dictionary too.
        groups: Node ids by name, each taken out at once, and the circuit that they make together, beside random groups of
            the same size (`measure_groups`).
        seed: Of the random dictionary and groups.
        batch_size: How many runs share a pass; changes no result beyond rounding.
        progress: Called with (stage, done, total).

    Returns:
        Numbers and verdicts; `report.lines()` says them in words.

    Raises:
        CompatibilityError: For a graph of another model or dictionary.
        InputError: For a graph that does not keep what its targets read or a threshold outside 0..1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
    require_seed(seed)
    started, progress = time.perf_counter(), progress or silent
    subject = _Subject(graph, model, (node_threshold, edge_threshold), policy, batch_size)
    measures = subject.measure(seed, progress)
    stabilities = Stabilities(graph, subject.pruned, policy)
    rows = row_variations(subject.bench, subject.pruned, subject.thresholds, policy)
    stability = stabilities.report(graph, subject.pruned, rows)
    others = dict(controls or {})
    if random_control:
        others["random"] = random_dictionary(subject.bench, seed)
    loadings = kept_loadings(graph, subject.pruned)
    heads = measure_loadings(graph, model, loadings, batch_size) if loadings else None
    shares = kept_shares(graph)
    scores = measure_scores(graph, model, shares, batch_size) if shares else None
    grouped = measure_groups(graph, model, groups, seed=seed, batch_size=batch_size) if groups else None
    measured = {}
    for number, (name, dictionary) in enumerate(others.items()):
        progress("controls", number, len(others))
        measured[name] = _control(subject, dictionary, seed)
    target, measure = graph.targets.label[int(subject.targets[0])], subject.bench.targets.measure
    left = left_over(graph) if is_of_neurons(graph) else ERRORS
    report = ValidationReport(
        prompt=graph.input_string,
        target=target,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        policy=policy,
        graph=measures,
        stability=stability,
        controls=measured,
        nodes=subject.effects.node_rows(stabilities.nodes),
        edges=subject.effects.edge_rows(stabilities.edges),
        verdict=[
            *verdict(measures, stability, target, heads, scores, measure, left),
            *group_verdict(grouped, target, measure),
        ],
        distrust=[*distrust(measures, stability, measured, measure, left), *group_distrust(grouped, measure)],
        seconds=round(time.perf_counter() - started, 2),
        heads=heads,
        scores=scores,
        groups=grouped,
        measure=measure,
    )
    graph.validation = report
    return report


class _Subject:
    """A graph with its model, pruned, ready to be measured."""

    def __init__(
        self, graph: Graph, model: Traceable, thresholds: tuple[float, float], policy: PrunePolicy, batch_size: int
    ) -> None:
        self.graph, self.model, self.thresholds, self.policy, self.batch_size = (
            graph,
            model,
            thresholds,
            policy,
            batch_size,
        )
        self.targets = measurable_targets(graph)
        self.pruned: PruneResult = prune_graph(graph, *thresholds, policy)
        kept = torch.nonzero(self.pruned.node_mask[graph.nodes.layout.features]).flatten()
        self.bench = Bench(model, graph, kept, self.targets, batch_size)

    def measure(self, seed: int, progress: Progress) -> Measures:
        """Everything but stability."""
        features = self.pruned.node_mask[self.graph.nodes.layout.features]
        self.effects = NodeEffects(self.graph, self.pruned, self.bench, self.targets, progress)
        transcoders = self.model.transcoders
        return Measures(
            dictionary=f"{transcoders.kind} of {transcoders.d_transcoder} features a layer",
            n_features=int(features.sum()),
            n_nodes=int(self.pruned.node_mask.sum()),
            n_edges=int(self.pruned.kept_edges.sum()),
            effects={name: self.effects.table(name) for name in self.effects.measured},
            curves=perturbation_curves(self.graph, self.pruned, self.bench, seed),
            circuit=circuit_tests(self.graph, self.pruned, self.bench, seed),
            accounting=self._accounting(),
        )

    def _accounting(self) -> Accounting:
        graph = self.graph
        return Accounting(
            residual=graph.residual,
            explained=_number(graph_scores(graph, self.pruned.node_mask).replacement),
            errors=_number(1 - graph_scores(graph).replacement),
            unselected=self._unselected(),
            attention=self.effects.moved_by_attention(),
        )

    def _unselected(self) -> float | None:
        """Share of the rows' mass that is from unselected features, mean over rows by influence (targets by weight)."""
        graph, balance = self.graph, self.graph.balance
        if balance is None:
            return None
        mass = balance.unselected_mass.double()
        weight = graph.target_weights + node_influence(graph.edges, graph.blocks, graph.target_weights)
        has_row = graph.edges.row_ptr.diff() > 0
        return mean((mass / (row_mass(graph.edges) + mass))[has_row], weight[has_row])


def _control(subject: _Subject, dictionary: Transcoders, seed: int) -> Measures:
    """The same prompt and targets traced with another dictionary, as many rows, pruned and measured alike."""
    other = Traceable(subject.model.parts, dictionary, subject.model.tokenizer)
    graph = retrace(subject.bench, other, len(subject.graph.selected_features))
    return _Subject(graph, other, subject.thresholds, subject.policy, subject.batch_size).measure(seed, silent)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
