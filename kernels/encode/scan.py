"""`encode` at the speed of bfloat16: scan coarsely, compute what is left exactly (README.md, "Scan").

Letters: B tokens, D width, F features, C columns of the coarse product, n candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, TINY, TOGETHER, Coarse
from circuit_tracer.kernels.encode.exact import Rows
from circuit_tracer.kernels.sparse_activations import SparseActivations

BLOCK = 2**21  # coarse pre-activations in hand
MAX_ACTIVE = 0.05  # of all; with more, computing candidates again costs what the scan saves
POSITIVE = 0x7FFF_7FFF_7FFF_7FFF  # four bfloat16 without their signs: or-ed with it, four negative ones are -1


def scan(rows: Rows, coarse: Coarse, cut_F: Tensor) -> SparseActivations | None:
    """The entries above their cuts, or None where too many may be, or numbers are too large for a bound."""
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    tokens_BC = coarse.tokens(rows.x_BD, rows.norm_B)
    if tokens_BC is None:
        return None
    needed_F = lifted(cut_F.double() - rows.bias_F.double(), coarse.accumulated)
    room = MAX_ACTIVE * n_rows * n_features
    found_rows, found_features = [], []
    for features in _blocks(tokens_BC.shape[0], n_features):
        above_FB = torch.addmm(needed_F[features, None], coarse.weight_FC[features], tokens_BC.T)
        feature, row = positive(above_FB, n_rows)
        room -= row.shape[0]
        if room < 0:
            return None
        found_rows.append(row)
        found_features.append(feature + features.start)
    row, feature = torch.cat(found_rows), torch.cat(found_features)
    order = (row * n_features + feature).argsort()
    return above(rows, row[order], feature[order], cut_F)


def above(rows: Rows, row: Tensor, feature: Tensor, cut_F: Tensor, value: Tensor | None = None) -> SparseActivations:
    """Those of some entries, sorted by row, then feature, that are above their cuts."""
    cut_n = cut_F[feature]
    value = rows.settled(row, feature, cut_n, value)
    kept = (value > cut_n).nonzero()[:, 0]
    return SparseActivations.from_entries(
        row[kept], feature[kept], value[kept], rows.x_BD.shape[0], rows.weight_FD.shape[0]
    )


def positive(above_FB: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """(feature, row) of what has no minus sign among the first ``n_rows`` columns of a bfloat16 array, in its order.

    Four numbers at a time, as one word: hardly any has a number above zero.
    """
    word = (above_FB.view(torch.int64) | POSITIVE).ne(-1).view(-1).nonzero()[:, 0]
    inside = (above_FB.view(torch.int16).view(-1, TOGETHER)[word] >= 0).nonzero()
    n_columns = above_FB.shape[1]
    place = word[inside[:, 0]] * TOGETHER + inside[:, 1]
    feature = torch.div(place, n_columns, rounding_mode="floor")
    row = place - feature * n_columns
    if n_rows == n_columns:
        return feature, row
    live = (row < n_rows).nonzero()[:, 0]
    return feature[live], row[live]


def lifted(needed_F: Tensor, accumulated: float) -> Tensor:
    """What is added to coarse products, so that they are positive where x · w > needed: bfloat16 not below -needed (float64)."""
    largest = 32 * LARGEST  # products are smaller: what needs as much is never found, what needs less than -largest always
    needed_F = needed_F.nan_to_num(largest, largest, -largest).clamp_(-largest, largest)
    least_F = 2 * accumulated * needed_F.abs() + TINY - needed_F
    lifted_F = least_F.bfloat16()
    return torch.where(lifted_F < least_F, torch.nextafter(lifted_F, lifted_F.new_tensor(torch.inf)), lifted_F)


def _blocks(n_rows: int, n_features: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, n_rows))
    for start in range(0, n_features, step):
        yield slice(start, min(start + step, n_features))
