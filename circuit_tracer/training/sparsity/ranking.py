"""The largest scores: of a dense array, of each token, of everything on all ranks.

Letters: B tokens, F features of a layer owned by this rank, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.kernels.digits import digit_counts
from circuit_tracer.kernels.encode import encode_top_k, encode_top_k_at_most
from circuit_tracer.kernels.sparse_activations import SparseActivations, largest_of_rows
from circuit_tracer.ranks import Ranks
from circuit_tracer.training.feature_ranks import FeatureRanks


def keep_largest(score: Tensor, eligible: Tensor, count: int) -> Tensor:
    """Which of the last dimension's eligible scores are among its `count` largest, or equal to the last of these."""
    count = min(count, score.shape[-1])
    if count == 0:
        return torch.zeros_like(eligible)
    ranked = score.detach().masked_fill(~eligible, -torch.inf)
    cut = ranked.topk(count, dim=-1).values[..., -1:]  # -inf where fewer are eligible: then all of them stay
    return eligible & (ranked >= cut)


def top_k(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int, ranks: FeatureRanks) -> SparseActivations:
    """The k largest positive pre-activations of each token over the features of all ranks."""
    entries = encode_top_k(x_BD, weight_FD, bias_F, k)
    return entries if ranks.world == 1 or k == 0 else entries.keep(_largest_over_ranks(entries, k, ranks))


def top_k_at_most(
    x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, k: int, room: int, ranks: FeatureRanks
) -> tuple[SparseActivations, Tensor]:
    """The same on a GPU without waiting for it: see `encode_top_k_at_most`. k is positive."""
    entries, found = encode_top_k_at_most(x_BD, weight_FD, bias_F, k, room)
    return entries if ranks.world == 1 else entries.moved_up(_largest_over_ranks(entries, k, ranks)), found


def _largest_over_ranks(entries: SparseActivations, k: int, ranks: FeatureRanks) -> Tensor:
    """Which of a rank's k largest of each token (n,) are among the k largest of all ranks, or equal to the last of these."""
    all_BR = ranks.all_gather(largest_of_rows(entries, k).T.contiguous()).T
    last_B = torch.topk(all_BR, k, dim=1).values[:, -1]
    return entries.value >= last_B[entries.row.clamp(max=max(0, entries.n_rows - 1))]


def kth_largest(scores: Sequence[Tensor], k: int, ranks: Ranks) -> Tensor:
    """The k-th largest of positive scores over all tensors and ranks (0-d), exactly; 0 if there are fewer, infinity for k = 0.

    Radix selection: the bits of positive floats are ordered like the floats, so counts of digits of 11 bits at a time, summed
    over ranks (16 KB each), narrow the answer down to one number. Nothing waits for the device. Zeros count as no score.
    """
    joined = torch.cat(list(scores))
    if k == 0:
        return joined.new_full((), torch.inf)
    width = 8 * joined.element_size()
    whole = torch.int32 if width == 32 else torch.int64
    keys = joined.view(whole)
    key, remaining = (torch.full((1,), number, device=joined.device) for number in (0, k))
    for shift in _shifts(width):
        bits = min(11, width - shift)
        counts = ranks.all_reduce_(digit_counts(keys, key, shift, bits))
        # from the largest digit down: how many keys there are so far, and above each digit
        so_far = counts.flip(0).cumsum(0)
        place = torch.searchsorted(so_far, remaining).clamp_(max=2**bits - 1)
        remaining = remaining - (so_far - counts.flip(0))[place]
        key = (key << bits) | (2**bits - 1 - place)
    return key.to(whole).view(joined.dtype)[0]  # with fewer than k, all digits are 0


def _shifts(width: int) -> list[int]:
    """Where digits of 11 bits begin, highest first."""
    return list(range(0, width, 11))[::-1]
