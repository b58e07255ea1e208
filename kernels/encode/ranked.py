"""The largest pre-activations of each token, as `scan` finds those above a cut (README.md, "Scan").

Letters: B tokens, D width, F features, G groups of features, n candidates, M most candidates of a token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, Coarse
from circuit_tracer.kernels.encode.exact import Cuts, Rows, lost, places
from circuit_tracer.kernels.encode.product import Entries
from circuit_tracer.kernels.encode.scan import BLOCK, divided, joined, lifted, token_order, workers_for
from circuit_tracer.kernels.sparse_activations import pointers
from circuit_tracer.workers import in_order

GROUPS = 8  # times k, at least, where there are as many features
LARGEST_GROUP = 16
MAX_KEPT = 0.05  # of all features, for which a search for the k largest is faster than the product


def largest(rows: Rows, coarse: Coarse | None, k: int, ties: bool = False) -> Entries | None:
    """The k largest pre-activations of each token: of equal ones the lowest features, or with ties all that equal the last.

    What is decided is what is true of exact values, rounded to float32. None where k is not small, or numbers are so large that
    there is no bound.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    sizes = torch.stack([rows.norm_B.max(), rows.norm_F.max(), rows.bias_F.float().abs().max()])
    if k > MAX_KEPT * n_features or not bool((sizes < LARGEST).all() & (sizes[0] * sizes[1] < LARGEST)):
        return None
    zero = Cuts.of(torch.zeros_like(rows.norm_F), rows.bias_F, rows.norm_F, rows.x_BD.shape[1])
    lifted_F = None if coarse is None else lifted(-rows.bias_F.double(), coarse.accumulated)
    step = max(1, BLOCK // n_features)

    def of_block(start: int) -> Entries:
        part = rows.block(slice(start, start + step))
        if coarse is None or lifted_F is None:
            row, feature, value = _in_float32(part, k)
        else:
            row, feature = _coarsely(part, coarse, lifted_F, k)
            value = part.pre_activations(row, feature)
            order = token_order(row, len(part.x_BD))
            row, feature, value = (column.index_select(0, order) for column in (row, feature, value))
        kept = _chosen(part, zero, row, feature, value, k, ties)
        return row.index_select(0, kept).add_(start), feature.index_select(0, kept), value.index_select(0, kept)

    return joined(in_order(of_block, starts := range(0, n_rows, step), workers_for(starts)))


def _in_float32(rows: Rows, k: int) -> Entries:
    """What may be among the k largest, by the float32 product; sorted by token."""
    pre_BF = torch.addmm(rows.bias_F.float(), rows.x_BD, rows.weight_FD.float().T)
    loss_B = lost(rows.x_BD.shape[1]) * (rows.norm_B * rows.norm_F.max() + rows.bias_F.float().abs().max())
    level_B = _kth(pre_BF, k) - 2 * loss_B
    place = places(pre_BF >= level_B[:, None])
    feature, row = divided(place.numpy(), pre_BF.shape[1])
    return row, feature, pre_BF.flatten().index_select(0, place)


def _coarsely(rows: Rows, coarse: Coarse, lifted_F: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(row, feature) of the same, sorted by feature, by a product that is nowhere below the true one.

    Groups of features have k different largest ones: so many pre-activations are not far below the k-th largest of these.
    lifted_F: biases, `lifted`.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    tokens_BC = coarse.tokens(rows.x_BD, rows.norm_B)
    above_FB = torch.addmm(lifted_F[:, None], coarse.weight_FC, tokens_BC.T)
    size = min(max(1, n_features // (GROUPS * k)), LARGEST_GROUP)
    whole = n_features // size * size
    group_GB = above_FB[:whole].view(-1, size, n_rows).amax(1)
    kth_B = _kth(group_GB.T.float(), k)
    # the margin, which was added where the truth may be as far below; roundings of the product to bfloat16; the bias' own
    lost_B = coarse.margin(tokens_BC) + 2**-6 * (kth_B.abs() + lifted_F.float().abs().max())
    level_B = (kth_B - lost_B).bfloat16()
    level_B = torch.nextafter(level_B, level_B.new_tensor(-torch.inf))
    reached = _ordered(above_FB) >= _ordered(level_B) - 1  # a zero may have a minus sign
    return divided(np.flatnonzero(reached), n_rows)


def _ordered(numbers: Tensor) -> np.ndarray:
    """16-bit integers that compare as these bfloat16 numbers do; -0 comes before 0."""
    bits: np.ndarray = numbers.view(torch.int16).numpy()
    return bits ^ ((bits >> 15) & 0x7FFF)


def _chosen(
    rows: Rows, cuts: Cuts, row: Tensor, feature: Tensor, value: Tensor, k: int, ties: bool
) -> Tensor:
    """Which of the candidates are the k largest, sorted by token; values that decide become exact ones, rounded.

    The k-th largest of all lower bounds and of all upper bounds enclose the k-th largest: what lies between them is open, unless
    it is alone.
    """
    ptr = pointers(row, len(rows.x_BD))
    place_BM = _padded(ptr)
    _, norm_n, besides_n = cuts.of_entries(feature)
    loss = norm_n.mul_(rows.losing_B.index_select(0, row)).nan_to_num_(0).add_(besides_n)
    low, high = value - loss, value + loss
    least, most = (_kth_of(bound, place_BM, k).index_select(0, row) for bound in (low, high))
    near = places((low <= most) & (high >= least))
    near_row = row.index_select(0, near)
    near = near.index_select(0, places(torch.bincount(near_row, minlength=len(ptr))[near_row] > 1))
    value[near] = rows.rounded(row[near], feature[near])
    last_n = _kth_of(value, place_BM, k).index_select(0, row)
    kept = places(value >= last_n)
    if ties or kept.shape[0] == k * len(rows.x_BD):
        return kept
    higher, equal = value > last_n, value == last_n
    more = torch.bincount(row[higher], minlength=len(rows.x_BD))
    so_far = torch.cat([equal.new_zeros(1, dtype=torch.int64), equal.cumsum(0)])
    before = so_far[ptr[:-1]]  # equal ones of the tokens before
    return places(higher | (equal & (so_far[1:] - before[row] <= (k - more)[row])))


def _padded(ptr: Tensor) -> np.ndarray:
    """(B, M): the places of each token's candidates, and after them the place after all candidates."""
    start_B1, stop_B1 = ptr[:-1, None].numpy(), ptr[1:, None].numpy()
    place_BM = start_B1 + np.arange(int((stop_B1 - start_B1).max()))
    place_BM[place_BM >= stop_B1] = ptr[-1]
    return place_BM


def _kth_of(value: Tensor, place_BM: np.ndarray, k: int) -> Tensor:
    """(B,): the k-th largest of each token's values, of which there are as many."""
    return _kth(torch.from_numpy(np.append(value.numpy(), np.float32(-np.inf))[place_BM]), k)


def _kth(value_BM: Tensor, k: int) -> Tensor:
    """(B,): the k-th largest of each row. numpy's selection is several times as fast as torch's."""
    at = value_BM.shape[1] - k
    return torch.from_numpy(np.partition(value_BM.numpy(), at, axis=1)[:, at])
