"""Is the circuit necessary, and is it enough? Sets of features and errors taken out together.

| condition | MLPs | attention | norms |
|---|---|---|---|
| constrained | clean output minus what was taken out | frozen | live |
| live | real, minus what was taken out | live | live |

Letters: N active features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.validation import CircuitTest
from circuit_tracer.interventions.validation.bench import Bench, Condition, Sources

CONDITIONS = (
    Condition("constrained", "all", freeze_attention=True, freeze_norms=False),
    Condition("live", "none", freeze_attention=False, freeze_norms=False),
)
DRAWS = 8  # random sets of other features


def circuit_tests(graph: Graph, pruned: PruneResult, bench: Bench, seed: int = 0) -> dict[str, CircuitTest]:
    """By condition. The circuit: kept features, and kept errors."""
    return circuit_of_nodes(graph, pruned.node_mask, bench, seed)


def circuit_of_nodes(graph: Graph, nodes: Tensor, bench: Bench, seed: int) -> dict[str, CircuitTest]:
    """By condition. The circuit: the features and errors where `nodes` (N,) bool says."""
    layout, mask = graph.nodes.layout, nodes.cpu()
    member = torch.zeros(len(graph.active_features), dtype=torch.bool)
    member[graph.selected_features.cpu()] = mask[layout.features]
    kept_errors = mask[layout.errors].reshape(layout.n_layers, layout.n_pos)
    kept_errors[:, bench.clean.left_out] = True  # there are none
    every_error = torch.zeros_like(kept_errors)
    every_error[:, bench.clean.left_out] = True
    inside, outside = torch.nonzero(member).flatten(), torch.nonzero(~member).flatten()
    generator = torch.Generator().manual_seed(seed)
    count = min(len(inside), len(outside))
    draws = [outside[torch.randperm(len(outside), generator=generator)] for _ in range(DRAWS if count else 0)]
    experiments = [
        _features(graph, inside),
        _features(graph, outside, ~kept_errors),
        _features(graph, torch.arange(len(member)), ~every_error),
        *(_features(graph, drawn[:count]) for drawn in draws),
        *(_features(graph, torch.cat([inside, drawn[count:]]), ~kept_errors) for drawn in draws),
    ]
    found = {}
    for condition in CONDITIONS:
        clean, (without, only, nothing, *others) = bench.first_target(bench.run(experiments, condition))
        without_others, only_others = (_mean(each) for each in (others[: len(draws)], others[len(draws) :]))
        found[condition.name] = CircuitTest(clean, without, without_others, only, nothing, only_others)
    return found


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _features(graph: Graph, rows: Tensor, errors: Tensor | None = None) -> Sources:
    """Active features by row, and errors where the mask (L, P) says."""
    layer, position, index = graph.active_features[rows].long().cpu().T
    places = [] if errors is None else torch.nonzero(errors).tolist()
    return Sources(
        layer, position, index, graph.activation_values[rows].cpu(), tuple((layer, place) for layer, place in places)
    )
