"""`encode` at the speed of bfloat16: scan coarsely, compute what is left exactly (README.md, "Scan").

Letters: B tokens, D width, F features, C columns of the coarse product, n candidates.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, TINY, Coarse
from circuit_tracer.kernels.encode.exact import Cuts, Rows

BLOCK = 2**20  # coarse pre-activations in hand: two megabytes, which a core's second cache holds
TOKEN_BYTES = 5 * 2**18  # of the inputs of tokens that are taken together, ...
TOKENS = 128  # ... a multiple of this number
MAX_ACTIVE = 0.08  # of all; with more, computing candidates again costs what the scan saves

Entries = tuple[Tensor, Tensor, Tensor]  # token, feature, value, each (n,)


def scan(rows: Rows, coarse: Coarse, cuts: Cuts, lifted_F: Tensor) -> Entries | None:
    """The entries above their cuts, or None where too many may be, or numbers are too large for a bound.

    Tokens are taken in blocks that stay in the cache while entries are computed that the product leaves open.
    lifted_F: `lifted` of what products have to be above.
    """
    (n_rows, width), n_features = rows.x_BD.shape, rows.weight_FD.shape[0]
    if not coarse.bounds(rows.largest):
        return None
    step = max(TOKENS, TOKEN_BYTES // (4 * width) // TOKENS * TOKENS)
    room, found, memory = MAX_ACTIVE * n_rows * n_features, [], rows.x_BD.new_empty(0, dtype=torch.bfloat16)
    for start in range(0, n_rows, step):
        part = replace(rows, x_BD=rows.x_BD[start : start + step])
        row, feature = candidates(coarse, coarse.tokens(part.x_BD, part.norm_B), lifted_F, memory)
        room -= row.shape[0]
        if room < 0:
            return None
        value, kept = part.settled(row, feature, cuts)
        row, feature, value = by_token(*(column.index_select(0, kept) for column in (row, feature, value)))
        found.append((row + start, feature, value))
    row, feature, value = found[0] if len(found) == 1 else (torch.cat(column) for column in zip(*found, strict=True))
    return row, feature, value


def candidates(coarse: Coarse, tokens_BC: Tensor, lifted_F: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """(row, feature), sorted by feature, of coarse products that are positive with what is added to them.

    memory: bfloat16, any, grown to what a block of products takes and used again: fresh memory would not be in the cache.
    """
    n_rows, n_features = tokens_BC.shape[0], lifted_F.shape[0]
    step = min(n_features, max(1, BLOCK // n_rows))
    memory.resize_(step * n_rows)
    places = []
    for start in range(0, n_features, step):
        weight_fC = coarse.weight_FC[start : start + step]
        above_fB = memory[: len(weight_fC) * n_rows].view(-1, n_rows)
        torch.addmm(lifted_F[start : start + step, None], weight_fC, tokens_BC.T, out=above_fB)
        places.append(positive(above_fB) + start * n_rows)
    return divided(np.concatenate(places), n_rows)


def by_token(row: Tensor, feature: Tensor, value: Tensor) -> Entries:
    """Entries sorted by feature in the order of their tokens."""
    small = row.to(torch.int16 if not row.shape[0] or int(row.max()) < 2**15 else torch.int32)
    order = torch.from_numpy(np.argsort(small.numpy(), kind="stable"))  # sorts 16 bits by counting
    return row.index_select(0, order), feature.index_select(0, order), value.index_select(0, order)


def positive(above_FB: Tensor) -> np.ndarray:
    """Where a contiguous bfloat16 array has no minus sign, in the flattened array, ascending."""
    return np.flatnonzero(above_FB.view(torch.int16).numpy() >= 0)


def divided(place: np.ndarray, n_rows: int) -> tuple[Tensor, Tensor]:
    """(row, feature) of places in an array of features by rows."""
    feature, row = np.divmod(place, n_rows)
    return torch.from_numpy(row), torch.from_numpy(feature)


def lifted(needed_F: Tensor, accumulated: float) -> Tensor:
    """What is added to coarse products, so that they are positive where x · w > needed (float64)."""
    # products are smaller than LARGEST: what needs more is never found, what needs less than its negative always
    largest = 32 * LARGEST
    needed_F = needed_F.detach().nan_to_num(largest, largest, -largest).clamp_(-largest, largest)
    least_F = 2 * accumulated * needed_F.abs() + TINY - needed_F
    lifted_F = least_F.bfloat16()
    return torch.where(lifted_F < least_F, torch.nextafter(lifted_F, lifted_F.new_tensor(torch.inf)), lifted_F)
