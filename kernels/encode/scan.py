"""`encode` at the speed of bfloat16: scan coarsely, compute what is left exactly (README.md, "Scan").

Letters: B tokens, D width, F features, C columns of the coarse product, n candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, TINY, TOGETHER, Coarse
from circuit_tracer.kernels.encode.exact import Cuts, Rows

BLOCK = 2**20  # coarse pre-activations in hand
MAX_ACTIVE = 0.05  # of all; with more, computing candidates again costs what the scan saves
UNSIGNED = 0x7FFF_7FFF_7FFF_7FFF  # of four bfloat16 all but the signs: or-ed with it, four negative ones are -1

Entries = tuple[Tensor, Tensor, Tensor]  # token, feature, value, each (n,)


def scan(rows: Rows, coarse: Coarse, cuts: Cuts, lifted_F: Tensor) -> Entries | None:
    """The entries above their cuts, or None where too many may be, or numbers are too large for a bound.

    lifted_F: `lifted` of what products have to be above.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    if not coarse.bounds(rows.largest):
        return None
    tokens_BC = coarse.tokens(rows.x_BD, rows.norm_B)
    room = MAX_ACTIVE * n_rows * n_features
    found = []
    for features in _blocks(tokens_BC.shape[0], n_features):
        above_FB = torch.addmm(lifted_F[features, None], coarse.weight_FC[features], tokens_BC.T)
        feature, row = positive(above_FB)
        room -= row.shape[0]
        if room < 0:
            return None
        found.append((row, feature + features.start if features.start else feature))
    row, feature = found[0] if len(found) == 1 else (torch.cat(column) for column in zip(*found, strict=True))
    return above(rows, row, feature, cuts)


def above(rows: Rows, row: Tensor, feature: Tensor, cuts: Cuts) -> Entries:
    """Those of some entries, sorted by feature, then row, that are above their cuts; sorted by row, then feature."""
    value, kept = rows.settled(row, feature, cuts)
    return by_token(row[kept], feature[kept], value[kept], rows.x_BD.shape[0])


def by_token(row: Tensor, feature: Tensor, value: Tensor, n_rows: int) -> Entries:
    """Entries sorted by feature in the order of their tokens."""
    small = torch.int16 if n_rows < 2**15 else torch.int32  # fewer bits are sorted faster
    order = row.to(small).sort(stable=True).indices
    return row[order], feature[order], value[order]


def positive(above_FB: Tensor) -> tuple[Tensor, Tensor]:
    """(feature, row) of what has no minus sign in a bfloat16 array, in its order; of the array, signs are left.

    Four numbers at a time, as one word: hardly any has a number above zero.
    """
    words = above_FB.view(torch.int64)
    feature, word = words.bitwise_or_(UNSIGNED).ne(-1).nonzero(as_tuple=True)
    signs = above_FB.view(torch.int16).view(*words.shape, TOGETHER)
    at, inside = (signs[feature, word] >= 0).nonzero(as_tuple=True)
    return feature[at], word[at] * TOGETHER + inside


def lifted(needed_F: Tensor, accumulated: float) -> Tensor:
    """What is added to coarse products, so that they are positive where x · w > needed (float64): bfloat16 not below -needed."""
    # products are smaller than LARGEST: what needs more is never found, what needs less than its negative always
    largest = 32 * LARGEST
    needed_F = needed_F.nan_to_num(largest, largest, -largest).clamp_(-largest, largest)
    least_F = 2 * accumulated * needed_F.abs() + TINY - needed_F
    lifted_F = least_F.bfloat16()
    return torch.where(lifted_F < least_F, torch.nextafter(lifted_F, lifted_F.new_tensor(torch.inf)), lifted_F)


def _blocks(n_rows: int, n_features: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, n_rows))
    for start in range(0, n_features, step):
        yield slice(start, min(start + step, n_features))
