"""The nodes and edges of a comparison that are listed and drawn. Letters: U nodes of either graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from circuit_tracer.graph.nodes import ATTENTION_ERROR, KIND_NAMES, NodeKind
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.words import feature_name, is_of_neurons, left_over
from circuit_tracer.many.comparison.account import Account
from circuit_tracer.many.comparison.alignment import Aligned, Alignment
from circuit_tracer.many.comparison.schema import In, Link, Node

_WITHIN: dict[tuple[bool, bool], In] = {(True, True): "both", (True, False): "a", (False, True): "b"}


def listed_nodes(aligned: Alignment, target: int, account: Account, pruned: Sequence[PruneResult], most: int) -> Tensor:
    """Ascending numbers of the listed nodes: what either pruned graph keeps, and the `most` that differ most, by their edges
    onto the target and along all paths.
    """
    kept = torch.zeros(len(aligned), dtype=torch.bool)
    kept[target] = True
    for side, result in zip((aligned.a, aligned.b), pruned, strict=True):
        kept[side.place[result.node_mask.cpu()]] = True
    for values in (account.difference, account.carried):
        strongest = values.abs().topk(min(most, len(values)))
        kept[strongest.indices[strongest.values > 0]] = True
    return torch.nonzero(kept).flatten()


def nodes_of(aligned: Alignment, account: Account, listed: Tensor, pooled: bool) -> list[Node]:
    """Listed nodes, each with its part of the account."""
    a, b = aligned.a, aligned.b
    columns = {
        "kind": aligned.kind, "layer": aligned.layer, "feature": aligned.feature, "column": aligned.column,
        "in_a": a.present, "in_b": b.present, "activation_a": a.activation, "activation_b": b.activation,
        "influence_a": a.influence, "influence_b": b.influence, "edge_a": account.edge_a, "edge_b": account.edge_b,
        "difference": account.difference, "activation": account.activation, "weight": account.weight,
        "carried": account.carried,
    }  # fmt: skip
    rows = zip(*(column[listed].tolist() for column in columns.values()), strict=True)
    ids = zip(*(_ids(side, listed) for side in (a, b)), strict=True)
    label = _labels(aligned)
    found = []
    for values, (id_a, id_b) in zip(rows, ids, strict=True):
        row = dict(zip(columns, values, strict=True))
        kind, layer, feature, column = (row.pop(name) for name in ("kind", "layer", "feature", "column"))
        within = _WITHIN[row.pop("in_a"), row.pop("in_b")]
        known = id_a if id_a is not None else id_b
        assert known is not None
        if kind != NodeKind.FEATURE:
            row |= dict.fromkeys(("activation_a", "activation_b", "activation", "weight", "carried"))
        if within != "both":
            row |= dict.fromkeys(("activation", "weight"))
            row["activation_b" if within == "a" else "activation_a"] = None
        if pooled:
            row["carried"] = None
        found.append(
            Node(
                id=f"{known.rsplit('_', 1)[0]}_{column}",
                kind=KIND_NAMES[NodeKind(kind)],  # type: ignore[arg-type]
                layer=layer,
                column=column,
                feature=feature,
                label=label(kind, layer, feature, known),
                within=within,
                a=id_a,
                b=id_b,
                **row,
            )
        )
    return found


def links_of(aligned: Alignment, listed: Tensor, target: int, pruned: Sequence[PruneResult]) -> list[Link]:
    """Edges among listed nodes: those that either pruned graph keeps, and all onto the target; strongest first."""
    row_of = torch.full((len(aligned),), -1)
    row_of[listed] = torch.arange(len(listed))
    count = len(listed)
    wanted, weights = [], []
    for side, result in zip((aligned.a, aligned.b), pruned, strict=True):
        to, source = side.edges.target, side.edges.source
        inside = (row_of[to] >= 0) & (row_of[source] >= 0)
        key = row_of[to[inside]] * count + row_of[source[inside]]
        weights.append((key, side.edges.weight[inside]))
        wanted.append(key[to[inside] == target])
        kept = result.pruned_edges
        ends = [row_of[side.place[end.cpu()]] for end in (kept.target, kept.source)]
        wanted.append((ends[0] * count + ends[1])[(ends[0] >= 0) & (ends[1] >= 0)])
    keys = torch.cat(wanted).unique()
    both = []
    for key, weight in weights:
        found, place = torch.zeros(len(keys), dtype=torch.float64), torch.searchsorted(keys, key)
        hit = (place < len(keys)) & (keys[place.clamp_max(max(len(keys) - 1, 0))] == key) if len(keys) else key < 0
        found[place[hit]] = weight[hit]
        both.append(found)
    order = torch.maximum(both[0].abs(), both[1].abs()).argsort(descending=True, stable=True)
    columns = (keys % max(count, 1), keys // max(count, 1), *both)
    return [Link(*values) for values in zip(*(column[order].tolist() for column in columns), strict=True)]


def _ids(side: Aligned, listed: Tensor) -> list[str | None]:
    """Ids in the graph, None for nodes that it lacks."""
    nodes = side.node[listed]
    known = iter(side.graph.nodes.ids(nodes[nodes >= 0].to(side.graph.device)))
    return [next(known) if node >= 0 else None for node in nodes.tolist()]


def _labels(aligned: Alignment) -> Callable[[int, int, int, str], str | None]:
    """What nodes are called: features as the graphs' labels have it, tokens and targets by their texts."""
    texts: dict[str, str] = {}
    features: dict[tuple[int, int], str] = {}
    first = aligned.a.graph
    told_apart = is_of_neurons(first) or len(first.parts) > 1  # then a number alone says little
    for graph in (aligned.b.graph, aligned.a.graph):
        layout, ids = graph.nodes.layout, graph.nodes.ids()
        texts |= dict(zip(ids[layout.tokens], graph.token_texts, strict=True))
        texts |= dict(zip(ids[layout.targets], graph.targets.label, strict=True))
        features |= graph.labels

    def called(kind: int, layer: int, feature: int, name: str) -> str | None:
        if kind == NodeKind.FEATURE:
            return features.get((layer, feature)) or (feature_name(first, layer, feature) if told_apart else None)
        if kind == NodeKind.ERROR and told_apart:
            return "error of attention" if feature == ATTENTION_ERROR else left_over(first)
        return texts.get(name)

    return called
