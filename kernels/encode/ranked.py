"""The largest pre-activations of each token, as `scan` finds those above a cut (README.md, "Scan").

Letters: B tokens, D width, F features, G groups of features, n candidates, M most candidates of a token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, Coarse
from circuit_tracer.kernels.encode.exact import Rows
from circuit_tracer.kernels.encode.scan import BLOCK, MAX_ACTIVE, lifted, positive
from circuit_tracer.kernels.sparse_activations import SparseActivations

GROUPS = 8  # times k, at least, where there are as many features
LARGEST_GROUP = 16


def largest(rows: Rows, coarse: Coarse | None, k: int) -> tuple[SparseActivations, Tensor] | None:
    """Candidates of which no other feature is among the k largest of a token, and the k-th largest value of each token (B, 1).

    Whether a value is above, at, or below that, or zero, is what is true of exact ones rounded to float32. None where k is not
    small, or numbers are so large that there is no bound.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    sizes = torch.stack([rows.norm_B.max() * rows.norm_F.max(), rows.norm_B.max(), rows.bias_F.float().abs().max()])
    if k > MAX_ACTIVE * n_features or not bool((sizes < LARGEST).all()):
        return None
    found, lasts = [], []
    for start in range(0, n_rows, step := max(1, BLOCK // n_features)):
        part = replace(rows, x_BD=rows.x_BD[start : start + step])
        row, feature = _in_float32(part, k) if coarse is None else _coarsely(part, coarse, k)
        value = part.settled(row, feature, torch.zeros_like(row, dtype=torch.float32))
        value, last_B1 = _settled(part, row, feature, value, k)
        found.append((row + start, feature, value))
        lasts.append(last_B1)
    row, feature, value = (torch.cat(column) for column in zip(*found, strict=True))
    return SparseActivations.from_entries(row, feature, value, n_rows, n_features), torch.cat(lasts)


def _in_float32(rows: Rows, k: int) -> tuple[Tensor, Tensor]:
    """(row, feature) of what may be among the k largest, by the float32 product."""
    pre_BF = torch.addmm(rows.bias_F.float(), rows.x_BD, rows.weight_FD.float().T)
    loss_B = rows.lost * (rows.norm_B * rows.norm_F.max() + rows.bias_F.float().abs().max())
    level_B1 = pre_BF.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True) - 2 * loss_B[:, None]
    row, feature = (pre_BF >= level_B1).nonzero(as_tuple=True)
    return row, feature


def _coarsely(rows: Rows, coarse: Coarse, k: int) -> tuple[Tensor, Tensor]:
    """The same by a product that is nowhere below the true one.

    Groups of features have k different largest ones: so many pre-activations are not far below the k-th largest of these.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    tokens_BC = coarse.tokens(rows.x_BD, rows.norm_B)
    assert tokens_BC is not None, "the caller has seen that norms are small"
    bias_F = lifted(-rows.bias_F.double(), coarse.accumulated)
    above_FB = torch.addmm(bias_F[:, None], coarse.weight_FC, tokens_BC.T)
    size = min(max(1, n_features // (GROUPS * k)), LARGEST_GROUP)
    whole = n_features // size * size
    group_GB = above_FB[:whole].view(-1, size, above_FB.shape[1]).amax(1)
    kth_B = group_GB.T.topk(k, dim=1, sorted=False).values.amin(1).float()
    # the margin, which was added where the truth may be as far below; roundings of the product to bfloat16; the bias' own
    lost_B = 2 * coarse.margin(tokens_BC) + 2**-6 * (kth_B.abs() + bias_F.float().abs().max())
    level_B = (kth_B - lost_B).bfloat16()
    level_B = torch.nextafter(level_B, level_B.new_tensor(-torch.inf))
    feature, row = positive(above_FB.sub_(level_B), n_rows)
    order = (row * n_features + feature).argsort()
    return row[order], feature[order]


def _settled(rows: Rows, row: Tensor, feature: Tensor, value: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values of which those that may be the k-th largest are exact ones, rounded, and these k-th largest (B, 1).

    The k-th largest of all lower bounds and of all upper bounds enclose it: what lies above or below both is decided.
    """
    loss = rows.loss(row, feature).clamp_min_(0)
    low, high = (_kth(row, bound, len(rows.x_BD), k)[row, 0] for bound in (value - loss, value + loss))
    near = ((value - loss <= high) & (value + loss >= low) & (loss > 0)).nonzero()[:, 0]
    value[near] = rows.rounded(row[near], feature[near])
    return value, _kth(row, value, len(rows.x_BD), k)


def _kth(row: Tensor, value: Tensor, n_rows: int, k: int) -> Tensor:
    """(B, 1): the k-th largest of each row's values, sorted by row, of which there are as many."""
    counts = torch.bincount(row, minlength=n_rows)
    slot = torch.arange(row.shape[0]) - (counts.cumsum(0) - counts)[row]
    value_BM = value.new_full((n_rows, int(counts.max())), -torch.inf)
    value_BM[row, slot] = value
    return value_BM.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
