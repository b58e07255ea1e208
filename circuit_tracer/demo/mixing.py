"""How much of a graph's influence features carry that stand for no one thing.

Influence is that of `graph/influence.py`: what reaches the output through a node. Only features count, not errors or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.demo import world
from circuit_tracer.demo.labels import MIXED, Labels, is_mixed, is_of_several_answers
from circuit_tracer.demo.world import Statement
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import prune_graph
from circuit_tracer.replacement_model import ReplacementModel

Named = Mapping[tuple[int, int], str]


@dataclass(frozen=True)
class Carried:
    """Influence of features that are mixed, of those of several answers to one relation, and of all."""

    mixed: float
    several: float
    all: float


def carried(graph: Graph, labels: Named) -> Carried:
    """By the features of the graph as it is pruned by default; one without a label is mixed."""
    pruned = prune_graph(graph)
    kept = torch.where(pruned.node_mask[graph.nodes.layout.features])[0]
    influence = pruned.influence[kept]
    places = zip(graph.nodes.layer[kept].tolist(), graph.nodes.feature[kept].tolist(), strict=True)
    texts = [labels.get(place, MIXED) for place in places]
    mixed, several = (
        float(influence[torch.tensor([asked(text) for text in texts], dtype=torch.bool)].sum())
        for asked in (is_mixed, is_of_several_answers)
    )
    return Carried(mixed, several, float(influence.sum()))


def kinds(folder: Path, labels: Labels, at_most: int) -> dict[str, Any]:
    """Of the pair in ``folder``: how many features of each layer have a label, and how many of these are mixed or of several
    answers; and the `shares` of these two in graphs of ``at_most`` prompts of each group."""
    model = ReplacementModel.from_pretrained(folder / "model", folder / "transcoder", device="cpu", dtype=torch.float32)
    named = {(int(layer), int(index)): label for layer, row in labels.items() for index, label in row.items()}
    groups = {
        "two_hop": world.seen_two_hops(),
        "two_hop_held_out": world.held_out(),
        "two_hop_reserved_cities": world.reserved(),
    }
    return {
        "labelled_by_layer": [len(row) for row in labels.values()],
        "mixed_by_layer": [sum(map(is_mixed, row.values())) for row in labels.values()],
        "several_answers_by_layer": [sum(map(is_of_several_answers, row.values())) for row in labels.values()],
        "influence": {name: shares(model, named, group, at_most) for name, group in groups.items()},
    }


def shares(model: ReplacementModel, labels: Named, statements: Sequence[Statement], at_most: int) -> dict[str, float]:
    """Shares of the features' influence, summed over graphs of ``at_most`` of the prompts (evenly chosen)."""
    step = max(1, -(-len(statements) // at_most))
    parts = [astuple(carried(attribute(one.prompt, model), labels)) for one in statements[::step]]
    mixed, several, whole = (sum(column) for column in zip(*parts, strict=True))
    whole = whole or 1.0  # none that fires: nothing of nothing
    return {"mixed": round(mixed / whole, 4), "several_answers": round(several / whole, 4)}
