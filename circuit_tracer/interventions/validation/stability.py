"""Does the graph stay the same when what was chosen by hand is chosen otherwise: thresholds of pruning, rows expanded?"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.files.node_ids import node_ids
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PrunePolicy, PruneResult, prune_graph
from circuit_tracer.graph.validation import Stability, Variation
from circuit_tracer.interventions.validation.bench import Bench
from circuit_tracer.interventions.validation.statistics import mean

NODE_THRESHOLDS = (0.6, 0.7, 0.8, 0.9, 0.95)
EDGE_THRESHOLDS = (0.95, 0.98, 0.99)
SHARES_OF_ROWS = (0.25, 0.5, 2.0)


class Stabilities:
    """nodes (N,), edges (E,): share of the threshold variations that keep each node and edge of the graph."""

    def __init__(self, graph: Graph, pruned: PruneResult, policy: PrunePolicy) -> None:
        self.variations: list[Variation] = []
        layout = graph.nodes.layout
        kept_nodes = torch.zeros(graph.n_nodes, dtype=torch.float64)
        kept_edges = torch.zeros(len(graph.edges), dtype=torch.float64)
        for node_threshold in NODE_THRESHOLDS:
            for edge_threshold in EDGE_THRESHOLDS:
                other = prune_graph(graph, node_threshold, edge_threshold, policy)
                kept_nodes += other.node_mask.cpu()
                kept_edges += other.kept_edges.cpu()
                features = (each.node_mask[layout.features] for each in (pruned, other))
                self.variations.append(
                    Variation(
                        node_threshold,
                        edge_threshold,
                        layout.n_features,
                        _similarity(*features),
                        _similarity(pruned.kept_edges, other.kept_edges),
                    )
                )
        self.nodes, self.edges = kept_nodes / len(self.variations), kept_edges / len(self.variations)

    def report(self, graph: Graph, pruned: PruneResult, rows: list[Variation]) -> Stability:
        """Means over kept features and kept edges."""
        features = pruned.node_mask.cpu()[graph.nodes.layout.features]
        return Stability(
            nodes=mean(self.nodes[: len(features)][features]),
            edges=mean(self.edges[pruned.kept_edges.cpu()]),
            thresholds=self.variations,
            rows=rows,
        )


def row_variations(
    bench: Bench, pruned: PruneResult, thresholds: tuple[float, float], policy: PrunePolicy
) -> list[Variation]:
    """The prompt traced again to the same targets with other numbers of rows, and pruned alike."""
    graph = bench.graph
    n_rows, n_active = len(graph.selected_features), len(graph.active_features)
    ours, found = _names(graph, pruned), []
    counts = {min(n_active, max(1, round(share * n_rows))) for share in SHARES_OF_ROWS} - {n_rows}
    for count in sorted(counts):
        other = retrace(bench, bench.model, count)
        theirs = _names(other, prune_graph(other, *thresholds, policy))
        found.append(Variation(*thresholds, count, _jaccard(ours[0], theirs[0]), _jaccard(ours[1], theirs[1])))
    return found


def retrace(bench: Bench, model: Traceable, rows: int) -> Graph:
    """The prompt traced to what is measured of the graph's targets, tokens at their position, with so many rows.

    A feature is then the direction that it reads, so that it is the same target for another dictionary.
    """
    graph, token = bench.graph, bench.targets.first_token
    settings = graph.provenance.get("settings", {})
    return attribute(
        graph.input_tokens.cpu(),
        model,
        attribution_targets=bench.targets.aims(),
        max_feature_nodes=rows,
        zero_positions=settings.get("zero_positions"),
        position=-1 if token is None else token[1],
    )


def _names(graph: Graph, pruned: PruneResult) -> tuple[set[str], set[tuple[str, str]]]:
    """Kept features and kept edges, named alike in every graph of a prompt."""
    names = node_ids(graph)
    features = torch.nonzero(pruned.node_mask[graph.nodes.layout.features]).flatten().tolist()
    edges = {(names[source], names[target]) for target, source, _ in pruned.pruned_edges}
    return {names[node] for node in features}, edges


def _similarity(left: Tensor, right: Tensor) -> float | None:
    union = int((left | right).sum())
    return int((left & right).sum()) / union if union else None


def _jaccard(left: AbstractSet[object], right: AbstractSet[object]) -> float | None:
    return len(left & right) / len(left | right) if left | right else None
