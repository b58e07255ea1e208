"""How alike the influences of two graphs' nodes are. Letters: U nodes of either, n listed ones."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.many.comparison.schema import Similarity

PERSISTENCE = 0.9  # of rank-biased overlap: the first ten hold 86 % of its weight


def similarity(a_U: Tensor, b_U: Tensor) -> Similarity:
    """Of two influences (U,), none negative. 1 where both are all zero: nothing differs; 0 where one is."""
    if torch.equal(a_U, b_U):
        return Similarity(1.0, 1.0, 1.0)
    return Similarity(weighted_jaccard(a_U, b_U), _cosine(a_U, b_U), rank_biased_overlap(a_U, b_U))


def weighted_jaccard(a_U: Tensor, b_U: Tensor) -> float:
    """Σ min / Σ max."""
    most = float(torch.maximum(a_U, b_U).sum())
    return float(torch.minimum(a_U, b_U).sum()) / most if most else 1.0


def _cosine(a_U: Tensor, b_U: Tensor) -> float:
    scale = float(a_U.norm() * b_U.norm())
    return float(a_U @ b_U) / scale if scale else 0.0


def rank_biased_overlap(a_U: Tensor, b_U: Tensor, p: float = PERSISTENCE) -> float:
    """Webber, Moffat and Zobel (2010), eq. 32 (extrapolated): agreement of the nodes above zero by rank, depth d weighted p^d.

    With X_d the number of nodes among the first d of both lists, of lengths s <= l:
    (1-p)/p (Σ_{d<=l} X_d/d p^d + Σ_{s<d<=l} X_s (d-s)/(s d) p^d) + ((X_l - X_s)/l + X_s/s) p^l.
    """
    short, long = sorted((int((a_U > 0).sum()), int((b_U > 0).sum())))
    if short == 0:
        return 1.0 if long == 0 else 0.0
    deeper = torch.maximum(_rank(a_U), _rank(b_U))  # the depth from which on a node is in both
    found_n = torch.bincount(deeper[(a_U > 0) & (b_U > 0)], minlength=long + 1)[1 : long + 1].cumsum(0).double()
    depth_n = torch.arange(1, long + 1, dtype=torch.float64)
    at_short, at_long = float(found_n[short - 1]), float(found_n[-1])
    beyond_n = (at_short * (depth_n - short) / (short * depth_n)).clamp_min(0)
    series = float(((found_n / depth_n + beyond_n) * p**depth_n).sum())
    return (1 - p) / p * series + ((at_long - at_short) / long + at_short / short) * p**long


def _rank(values_U: Tensor) -> Tensor:
    """(U,) int64: 1 for the largest; of equal ones, the first."""
    rank = torch.empty(len(values_U), dtype=torch.int64)
    rank[values_U.argsort(descending=True, stable=True)] = torch.arange(1, len(values_U) + 1)
    return rank
