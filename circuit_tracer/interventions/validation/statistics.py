"""How well predictions agree with measurements.

Letters: n pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.graph.validation import Agreement


def agreement(predicted: Tensor, measured: Tensor) -> Agreement:
    """Of two columns (n,)."""
    predicted, measured = predicted.double(), measured.double()
    square = float(predicted.square().sum())
    largest = float(predicted.abs().max()) if len(predicted) else 0.0
    return Agreement(
        count=len(predicted),
        spearman=spearman(predicted, measured),
        slope=float((predicted * measured).sum()) / square if square else None,
        worst=float((measured - predicted).abs().max()) / largest if largest else None,
    )


def spearman(left: Tensor, right: Tensor) -> float | None:
    """Rank correlation of two columns (n,), ties at their mean rank; None for fewer than 3 pairs or a constant column."""
    if len(left) < 3:
        return None
    ranks = torch.stack([_ranks(left.double()), _ranks(right.double())])
    ranks = ranks - ranks.mean(1, keepdim=True)
    size = ranks.norm(dim=1).prod()
    return float((ranks[0] * ranks[1]).sum() / size) if size > 0 else None


def _ranks(values: Tensor) -> Tensor:
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    mean_rank: Tensor = torch.cumsum(count, 0).double() - (count.double() - 1) / 2
    return mean_rank[place]


def mean(values: Tensor, weights: Tensor | None = None) -> float | None:
    """Mean of a column (n,), weighted if weights (n,) are given; None for an empty one or no weight."""
    weights = torch.ones_like(values) if weights is None else weights.to(values)
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total > 0 else None
