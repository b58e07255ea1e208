"""Do edges run through the heads that they are said to run through? A source is taken out while heads are held.

A head that is held gives what it gives on the clean prompt, so nothing of what was taken out comes through it. Taken out twice,
with fewer and with more heads held, the difference of what the target misses is what came through the head:

| part | held both times | and the second time |
|---|---|---|
| through (all paths through the head) | no head | the head |
| first (the first head of a path) | all heads of earlier layers, and the others of its layer | the head |
| last (the last head of a path) | all heads of later layers, and the others of its layer | the head |

With everything frozen the network is linear, and this is the loading, to rounding: holding a head still and setting it to 0 are
then the same. In the real model holding is the milder of the two, since what the head does besides stays.
Letters: L layers, H heads, n loadings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import row_mass
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.validation import Agreement, HeadPart, HeadRows, HeadTest
from circuit_tracer.interventions.validation.bench import Bench, Condition, Sources
from circuit_tracer.interventions.validation.effects import CONDITIONS, WITH_TOKENS, rounded, rounded_columns
from circuit_tracer.interventions.validation.statistics import agreement
from circuit_tracer.interventions.validation.target_reads import measurable_targets
from circuit_tracer.models.indices import require_head
from circuit_tracer.models.surroundings import plain_torch

STRONGEST = 100  # first heads, and as many last heads, that the validation of a graph measures
HEAD_CONDITIONS = tuple(condition for condition in CONDITIONS if condition.name in ("constrained", "live"))
PARTS: tuple[HeadPart, ...] = ("through", "first", "last")
_NAMED: tuple[HeadPart, ...] = ("first", "last")


class Loading(NamedTuple):
    """What is predicted: so much of the edge from `source` to `target` (nodes of the graph) runs through a head."""

    source: int
    target: int
    layer: int
    head: int
    part: HeadPart
    predicted: float


@typed
@plain_torch()
@torch.no_grad()
def measure_loadings(graph: Graph, model: Traceable, loadings: Sequence[Loading], batch_size: int = 16) -> HeadTest:
    """Predicted and measured loadings of heads, with everything frozen and in the real model.

    Sources are features, errors and tokens (these with everything frozen alone); targets are features and those of the
    graph. Costs two passes for every `batch_size` sources and sets of held heads that differ.

    Args:
        graph: The attribution graph.
        model: The replacement model that the graph was traced with.
        loadings: What is predicted, one each.
        batch_size: How many runs share a pass; changes no result beyond rounding.

    Returns:
        Predicted and measured loadings, and how well they agree.

    Raises:
        InputError: For a node, layer, head or part that does not exist, or a node that cannot be read or taken out.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
    _check(graph, model, loadings)
    layout = graph.nodes.layout
    read = sorted({each.target for each in loadings})
    features = torch.tensor([node for node in read if node < layout.n_features], dtype=torch.int64)
    targets = torch.tensor([node - layout.target_start for node in read if node >= layout.target_start]).long()
    bench = Bench(model, graph, features, targets, batch_size)
    column = {node: place for place, node in enumerate(read)}  # features come first among nodes, as among what is read
    measured = {each.name: _measure(bench, graph, loadings, column, each) for each in HEAD_CONDITIONS}
    return _test(graph, loadings, measured)


def kept_loadings(graph: Graph, pruned: PruneResult) -> list[Loading]:
    """First and last heads that the graph names for kept edges into features and targets: the strongest, as shares of the
    target's input. None for a graph that names none.
    """
    named = graph.edge_heads
    if named is None:
        return []
    named, layout, edges = named.to("cpu"), graph.nodes.layout, graph.edges
    readable = torch.zeros(graph.n_nodes, dtype=torch.bool)
    readable[layout.features], readable[layout.target_start + measurable_targets(graph)] = True, True
    where = torch.searchsorted(
        edges.target.cpu() * graph.n_nodes + edges.source.cpu(), named.target * graph.n_nodes + named.source
    )
    kept = pruned.kept_edges.cpu()[where]
    rows = torch.nonzero(kept & readable[named.target]).flatten()
    scale, found = row_mass(edges).cpu(), []
    for part in _NAMED:
        heads, weight = getattr(named, part)[rows], getattr(named, f"{part}_weight")[rows]
        share = (weight.double().abs() / scale[named.target[rows], None]).flatten()
        for place in torch.argsort(share, descending=True, stable=True)[:STRONGEST].tolist():
            row, rank = divmod(place, weight.shape[1])
            layer, head = heads[row, rank].tolist()
            if layer >= 0:
                edge = int(named.source[rows[row]]), int(named.target[rows[row]])
                found.append(Loading(*edge, layer, head, part, float(weight[row, rank])))
    return found


def _measure(
    bench: Bench, graph: Graph, loadings: Sequence[Loading], column: dict[int, int], condition: Condition
) -> list[float | None]:
    """What came through each head, under one condition; experiments that several loadings need are run once."""
    number: dict[tuple[int, bytes], int] = {}
    experiments: list[Sources] = []
    pairs: list[list[int] | None] = []
    for each in loadings:
        if each.source >= graph.nodes.layout.token_start and condition.name not in WITH_TOKENS:
            pairs.append(None)
            continue
        pair = []
        for held in _held(each, bench):
            key = (each.source, bytes(held.flatten().tolist()))
            if key not in number:
                number[key] = len(number)
                experiments.append(Sources.of_nodes(graph, torch.tensor([each.source]), held))
            pair.append(number[key])
        pairs.append(pair)
    if not experiments:
        return [None] * len(loadings)
    readings = bench.run(experiments, condition)
    change = torch.cat([readings.features.cpu(), readings.targets.cpu()], dim=1).double()
    return [
        None if pair is None else float(change[pair[1], column[each.target]] - change[pair[0], column[each.target]])
        for each, pair in zip(loadings, pairs, strict=True)
    ]


def _check(graph: Graph, model: Traceable, loadings: Sequence[Loading]) -> None:
    layout, config = graph.nodes.layout, model.parts.config
    for each in loadings:
        require_head(each.layer, each.head, config.n_layers, config.n_heads)
        what = f"loading of the edge {each.source} -> {each.target} through L{each.layer}H{each.head}"
        if each.part not in PARTS:
            raise InputError(f"{what}: part {each.part!r} is unknown; use {', '.join(PARTS)}")
        if not 0 <= each.source < layout.target_start:
            raise InputError(f"{what}: sources are nodes 0 to {layout.target_start - 1} (features, errors, tokens)")
        row = each.target - layout.target_start
        if not (0 <= each.target < layout.n_features or 0 <= row < len(graph.targets.kind)):
            raise InputError(
                f"{what}: targets are features (nodes 0 to {layout.n_features - 1}) and the graph's targets"
            )


def _held(loading: Loading, bench: Bench) -> tuple[Tensor, Tensor]:
    """(L, H) heads that are held the first and the second time."""
    first = torch.zeros(bench.n_layers, bench.parts.config.n_heads, dtype=torch.bool)
    if loading.part != "through":
        first[: loading.layer] = loading.part == "first"
        first[loading.layer] = True
        first[loading.layer + 1 :] = loading.part == "last"
        first[loading.layer, loading.head] = False
    second = first.clone()
    second[loading.layer, loading.head] = True
    return first, second


def _test(graph: Graph, loadings: Sequence[Loading], measured: dict[str, list[float | None]]) -> HeadTest:
    """The table, and how well the two agree, both as shares of the target's input."""
    scale = row_mass(graph.edges).cpu()
    agreements: dict[str, dict[str, Agreement]] = {}
    for part in PARTS:
        for condition, column in measured.items():
            chosen = [n for n, each in enumerate(loadings) if each.part == part and column[n] is not None]
            if not chosen:
                continue
            own = scale[[loadings[n].target for n in chosen]]
            pair = ([loadings[n].predicted for n in chosen], [column[n] for n in chosen])
            shares = [torch.tensor(each, dtype=torch.float64) / own for each in pair]
            agreements.setdefault(part, {})[condition] = agreement(*shares)
    return HeadTest(agreements, _rows(loadings, measured))


def _rows(loadings: Sequence[Loading], measured: dict[str, list[float | None]]) -> HeadRows:
    return HeadRows(
        source=[each.source for each in loadings],
        target=[each.target for each in loadings],
        layer=[each.layer for each in loadings],
        head=[each.head for each in loadings],
        part=[each.part for each in loadings],
        predicted=[rounded(each.predicted) for each in loadings],
        measured=rounded_columns(measured),
    )
