"""The change of a target, accounted for exactly, node by node (many/README.md).

Letters: U nodes of either graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.many.comparison.alignment import Aligned, Alignment
from circuit_tracer.many.comparison.schema import Share

NODES: dict[Literal["feature", "error", "token"], NodeKind] = {
    "feature": NodeKind.FEATURE,
    "error": NodeKind.ERROR,
    "token": NodeKind.TOKEN,
}
BALANCE: tuple[Literal["bias", "unselected"], ...] = ("bias", "unselected")


@dataclass(frozen=True)
class Account:
    """What each node gives the target in both graphs, and what changes; all float64 (U,).

    activation, weight: the two parts of `difference` of features in both graphs, 0 elsewhere. carried: what a feature's change
    of activation gives along all paths.
    """

    edge_a: Tensor
    edge_b: Tensor
    activation: Tensor
    weight: Tensor
    carried: Tensor

    @property
    def difference(self) -> Tensor:
        return self.edge_b - self.edge_a


def account_of(aligned: Alignment, target: int) -> Account:
    """The account of one node of both graphs, by its number among those of either."""
    a, b = aligned.a, aligned.b
    edge_a, edge_b = a.row(target), b.row(target)
    split = aligned.is_kind(NodeKind.FEATURE) & (a.activation != 0) & (b.activation != 0)
    weight_a, weight_b = _over(edge_a, a.activation), _over(edge_b, b.activation)
    by_activation = (weight_a + weight_b) / 2 * (b.activation - a.activation) * split
    by_weight = (a.activation + b.activation) / 2 * (weight_b - weight_a) * split
    carried = total_weights(aligned, target) * (b.activation - a.activation)
    return Account(edge_a, edge_b, by_activation, by_weight, carried)


def total_weights(aligned: Alignment, target: int) -> Tensor:
    """(U,) what one unit of a feature's activation gives the target along all paths, with weights midway between the graphs.

    Of an edge that only one graph can have, because the other lacks one of its ends, that graph's weight. One pass from the top
    layer down: features write above themselves.
    """
    to, source, weight = _midway(aligned)
    layer, total = aligned.layer, torch.zeros(len(aligned), dtype=torch.float64)
    features = aligned.is_kind(NodeKind.FEATURE)
    passes_on = torch.zeros_like(total)
    passes_on[target] = 1.0
    for depth in layer[features].unique().flip(0).tolist():
        here = features & (layer == depth)
        edges = here[source]
        total.index_add_(0, source[edges], weight[edges] * passes_on[to[edges]])
        passes_on = torch.where(here & (torch.arange(len(total)) != target), total, passes_on)
    return total


def _midway(aligned: Alignment) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, sources and weights a unit of activation of all edges from features in either graph."""
    features, common = aligned.is_kind(NodeKind.FEATURE), aligned.common
    found = []
    for side in (aligned.a, aligned.b):
        to, source, weight = side.edges.target, side.edges.source, side.edges.weight
        kept = features[source] & (side.activation[source] != 0)
        to, source, weight = to[kept], source[kept], weight[kept] / side.activation[source[kept]]
        found.append((to, source, torch.where(common[to] & common[source], weight / 2, weight)))
    to, source, weight = (torch.cat(columns) for columns in zip(*found, strict=True))
    return to, source, weight


def shares_of(aligned: Alignment, target: int, account: Account) -> list[Share]:
    """The account, summed by kind of node; then what is no node."""
    a, b = aligned.a, aligned.b
    found = []
    for name, kind in NODES.items():
        here = aligned.is_kind(kind)
        difference, is_feature = account.difference[here], kind is NodeKind.FEATURE
        common = aligned.common[here]
        found.append(
            Share(
                kind=name,
                count=int(here.sum()),
                a=float(account.edge_a[here].sum()),
                b=float(account.edge_b[here].sum()),
                difference=float(difference.sum()),
                mass=float(difference.abs().sum()),
                activation=float(account.activation[here].sum()),
                weight=float(account.weight[here].sum()),
                appeared=float(difference[~common & b.present[here]].sum()) if is_feature else 0.0,
                disappeared=float(difference[~common & a.present[here]].sum()) if is_feature else 0.0,
            )
        )
    for column in BALANCE:
        before, after = (side.balance(target, column) for side in (a, b))
        found.append(Share(column, 0, before, after, after - before, abs(after - before)))
    return found


def residual_of(side: Aligned, target: int, shares: float) -> float:
    """By how much a graph's shares miss the target's value, as a share of the row's terms."""
    value = side.balance(target, "pre_activation")
    mass = float(side.row(target).abs().sum())
    scale = mass + side.balance(target, "unselected_mass") + abs(side.balance(target, "bias")) + abs(value)
    return abs(shares - value) / scale if scale else 0.0


def _over(edges: Tensor, activation: Tensor) -> Tensor:
    """Edges (U,) a unit of activation; 0 where there is none."""
    return torch.where(activation != 0, edges / torch.where(activation != 0, activation, 1.0), 0.0)
