"""How much of a graph's influence features carry that stand for no one thing.

Influence is that of `graph/influence.py`: what reaches the output through a node. Only features count, not errors or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.demo import world
from circuit_tracer.demo.labels import Labels
from circuit_tracer.demo.world import Statement
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import prune_graph
from circuit_tracer.replacement_model import ReplacementModel

MIXED = "mixed"  # how the label of such a feature begins


def kinds(folder: Path, labels: Labels, at_most: int) -> dict[str, Any]:
    """Of the pair in ``folder``: how many features of each layer have a label and how many are mixed, and the mixed ones' share
    of the influence in graphs of ``at_most`` prompts of each group."""
    model = ReplacementModel.from_pretrained(folder / "model", folder / "transcoder", device="cpu", dtype=torch.float32)
    by_place = {(int(layer), int(index)): label for layer, row in labels.items() for index, label in row.items()}
    groups = {
        "two_hop": world.seen_two_hops(),
        "two_hop_held_out": world.held_out(),
        "two_hop_reserved_cities": world.reserved(),
    }
    return {
        "labelled_by_layer": [len(row) for row in labels.values()],
        "mixed_by_layer": [sum(label.startswith(MIXED) for label in row.values()) for row in labels.values()],
        "influence_of_mixed": {name: mixed_share(model, by_place, group, at_most) for name, group in groups.items()},
    }


def mixed_influence(graph: Graph, labels: Mapping[tuple[int, int], str]) -> tuple[float, float]:
    """Influence of the mixed features, and of all features, of the graph as it is pruned by default; without label is mixed."""
    pruned = prune_graph(graph)
    kept = torch.where(pruned.node_mask[graph.nodes.layout.features])[0]
    places = zip(graph.nodes.layer[kept].tolist(), graph.nodes.feature[kept].tolist(), strict=True)
    mixed = torch.tensor([labels.get(place, MIXED).startswith(MIXED) for place in places], dtype=torch.bool)
    influence = pruned.influence[kept]
    return float(influence[mixed].sum()), float(influence.sum())


def mixed_share(
    model: ReplacementModel, labels: Mapping[tuple[int, int], str], statements: Sequence[Statement], at_most: int
) -> float:
    """Share of the features' influence, summed over graphs of ``at_most`` of the prompts (evenly chosen)."""
    step = max(1, -(-len(statements) // at_most))
    parts = [mixed_influence(attribute(one.prompt, model), labels) for one in statements[::step]]
    whole = sum(all_features for _, all_features in parts)
    return round(sum(mixed for mixed, _ in parts) / whole, 4) if whole else 0.0
