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

BLOCK = 2**21  # coarse pre-activations in hand: four megabytes
TOKEN_BYTES = 5 * 2**19  # of the inputs of a block of tokens, at most
TOKENS = 128  # a group, of which blocks are made
MAX_ACTIVE = 0.08  # of a group's; with more, computing candidates again costs what the scan saves


def scan(rows: Rows, coarse: Coarse, cuts: Cuts, lifted_F: Tensor) -> Entries | None:
    """The entries above their cuts, or None where numbers are too large for a bound.

    Workers take blocks of tokens that stay in the cache while entries are computed that the product leaves open. No entry
    depends on which others are in its block; where the product leaves too many of a group of tokens open, values are those of a
    float32 product of the group.
    lifted_F: `lifted` of what products have to be above.
    """
    n_rows, n_features = rows.x_BD.shape[0], rows.weight_FD.shape[0]
    if not coarse.bounds(rows.largest):
        return None
    step = _tokens_together(rows)
    free: list[Tensor] = []  # memory of products: fresh memory would not be in a core's cache

    def of_block(start: int) -> Entries:
        part = rows.block(slice(start, start + step))
        memory = free.pop() if free else products(min(step, n_rows), n_features)
        row, feature = candidates(coarse, coarse.tokens(part.x_BD, part.norm_B), lifted_F, memory)
        free.append(memory)
        found, row, feature = _full(part, cuts, row, feature)
        if found and not row.shape[0]:
            row, feature, value = joined(found)
            return row.add_(start), feature, value
        value = part.pre_activations(row, feature)
        kept = part.settled(row, feature, cuts, cuts.undecided(part.losing_most), value)
        entries = row.index_select(0, kept), feature.index_select(0, kept), value.index_select(0, kept)
        row, feature, value = joined([entries, *found])
        order = token_order(row, len(part.x_BD))
        return row.index_select(0, order).add_(start), feature.index_select(0, order), value.index_select(0, order)

    return joined(in_order(of_block, starts := range(0, n_rows, step), workers_for(starts)))


def _full(rows: Rows, cuts: Cuts, row: Tensor, feature: Tensor) -> tuple[list[Entries], Tensor, Tensor]:
    """The entries of groups of tokens of which the coarse product leaves too many open; what it leaves open of the others."""
    group = row.numpy() // TOKENS
    full = np.flatnonzero(np.bincount(group) > MAX_ACTIVE * TOKENS * rows.weight_FD.shape[0])
    if not full.size:
        return [], row, feature
    found = []
    for start in (full * TOKENS).tolist():
        token, index, value = above(rows.block(slice(start, start + TOKENS)), cuts)
        found.append((token.add_(start), index, value))
    few = torch.from_numpy(np.flatnonzero(~np.isin(group, full)))
    return found, row.index_select(0, few), feature.index_select(0, few)


def _tokens_together(rows: Rows) -> int:
    """How many tokens are a block: each worker's share, if their inputs stay in its cache, more or less. Fewer would be more
    operations, between which workers wait for each other (README.md, "Workers")."""
    n_rows, width = rows.x_BD.shape
    share = -(-n_rows // workers_on(rows.x_BD.device))
    return TOKENS * max(1, min(-(-share // TOKENS), TOKEN_BYTES // (4 * width * TOKENS)))


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
