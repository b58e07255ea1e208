"""`encode` at the speed of bfloat16: scan coarsely, compute what is left exactly (README.md, "Scan").

Letters: B tokens, D width, F features, C columns of the coarse product, n candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, TINY, Coarse
from circuit_tracer.kernels.encode.exact import Cuts, Rows, divided
from circuit_tracer.kernels.encode.product import Entries, above
from circuit_tracer.workers import in_order, workers_on

BLOCK = 2**20  # coarse pre-activations in hand: two megabytes, which a core's second cache holds
TOKEN_BYTES = 5 * 2**18  # of the inputs of tokens that are taken together, ...
TOKENS = 128  # ... a multiple of this number
MAX_ACTIVE = 0.1  # of a block; with more, computing candidates again costs what the scan saves


def scan(rows: Rows, coarse: Coarse, cuts: Cuts, lifted_F: Tensor) -> Entries | None:
    """The entries above their cuts, or None where numbers are too large for a bound.

    Workers take blocks of tokens that stay in the cache while entries are computed that the product leaves open. No entry
    depends on which others are in its block; its value, where the product leaves too many of the block open, is that of a
    float32 product of the block.
    lifted_F: `lifted` of what products have to be above.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    if not coarse.bounds(rows.largest):
        return None
    step = tokens_together(rows)
    free: list[Tensor] = []  # memory of products: fresh memory would not be in a core's cache

    def of_block(start: int) -> Entries:
        part = rows.block(slice(start, start + step))
        memory = free.pop() if free else products(min(step, n_rows), n_features)
        row, feature = candidates(coarse, coarse.tokens(part.x_BD, part.norm_B), lifted_F, memory)
        free.append(memory)
        if row.shape[0] > MAX_ACTIVE * len(part.x_BD) * n_features:
            row, feature, value = above(part, cuts)
        else:
            value = part.pre_activations(row, feature)
            kept = part.settled(row, feature, cuts, cuts.undecided(part.losing_most), value)
            row = row.index_select(0, kept)
            order = token_order(row, len(part.x_BD))
            kept = kept.index_select(0, order)
            row, feature, value = row.index_select(0, order), feature.index_select(0, kept), value.index_select(0, kept)
        return (row.add_(start) if start else row), feature, value

    return joined(in_order(of_block, starts := range(0, n_rows, step), workers_for(starts)))


def tokens_together(rows: Rows) -> int:
    """How many tokens' inputs stay in a core's second cache."""
    return max(TOKENS, TOKEN_BYTES // (4 * rows.x_BD.shape[1]) // TOKENS * TOKENS)


def joined(blocks: Iterable[Entries]) -> Entries:
    """Entries of blocks, one after the other."""
    found = list(blocks)
    if len(found) == 1:
        return found[0]
    row, feature, value = (torch.cat(column) for column in zip(*found, strict=True))
    return row, feature, value


def workers_for(blocks: Sequence[int]) -> int:
    """How many take blocks on a CPU: a single one is shared by torch's threads, which are there already."""
    return workers_on(torch.device("cpu")) if len(blocks) > 1 else 1


def products(n_rows: int, n_features: int) -> Tensor:
    """Memory for the coarse products of a block of so many tokens, or fewer, with some of the features, bfloat16."""
    return torch.empty(max(n_rows, min(BLOCK, n_rows * n_features)), dtype=torch.bfloat16)


def candidates(coarse: Coarse, tokens_BC: Tensor, lifted_F: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """(row, feature), sorted by feature, of coarse products that are positive with what is added to them.

    memory: `products` of as many tokens or more.
    """
    n_rows, n_features = tokens_BC.shape[0], lifted_F.shape[0]
    step = min(n_features, max(1, BLOCK // n_rows))
    places = []
    for start in range(0, n_features, step):
        weight_fC = coarse.weight_FC[start : start + step]
        above_fB = memory[: len(weight_fC) * n_rows].view(-1, n_rows)
        torch.addmm(lifted_F[start : start + step, None], weight_fC, tokens_BC.T, out=above_fB)
        place = positive(above_fB)
        places.append(place + start * n_rows if start else place)
    return divided(places[0] if len(places) == 1 else torch.cat(places), n_rows)


def token_order(row: Tensor, n_rows: int) -> Tensor:
    """(n,): the order of entries by token, of equal ones as they stand."""
    small = row.numpy().astype(np.int16 if n_rows <= 2**15 else np.int32)
    return torch.from_numpy(np.argsort(small, kind="stable"))  # sorts 16 bits by counting


def positive(above_FB: Tensor) -> Tensor:
    """Where a contiguous bfloat16 array has no minus sign, in the flattened array, ascending."""
    return torch.from_numpy(np.flatnonzero(above_FB.view(torch.int16).numpy() >= 0))


def lifted(needed_F: Tensor, accumulated: float) -> Tensor:
    """What is added to coarse products, so that they are positive where x · w > needed (float64)."""
    # products are smaller than LARGEST: what needs more is never found, what needs less than its negative always
    largest = 32 * LARGEST
    needed_F = needed_F.detach().nan_to_num(largest, largest, -largest).clamp_(-largest, largest)
    least_F = 2 * accumulated * needed_F.abs() + TINY - needed_F
    lifted_F = least_F.bfloat16()
    return torch.where(lifted_F < least_F, torch.nextafter(lifted_F, lifted_F.new_tensor(torch.inf)), lifted_F)
