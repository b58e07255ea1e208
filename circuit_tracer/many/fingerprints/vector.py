"""A graph as a short vector of numbers with names, after CRV (2510.09312): global, node and topology statistics.

None depends on the order of nodes, on which feature is which, or, but for weights of edges, on the units of targets. What each
is: `names.py`; how they are defined: the package's README.

Letters: N nodes, E edges, L layers, P positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.graph.pruning import PruneResult, prune_graph
from circuit_tracer.graph.scores import graph_scores, path_lengths
from circuit_tracer.many.fingerprints.names import names
from circuit_tracer.many.fingerprints.topology import topology

TINY = 1e-30


@dataclass(frozen=True)
class _Seen:
    """What the statistics are made of. influence_N: of the whole graph, a share of the weight of all targets."""

    graph: Graph
    pruned: PruneResult
    influence_N: Tensor

    @property
    def kept_features(self) -> Tensor:
        """Numbers of the kept features."""
        return torch.nonzero(self.pruned.node_mask[: self.graph.nodes.layout.n_features]).flatten()


@typed
def fingerprint(graph: Graph, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> dict[str, float]:
    """The vector of a graph, by name, in the order of `names`; all numbers are finite.

    A graph that does not know its reconstruction (circuit-tracer's files) has no ``global.nmse_*``. O(E) and the cost of
    `topology`: some 12 ms for 750 nodes.

    Args:
        graph: The attribution graph.
        node_threshold: Of the pruning after which nodes are "kept".
        edge_threshold: Of the pruning after which edges are "kept".

    Returns:
        Finite numbers by name.

    Raises:
        InputError: For thresholds outside 0..1, or without scipy.

    Examples:
        >>> from circuit_tracer.many.fingerprints import fingerprint
        >>> list(fingerprint(graph))[:2]
        ['logits.top', 'logits.margin']
    """
    pruned = prune_graph(graph, node_threshold, edge_threshold)
    total = graph.target_weights.sum().clamp(min=TINY)
    influence_N = node_influence(graph.edges, graph.blocks, graph.target_weights) / total
    seen, layout = _Seen(graph, pruned, influence_N), graph.nodes.layout
    weighted = path_lengths(graph).mean
    found = {
        **_logits(graph.targets.weight.double().abs()),
        **_global(seen),
        **_nodes(seen),
        **_layers(seen),
        **topology(
            pruned.pruned_edges,
            range(layout.token_start, layout.target_start),
            range(layout.target_start, layout.n_nodes),
        ),
        "topology.path_weighted": weighted,
    }
    return {
        name: found[name] if math.isfinite(found[name]) else 0.0
        for name in names(graph.n_layers, graph.reconstruction is not None)
    }


def _logits(weight_K: Tensor) -> dict[str, float]:
    ranked = weight_K.sort(descending=True).values
    covered = float(weight_K.sum())
    outcomes = torch.cat([weight_K, (1 - weight_K.sum()).clamp(min=0)[None]])
    return {
        "logits.top": float(ranked[0]),
        "logits.margin": float(ranked[0] - ranked[1]) if len(ranked) > 1 else float(ranked[0]),
        "logits.entropy": float(-torch.xlogy(outcomes, outcomes).sum()),
        "logits.covered": covered,
        "logits.targets": float(len(weight_K)),
    }


def _global(seen: _Seen) -> dict[str, float]:
    graph, pruned, layout = seen.graph, seen.pruned, seen.graph.nodes.layout
    scores, quality = graph_scores(graph), graph.reconstruction
    kept_sources = torch.unique(pruned.pruned_edges.source)
    of_tokens = (kept_sources >= layout.token_start) & (kept_sources < layout.target_start)
    found = {
        "global.tokens": graph.n_pos,
        "global.active": len(graph.active_features),
        "global.features": layout.n_features,
        "global.edges": len(graph.edges),
        "global.kept_features": len(seen.kept_features),
        "global.kept_errors": int(pruned.node_mask[layout.errors].sum()),
        "global.kept_tokens": int(of_tokens.sum()),
        "global.kept_edges": int(pruned.kept_edges.sum()),
        "global.replacement": scores.replacement,
        "global.completeness": scores.completeness,
        "global.strict_completeness": scores.strict_completeness,
    }
    if quality is not None:
        found |= {"global.nmse_mean": float(quality.nmse.mean()), "global.nmse_max": float(quality.nmse.max())}
    return {name: float(value) for name, value in found.items()}


def _nodes(seen: _Seen) -> dict[str, float]:
    nodes, layout, kept = seen.graph.nodes, seen.graph.nodes.layout, seen.kept_features
    influence = seen.influence_N[kept]
    edges = seen.pruned.pruned_edges
    size, target = edges.weight.double().abs(), edges.target
    last = nodes.position[kept] == seen.graph.n_pos - 1
    return {
        **_spread("node.activation", nodes.activation[kept].double()),
        **_spread("node.influence", influence),
        "node.effective_features": _effective(influence),
        "node.effective_tokens": _effective(seen.influence_N[layout.tokens]),
        "node.token_max": float(seen.influence_N[layout.tokens].max()),
        "node.error_max": float(seen.influence_N[layout.errors].max()),
        "node.last_position": float(influence[last].sum() / influence.sum().clamp(min=TINY)),
        **_spread("node.weight", size),
        "node.negative": float(size[edges.weight < 0].sum() / size.sum().clamp(min=TINY)),
        "node.edge_layers": _mean(nodes.layer[target] - nodes.layer[edges.source]),
        "node.edge_positions": _mean(nodes.position[target] - nodes.position[edges.source]),
    }


def _layers(seen: _Seen) -> dict[str, float]:
    """Three numbers a layer."""
    layout, n_layers = seen.graph.nodes.layout, seen.graph.n_layers
    layer_N = seen.graph.nodes.layer
    features = layer_N[layout.features]
    columns = {
        "kept": torch.bincount(layer_N[seen.kept_features], minlength=n_layers),
        "influence": torch.bincount(features, weights=seen.influence_N[layout.features], minlength=n_layers),
        "error": torch.bincount(layer_N[layout.errors], weights=seen.influence_N[layout.errors], minlength=n_layers),
    }
    return {
        f"node.{name}_layer_{layer}": float(value)
        for name, column in columns.items()
        for layer, value in enumerate(column.tolist())
    }


def _spread(name: str, values: Tensor) -> dict[str, float]:
    """Mean, standard deviation over all of them, and maximum."""
    if not len(values):
        return {f"{name}_mean": 0.0, f"{name}_std": 0.0, f"{name}_max": 0.0}
    deviation = values.std(correction=0)
    return {f"{name}_mean": float(values.mean()), f"{name}_std": float(deviation), f"{name}_max": float(values.max())}


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0


def _effective(shares: Tensor) -> float:
    """exp of the entropy of what the shares are of their sum; 0 if there is nothing."""
    total = shares.sum()
    if not len(shares) or float(total) <= 0:
        return 0.0
    parts = shares / total
    return float(torch.exp(-torch.xlogy(parts, parts).sum()))
