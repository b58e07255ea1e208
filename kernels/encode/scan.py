"""`encode` at the speed of bfloat16: scan coarsely, compute what is left exactly (README.md, "Scan").

Letters: B tokens, D width, F features, C columns of the coarse product, n candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.kernels.encode.coarse import LARGEST, TINY, Coarse
from circuit_tracer.kernels.encode.exact import Cuts, Rows
from circuit_tracer.workers import in_order, workers_on

BLOCK = 2**20  # coarse pre-activations in hand: two megabytes, which a core's second cache holds
TOKEN_BYTES = 5 * 2**18  # of the inputs of tokens that are taken together, ...
TOKENS = 128  # ... a multiple of this number
MAX_ACTIVE = 0.08  # of all; with more, computing candidates again costs what the scan saves

Entries = tuple[Tensor, Tensor, Tensor]  # token, feature, value, each (n,)


def scan(rows: Rows, coarse: Coarse, cuts: Cuts, lifted_F: Tensor) -> Entries | None:
    """The entries above their cuts, or None where too many may be, or numbers are too large for a bound.

    Workers take blocks of tokens that stay in the cache while entries are computed that the product leaves open. No entry
    depends on which others are in its block.
    lifted_F: `lifted` of what products have to be above.
    """
    (n_rows, width), n_features = rows.x_BD.shape, rows.weight_FD.shape[0]
    if not coarse.bounds(rows.largest):
        return None
    step = max(TOKENS, TOKEN_BYTES // (4 * width) // TOKENS * TOKENS)
    free: list[Tensor] = []  # memory of products: fresh memory would not be in a core's cache

    def of_block(start: int) -> tuple[int, Entries]:
        part = replace(rows, x_BD=rows.x_BD[start : start + step])
        memory = free.pop() if free else products(min(step, n_rows), n_features)
        row, feature = candidates(coarse, coarse.tokens(part.x_BD, part.norm_B), lifted_F, memory)
        free.append(memory)
        if row.shape[0] > room:
            return row.shape[0], (row, feature, row)  # the last one that is looked at
        value, kept = part.settled(row, feature, cuts)
        found = by_token(*(column.index_select(0, kept) for column in (row, feature, value)))
        return row.shape[0], (found[0] + start, *found[1:])

    room, found = int(MAX_ACTIVE * n_rows * n_features), []
    for n_candidates, entries in in_order(of_block, starts := range(0, n_rows, step), workers_for(starts)):
        room -= n_candidates
        if room < 0:
            return None
        found.append(entries)
    row, feature, value = found[0] if len(found) == 1 else (torch.cat(column) for column in zip(*found, strict=True))
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
