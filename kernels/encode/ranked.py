"""The largest pre-activations of each token, as `scan` finds those above a cut (README.md, "Scan").

Letters: B tokens, D width, F features, G groups of features, n candidates, M most candidates of a token, b of the tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, Coarse
from circuit_tracer.kernels.encode.exact import Cuts, Rows, divided, lost, places
from circuit_tracer.kernels.encode.product import Entries
from circuit_tracer.kernels.encode.scan import BLOCK, joined, lifted, products, token_order, workers_for
from circuit_tracer.workers import in_order, workers_on

GROUPS = 8  # times k, at least, where there are as many features
LARGEST_GROUP = 16
MAX_KEPT = 0.05  # of all features, for which a search for the k largest is faster than the product

Alike = list[tuple[np.ndarray, np.ndarray]]


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
    if coarse is not None:  # or values, which are those of products of blocks, would depend on the number of workers
        step = min(step, -(-n_rows // workers_on(rows.x_BD.device)))
    free: list[Tensor] = []  # memory of products

    def of_block(start: int) -> Entries:
        part = rows.block(slice(start, start + step))
        if coarse is None or lifted_F is None:
            row, feature, value = _in_float32(part, k)
        else:
            memory = free.pop() if free else products(min(step, n_rows), n_features)
            row, feature = _coarsely(part, coarse, lifted_F, k, memory)
            free.append(memory)
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
    level_B = torch.from_numpy(_kth(pre_BF.numpy(), k)) - 2 * loss_B
    place = places(pre_BF >= level_B[:, None])
    feature, row = divided(place, pre_BF.shape[1])
    return row, feature, pre_BF.flatten().index_select(0, place)


def _coarsely(rows: Rows, coarse: Coarse, lifted_F: Tensor, k: int, memory: Tensor) -> tuple[Tensor, Tensor]:
    """(row, feature) of the same, sorted by feature, by a product that is nowhere below the true one.

    Groups of features have k different largest ones: so many pre-activations are not far below the k-th largest of these.
    lifted_F: biases, `lifted`; memory: `products` of as many tokens or more.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    tokens_BC = coarse.tokens(rows.x_BD, rows.norm_B)
    above_FB = memory[: n_features * n_rows].view(n_features, n_rows)
    torch.addmm(lifted_F[:, None], coarse.weight_FC, tokens_BC.T, out=above_FB)
    size = min(max(1, n_features // (GROUPS * k)), LARGEST_GROUP)
    whole = n_features // size * size
    group_GB = above_FB[:whole].view(-1, size, n_rows).amax(1)
    kth_B = torch.from_numpy(_kth(group_GB.T.float().numpy(), k))
    # the margin, which was added where the truth may be as far below; roundings of the product to bfloat16; the bias' own
    lost_B = coarse.margin(tokens_BC) + 2**-6 * (kth_B.abs() + lifted_F.float().abs().max())
    level_B = (kth_B - lost_B).bfloat16()
    level_B = torch.nextafter(level_B, level_B.new_tensor(-torch.inf))
    reached = _ordered(above_FB) >= _ordered(level_B) - 1  # a zero may have a minus sign
    return divided(torch.from_numpy(np.flatnonzero(reached)), n_rows)


def _ordered(numbers: Tensor) -> np.ndarray:
    """16-bit integers, in their place, that compare as these bfloat16 numbers do; -0 comes before 0."""
    bits: np.ndarray = numbers.view(torch.int16).numpy()
    mask = bits >> 15
    mask &= 0x7FFF
    bits ^= mask
    return bits


def _chosen(rows: Rows, cuts: Cuts, row: Tensor, feature: Tensor, value: Tensor, k: int, ties: bool) -> Tensor:
    """Which of the candidates are the k largest, sorted by token; values that decide become exact ones, rounded.

    The k-th largest of all lower bounds and of all upper bounds enclose the k-th largest: what lies between them is open,
    unless it is alone.
    """
    n_rows, rows_n, features, values = len(rows.x_BD), row.numpy(), feature.numpy(), value.numpy()
    ptr = np.searchsorted(rows_n, np.arange(n_rows + 1))
    alike = _alike(ptr)
    loss = (
        np.nan_to_num(cuts.norm_F.numpy()[features] * rows.losing_B.numpy()[rows_n]) + cuts.besides_F.numpy()[features]
    )
    low, high = values - loss, values + loss
    least, most = _kth_of(low, alike, k)[rows_n], _kth_of(high, alike, k)[rows_n]
    near = np.flatnonzero((low <= most) & (high >= least))
    near_row = rows_n[near]
    near = near[np.bincount(near_row, minlength=n_rows)[near_row] > 1]
    values[near] = rows.rounded(rows_n[near], features[near])
    last = _kth_of(values, alike, k)[rows_n]
    kept = np.flatnonzero(values >= last)
    if not ties and kept.size > k * n_rows:
        higher, equal = values > last, values == last
        more = np.bincount(rows_n[higher], minlength=n_rows)
        so_far = np.append(0, equal.cumsum())
        before = so_far[ptr[:-1]]  # equal ones of the tokens before
        kept = np.flatnonzero(higher | (equal & (so_far[1:] - before[rows_n] <= (k - more)[rows_n])))
    return torch.from_numpy(kept)


def _alike(ptr: np.ndarray) -> Alike:
    """Tokens (b,) with about as many candidates, and the places (b, M) of these, and after them the place after all candidates.

    A token with a large norm leaves so much open that all others would be padded to many times their number.
    """
    counts = np.diff(ptr)
    _, size = np.frexp(counts)  # powers of two
    found = []
    for each in np.unique(size):
        token = np.flatnonzero(size == each)
        place_bM = ptr[token, None] + np.arange(counts[token].max())
        place_bM[place_bM >= ptr[token + 1, None]] = ptr[-1]
        found.append((token, place_bM))
    return found


def _kth_of(values: np.ndarray, alike: Alike, k: int) -> np.ndarray:
    """(B,): the k-th largest of each token's values, of which there are as many."""
    values = np.append(values, np.float32(-np.inf))
    kth = np.empty(sum(len(token) for token, _ in alike), np.float32)
    for token, place_bM in alike:
        kth[token] = _kth(values.take(place_bM), k)
    return kth


def _kth(value_BM: np.ndarray, k: int) -> np.ndarray:
    """(B,): the k-th largest of each row. numpy's selection is several times as fast as torch's, but not where the ones that
    are passed over are equal: so, of negatives, from below."""
    kth: np.ndarray = -np.partition(-value_BM, k - 1, axis=1)[:, k - 1]
    return kth
