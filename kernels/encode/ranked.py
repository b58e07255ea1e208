"""The largest pre-activations of each token, as `scan` finds those above a cut (README.md, "Scan").

Letters: B tokens, D width, F features, G groups of features, n candidates, M most candidates of a token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, Coarse
from circuit_tracer.kernels.encode.exact import Cuts, Rows, lost, places
from circuit_tracer.kernels.encode.scan import (
    BLOCK,
    MAX_ACTIVE,
    Entries,
    by_token,
    divided,
    lifted,
    positive,
    workers_for,
)
from circuit_tracer.workers import in_order

GROUPS = 8  # times k, at least, where there are as many features
LARGEST_GROUP = 16


def largest(rows: Rows, coarse: Coarse | None, k: int) -> tuple[Entries, Tensor] | None:
    """Candidates of which no other feature is among the k largest of a token, and the k-th largest value of each token (B,).

    Whether a value is above, at, or below that, or zero, is what is true of exact ones rounded to float32. None where k is not
    small, or numbers are so large that there is no bound.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    norms = rows.norm_B.max(), rows.norm_F.max()
    sizes = torch.stack([*norms, norms[0] * norms[1], rows.bias_F.float().abs().max()])
    if k > MAX_ACTIVE * n_features or not bool((sizes < LARGEST).all()):
        return None
    zero = Cuts.of(torch.zeros_like(rows.norm_F), rows.bias_F, rows.norm_F, rows.x_BD.shape[1])
    step = max(1, BLOCK // n_features)

    def of_block(start: int) -> tuple[Entries, Tensor]:
        part = replace(rows, x_BD=rows.x_BD[start : start + step])
        if coarse is None:
            row, feature, value = _in_float32(part, k)
            value, _ = part.settled(row, feature, zero, value)
        else:
            row, feature = _coarsely(part, coarse, k)
            value, _ = part.settled(row, feature, zero)
            row, feature, value = by_token(row, feature, value)
        value, last_B = _settled(part, zero, row, feature, value, k)
        return (row + start, feature, value), last_B

    blocks = list(in_order(of_block, starts := range(0, n_rows, step), workers_for(starts)))
    row, feature, value = (torch.cat(column) for column in zip(*(entries for entries, _ in blocks), strict=True))
    return (row, feature, value), torch.cat([last_B for _, last_B in blocks])


def _in_float32(rows: Rows, k: int) -> Entries:
    """What may be among the k largest, by the float32 product."""
    pre_BF = torch.addmm(rows.bias_F.float(), rows.x_BD, rows.weight_FD.float().T)
    loss_B = lost(rows.x_BD.shape[1]) * (rows.norm_B * rows.norm_F.max() + rows.bias_F.float().abs().max())
    level_B = pre_BF.topk(k, dim=1, sorted=False).values.amin(1) - 2 * loss_B
    row, feature = (pre_BF >= level_B[:, None]).nonzero(as_tuple=True)
    return row, feature, pre_BF[row, feature]


def _coarsely(rows: Rows, coarse: Coarse, k: int) -> tuple[Tensor, Tensor]:
    """(row, feature) of the same, sorted by feature, by a product that is nowhere below the true one.

    Groups of features have k different largest ones: so many pre-activations are not far below the k-th largest of these.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    tokens_BC = coarse.tokens(rows.x_BD, rows.norm_B)
    bias_F = lifted(-rows.bias_F.double(), coarse.accumulated)
    above_FB = torch.addmm(bias_F[:, None], coarse.weight_FC, tokens_BC.T)
    size = min(max(1, n_features // (GROUPS * k)), LARGEST_GROUP)
    whole = n_features // size * size
    group_GB = above_FB[:whole].view(-1, size, n_rows).amax(1)
    kth_B = group_GB.T.topk(k, dim=1, sorted=False).values.amin(1).float()
    # the margin, which was added where the truth may be as far below; roundings of the product to bfloat16; the bias' own
    lost_B = coarse.margin(tokens_BC) + 2**-6 * (kth_B.abs() + bias_F.float().abs().max())
    level_B = (kth_B - lost_B).bfloat16()
    level_B = torch.nextafter(level_B, level_B.new_tensor(-torch.inf))
    return divided(positive(above_FB.sub_(level_B)), n_rows)


def _settled(rows: Rows, cuts: Cuts, row: Tensor, feature: Tensor, value: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values of which those that may be the k-th largest are exact ones, rounded, and these k-th largest (B,).

    The k-th largest of all lower bounds and of all upper bounds enclose it: what lies above or below both is decided.
    """
    _, norm_n, besides_n = cuts.of_entries(feature)
    loss = norm_n * rows.losing_B[row] + besides_n  # NaN where there is none
    bound = loss.nan_to_num(0)
    low, high = (_kth(row, some, len(rows.x_BD), k)[row] for some in (value - bound, value + bound))
    near = places((value - loss <= high) & (value + loss >= low))
    value[near] = rows.rounded(row[near], feature[near])
    return value, _kth(row, value, len(rows.x_BD), k)


def _kth(row: Tensor, value: Tensor, n_rows: int, k: int) -> Tensor:
    """(B,): the k-th largest of each row's values, sorted by row, of which there are as many."""
    counts = torch.bincount(row, minlength=n_rows)
    slot = torch.arange(row.shape[0]) - (counts.cumsum(0) - counts)[row]
    value_BM = value.new_full((n_rows, int(counts.max())), -torch.inf)
    value_BM[row, slot] = value
    return value_BM.topk(k, dim=1, sorted=False).values.amin(1)
