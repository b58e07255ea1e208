"""Do nodes carry what is said of why a head looks where it looks? They are taken out, and scores are read.

A difference of two scores of one query is the difference of the logs of attention. With everything frozen, norms of queries and
keys too, either side of a score is linear in the stream, and loses exactly what the node carries of it. In the real model norms
and MLPs react, and with side "both" the product of what both sides lose counts as well.

A share of side "both" is half of what the query's side carries and half of what the key's does, so that all shares add up to
the score; taking the node out takes the whole of both. So the table has twice such a share, predicted and measured.
Letters: B experiments, P positions, D d_model, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attribution.stream_targets import AttentionTarget, resolve_attention
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.graph.validation import Agreement, ScoreRows, ScoreTest
from circuit_tracer.interventions.heads.patterns import unmasked
from circuit_tracer.interventions.validation.bench import Bench, Condition, Sources
from circuit_tracer.interventions.validation.effects import WITH_TOKENS, rounded, rounded_columns
from circuit_tracer.interventions.validation.loadings import HEAD_CONDITIONS
from circuit_tracer.interventions.validation.statistics import agreement
from circuit_tracer.models.run import Place, Visit
from circuit_tracer.models.surroundings import plain_torch


class ScoreShare(NamedTuple):
    """What is predicted: a node (feature, error or token of the graph) carries so much of a target's score; its edge, where the
    target is one of the graph's.
    """

    target: AttentionTarget
    node: int
    predicted: float


def kept_shares(graph: Graph) -> list[ScoreShare]:
    """What the scores that a graph keeps name as strongest on either side, where that is a node of the graph."""
    numbers = {name: node for node, name in enumerate(graph.nodes.ids()[: graph.nodes.layout.target_start])}
    return [
        ScoreShare(AttentionTarget(*score.place)._replace(side=side), numbers[name], weight)
        for score in graph.scores
        for side, found in (("query", score.query_side), ("key", score.key_side))
        for name, weight in found.top
        if name in numbers
    ]


@typed
@plain_torch()
@torch.no_grad()
def measure_scores(graph: Graph, model: Traceable, shares: Sequence[ScoreShare], batch_size: int = 16) -> ScoreTest:
    """Predicted and measured shares of scores, with everything frozen and in the real model (there not of tokens).

    The graph is that of the prompt; its targets may be others.

    Args:
        graph: The attribution graph.
        model: The replacement model that the graph was traced with.
        shares: What is predicted, one each.
        batch_size: How many runs share a pass; changes no result beyond rounding.

    Returns:
        Predicted and measured shares, and how well they agree.

    Raises:
        InputError: For a node, layer, head or position that does not exist, or a key that the query does not see.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
    last = graph.nodes.layout.target_start - 1
    for each in shares:
        if not 0 <= each.node <= last:
            raise InputError(f"node {each.node} cannot be taken out; features, errors and tokens are nodes 0 to {last}")
    none = torch.zeros(0, dtype=torch.int64)
    bench = Bench(model, graph, none, none, batch_size)
    reads = {_from_the_front(each, bench.n_pos): _reads(each, bench) for each in {each.target for each in shares}}
    frozen, live = HEAD_CONDITIONS

    def in_stream(target: AttentionTarget, resid_BPD: Tensor) -> Tensor:
        read = reads[target].to(resid_BPD.device, resid_BPD.dtype)
        return ((resid_BPD[1:] - resid_BPD[:1])[:, read.position] * read.vector).sum((1, 2)) * _whole(target)

    def in_scores(target: AttentionTarget, scores_BHPP: Tensor) -> Tensor:
        row_BP = unmasked(scores_BHPP[:, target.head, target.query], bench.parts)
        weight = _weights(target, row_BP[0])
        value = (row_BP.where(weight != 0, 0) * weight).sum(1)
        return value[1:] - value[:1]

    plain = [each._replace(target=_from_the_front(each.target, bench.n_pos)) for each in shares]
    measured = {
        frozen.name: _measure(bench, graph, plain, frozen, "hook_resid_pre", in_stream),
        live.name: _measure(bench, graph, plain, live, "attn.hook_scores", in_scores),
    }
    predicted = [each.predicted * _whole(each.target) for each in plain]
    return ScoreTest(_agreements(predicted, measured), _rows(plain, predicted, measured))


# what a target reads at a site (B + 1, ...), of each copy but the first: (B,) against that
Change = Callable[[AttentionTarget, Tensor], Tensor]
_HELD = {"key": "attn.hook_q", "query": "attn.hook_k"}  # what stays in the real model while one side is explained


def _measure(
    bench: Bench, graph: Graph, shares: Sequence[ScoreShare], condition: Condition, site: str, change: Change
) -> list[float | None]:
    """What each score loses without the node, under one condition; what several shares need is run once."""
    number: dict[tuple[int, Place | None], int] = {}
    rows: list[int | None] = []
    for node, target in ((each.node, each.target) for each in shares):
        if node >= graph.nodes.layout.token_start and condition.name not in WITH_TOKENS:
            rows.append(None)
            continue
        held = None if condition.freeze_attention or target.side == "both" else (_HELD[target.side], target.layer)
        rows.append(number.setdefault((node, held), len(number)))
    experiments, targets = list(number), list(dict.fromkeys(each.target for each in shares))
    found = {target: torch.zeros(len(experiments), dtype=torch.float64) for target in targets}

    def look(numbers: Sequence[int]) -> dict[str, Visit]:
        def read(layer: int, activation: Tensor) -> None:
            for target in targets:
                if target.layer == layer:
                    found[target][list(numbers)] = change(target, activation).double().cpu()

        return {site: read, **_holding([experiments[each][1] for each in numbers])}

    if experiments:
        bench.run([Sources.of_nodes(graph, torch.tensor([node])) for node, _ in experiments], condition, look)
    return [None if row is None else -float(found[each.target][row]) for each, row in zip(shares, rows, strict=True)]


def _holding(held: Sequence[Place | None]) -> dict[str, Visit]:
    """Visits by which queries, or keys, of a layer stay as in the first copy, in those of the others that say so."""

    def hold(site: str) -> Visit:
        def visit(layer: int, activation: Tensor) -> Tensor | None:
            copies = [copy for copy, place in enumerate(held, start=1) if place == (site, layer)]
            if not copies:
                return None
            kept = activation.clone()
            kept[copies] = activation[:1]
            return kept

        return visit

    return {site: hold(site) for site in {place[0] for place in held if place is not None}}


def _reads(target: AttentionTarget, bench: Bench) -> StreamReads:
    return resolve_attention(bench.network, target, [""] * bench.n_pos).reads


def _from_the_front(target: AttentionTarget, n_pos: int) -> AttentionTarget:
    versus = target.versus if target.versus is None or isinstance(target.versus, str) else target.versus % n_pos
    return target._replace(query=target.query % n_pos, key=target.key % n_pos, versus=versus)


def _whole(target: AttentionTarget) -> float:
    """What makes of a share what both sides carry together."""
    return 2.0 if target.side == "both" else 1.0


def _weights(target: AttentionTarget, clean_P: Tensor) -> Tensor:
    """(P,) weights of scores in what the target is about, given the clean ones."""
    weight = torch.zeros_like(clean_P)
    if isinstance(target.versus, str):
        others = clean_P.clone()
        others[target.key] = -torch.inf
        weight = -torch.softmax(others, dim=0)
    elif target.versus is not None:
        weight[target.versus] = -1
    weight[target.key] = 1
    return weight


def _agreements(predicted: list[float], measured: dict[str, list[float | None]]) -> dict[str, Agreement]:
    found = {}
    for name, column in measured.items():
        pairs = [(p, m) for p, m in zip(predicted, column, strict=True) if m is not None]
        if pairs:
            found[name] = agreement(*torch.tensor(pairs, dtype=torch.float64).T)
    return found


def _rows(shares: Sequence[ScoreShare], predicted: list[float], measured: dict[str, list[float | None]]) -> ScoreRows:
    targets = [each.target for each in shares]
    return ScoreRows(
        layer=[each.layer for each in targets],
        head=[each.head for each in targets],
        query=[each.query for each in targets],
        key=[each.key for each in targets],
        versus=[each.versus for each in targets],
        side=[each.side for each in targets],
        node=[each.node for each in shares],
        predicted=[rounded(each) for each in predicted],
        measured=rounded_columns(measured),
    )
