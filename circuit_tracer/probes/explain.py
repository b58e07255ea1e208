"""Why a probe fired: its score as the target of a graph, an exact account down to tokens, tested by taking nodes out.

    found = explain(model, probe, "My name is Ada")
    print("\\n".join(found.lines())); found.graph.to_html("why.html")

A probe on the stream reads a direction; one on features reads, at each token, the encoder rows of those that are active there,
times their weights. Which are active is taken as given, as everywhere in a graph (README.md).
Letters: P positions, D numbers read of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.stream_targets import DirectionSum, DirectionTarget
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.features.kept import keep_features
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.graph.nodes import KIND_NAMES, NodeKind
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.interventions.validation.groups import group_effects
from circuit_tracer.models.indices import from_the_front
from circuit_tracer.models.token_text import TokenTexts
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.explanation import Carrier, Explanation
from circuit_tracer.probes.probe import Probe
from circuit_tracer.probes.reading import Activations, Reads, Subject, columns, pooled, read_batch, scored, tokens_of

CLOSE = 1e-3  # of |score| and |what it is made of|: a graph's value that is further away explains something else
TOGETHER = "all of them together"


@typed
def explain(
    model: Traceable,
    probe: Probe,
    text: str | Example,
    *,
    position: int | None = None,
    top: int = 8,
    validate: bool = True,
    max_feature_nodes: int | None = 2000,
    labels: Mapping[tuple[int, int], str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Explanation:
    """Trace what the probe reads of a text.

    Args:
        model: The replacement model.
        probe: The probe.
        text: The text, or an example.
        position: Of the token; None: where the score is highest, or where it reads.
        top: Features and tokens that are named; the features are taken out of the model one by one and together
            (`validate`).
        validate: Take the named features out of the model.
        max_feature_nodes: Features that get a row of their own.
        labels: Of features, kept in the graph.
        seed: Of random groups.
        **options: Of `attribute`.

    Returns:
        What the score is made of, who carried it, and the graph.

    Raises:
        CompatibilityError: For a probe of another model or dictionary.
        InputError: For a position of a probe that reads the whole text, features of which none is active, or that are no
            linear reading of the stream.
    """
    if top < 1:
        raise InputError(f"top is {top}; name at least 1")
    probe.check(model.parts, model.transcoders)
    subject = Subject.of(model)
    found = read_batch(subject, [tokens_of(text, subject)], Reads.of(probe))[0]
    at = _position(probe, found, position)
    target = probe_target(probe, model, found, at)
    given = {"max_feature_nodes": max_feature_nodes, "zero_positions": _left_out(found), **options}
    graph = attribute(found.tokens.ids, model, attribution_targets=[target], **given)
    keep_features(graph, labels=labels)
    score = float(probe.score(_read_at(probe, found, at)))
    _require_the_same(probe, graph, score)
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights).cpu()
    carriers = _Carriers(graph, influence, TokenTexts(model.tokenizer))
    features, tokens = (carriers.strongest(kind, top) for kind in (NodeKind.FEATURE, NodeKind.TOKEN))
    groups = {each.node: [each.node] for each in features}
    if len(features) > 1:
        groups[TOGETHER] = [each.node for each in features]
    replacement = graph_scores(graph).replacement
    return Explanation(
        probe=probe,
        text=found.tokens.text,
        position=at,
        token=None if at is None else carriers.texts.alone(int(found.tokens.ids[at])),
        score=score,
        direct=carriers.direct_by_kind(),
        residual=float(graph.residual or 0.0),
        errors=1 - replacement,
        features=features,
        tokens=tokens,
        tests=group_effects(graph, model, groups, seed=seed) if validate and groups else [],
        graph=graph,
    )


def probe_target(probe: Probe, model: Traceable, found: Activations, position: int | None) -> DirectionSum:
    """The score as a target: its row, with its constants, sums to the score.

    Args:
        probe: The probe.
        model: The replacement model.
        found: Of `activations`.
        position: Of the token; None: what the probe's pool reads of the text as a whole.

    Returns:
        A target for `attribute(..., attribution_targets=[...])`.

    Raises:
        InputError: Where nothing is read.
    """
    share_PD = _shares(probe, found, position)
    weight_D, d_stream = probe.weight.to(share_PD), probe.d_stream
    directions: list[DirectionTarget] = []
    constant = probe.bias
    for at in share_PD.any(1).nonzero().flatten().tolist():
        if probe.place is not None and bool((stream_D := (share_PD[at] * weight_D)[:d_stream]).any()):
            directions.append(DirectionTarget(stream_D, *probe.place, at))
        for layer in dict.fromkeys(layer for layer, _ in probe.features):
            place = model.transcoders.feature_input_hook, layer
            vector_D, own = _features_read(probe, model, found, layer, at, share_PD[at, d_stream:])
            constant += own
            if bool(vector_D.any()):
                directions.append(DirectionTarget(vector_D, *place, at))
    if not directions:
        raise InputError(
            f"none of the features of probe {probe.name!r} is active here: its score is its bias, {probe.bias:.4g}, with "
            "nothing to explain"
        )
    return DirectionSum(tuple(directions), constant, label=f"probe {probe.name}")


def _shares(probe: Probe, found: Activations, position: int | None) -> Tensor:
    """(P, D) how much of each number is read at each token: what is scored is the sum over tokens of share times activation."""
    values_PD = columns(probe, found)
    counted = torch.from_numpy(found.tokens.counted)
    share_PD = torch.zeros(values_PD.shape, dtype=torch.float64)
    if position is not None:
        share_PD[position] = 1
    elif probe.pool == "mean":
        share_PD[counted] = 1 / int(counted.sum())
    else:  # the largest of each, the first of equals
        highest_D = values_PD.where(counted[:, None], -torch.inf).argmax(0)
        share_PD[highest_D, torch.arange(len(highest_D))] = 1
    return share_PD


def _features_read(
    probe: Probe, model: Traceable, found: Activations, layer: int, position: int, share_n: Tensor
) -> tuple[Tensor, float]:
    """(D,) sum of weight times read vector over the features of a layer that are active at a token; that of constants."""
    at_n, index_n, _ = found.features[layer]
    active = set(index_n[at_n == position].tolist())
    weight_n = probe.weight[probe.d_stream :].to(share_n) * share_n
    wanted = {
        feature: float(weight)
        for (where, feature), weight in zip(probe.features, weight_n.tolist(), strict=True)
        if where == layer and feature in active and weight
    }
    index_n = torch.tensor([*wanted], dtype=torch.int64)
    rows_nD, constant_n = model.transcoders.reads(
        layer, index_n, torch.full_like(index_n, position), lambda: found.inputs[layer]
    )
    each_n = torch.tensor([*wanted.values()], dtype=torch.float64)
    return each_n @ rows_nD.cpu().double(), float(each_n @ constant_n.cpu().double())


def _position(probe: Probe, found: Activations, asked: int | None) -> int | None:
    text = found.tokens
    if probe.pool in ("mean", "max"):
        if asked is not None:
            raise InputError(
                f"probe {probe.name!r} reads the {probe.pool} of all tokens, not that of one; leave the position out"
            )
        return None
    if asked is not None:
        at = from_the_front(asked, len(text.ids))
        if not text.counted[at]:
            raise InputError(
                f"position {asked} is one that is not read (the special token in front, or a chat's prefix)"
            )
        return at
    if probe.pool == "last":
        return int(text.counted.nonzero()[0][-1])
    return int(scored(probe, found).tokens.nan_to_num(-torch.inf).argmax())


def _read_at(probe: Probe, found: Activations, position: int | None) -> Tensor:
    values_PD = columns(probe, found)
    return pooled(values_PD, found.tokens.counted, probe.pool)[0] if position is None else values_PD[position]


def _left_out(found: Activations) -> list[int]:
    return [at for at, counted in enumerate(found.tokens.counted.tolist()) if not counted]


def _require_the_same(probe: Probe, graph: Graph, score: float) -> None:
    """The graph's target must be the score: not so where a feature's activation is more than its pre-activation."""
    assert graph.balance is not None
    target = graph.nodes.layout.target_start
    value = float(graph.balance.pre_activation[target])
    mass = float(graph.edges.row_sum(graph.edges.weight.abs())[target]) + abs(probe.bias)
    if abs(value - score) > CLOSE * (abs(score) + mass):
        raise InputError(
            f"the score of probe {probe.name!r} is {score:.6g}, and what it reads linearly is {value:.6g}: activations of this "
            "dictionary's features are more than pre-activations, and cannot be read exactly. Use a probe on the stream"
        )


class _Carriers:
    """The nodes of a graph with one target."""

    def __init__(self, graph: Graph, influence: Tensor, texts: TokenTexts) -> None:
        self.graph, self.influence, self.texts, nodes = graph, influence, texts, graph.nodes
        self.kind, self.target = nodes.kind.cpu(), nodes.layout.target_start
        first, last = graph.edges.row_ptr[self.target : self.target + 2].tolist()
        self.direct = torch.zeros(graph.n_nodes, dtype=torch.float64)
        self.direct[graph.edges.source[first:last].cpu()] = graph.edges.weight[first:last].cpu().double()

    def strongest(self, kind: NodeKind, top: int) -> list[Carrier]:
        """Those of a kind with the most influence, that have some."""
        chosen = torch.nonzero((self.kind == kind) & (self.influence > 0)).flatten()
        order = chosen[torch.argsort(self.influence[chosen], descending=True, stable=True)[:top]]
        total = float(self.influence[self.kind == kind].sum()) if kind is NodeKind.TOKEN else 1.0
        ids = self.graph.nodes.ids(order) if len(order) else []
        return [
            Carrier(name, self._what(node), float(self.direct[node]), float(self.influence[node]) / total)
            for name, node in zip(ids, order.tolist(), strict=True)
        ]

    def direct_by_kind(self) -> dict[str, float]:
        """What the row sums to, by kind of source, and what is no edge."""
        assert self.graph.balance is not None
        kinds = {
            KIND_NAMES[kind]: float(self.direct[self.kind == kind].sum())
            for kind in NodeKind
            if kind is not NodeKind.TARGET
        }
        balance = self.graph.balance
        return {
            **kinds,
            "unselected": float(balance.unselected[self.target]),
            "constants": float(balance.bias[self.target]),
        }

    def _what(self, node: int) -> str:
        nodes = self.graph.nodes
        position = int(nodes.position[node])
        token = f"{self.graph.token_texts[position]!r}@{position}"
        if int(self.kind[node]) == NodeKind.TOKEN:
            return token
        place = int(nodes.layer[node]), int(nodes.feature[node])
        return f"{self.graph.labels.get(place) or f'feature {place[0]}/{place[1]}'} at {token}"
