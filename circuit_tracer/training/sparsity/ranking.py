"""The largest scores: of a dense array, of each token, of everything on all ranks.

Letters: B tokens, F features of a layer owned by this rank, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.kernels.encode import encode_top_k
from circuit_tracer.kernels.sparse_activations import SparseActivations
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
    if ranks.world == 1 or k == 0:
        return entries
    # each rank's k largest, then the k-th of them all
    position = torch.arange(len(entries.feature), device=x_BD.device) - entries.row_ptr[entries.row]
    widest = max(k, int(entries.row_ptr.diff().amax()) if entries.n_rows else 0)
    own_BW = x_BD.new_zeros(entries.n_rows, widest)
    own_BW[entries.row, position] = entries.value
    own_Bk = torch.topk(own_BW, k, dim=1).values
    all_BR = ranks.all_gather(own_Bk.T.contiguous()).T
    last_B = torch.topk(all_BR, k, dim=1).values[:, -1]
    return entries.keep(entries.value >= last_B[entries.row])


def kth_largest(scores: Sequence[Tensor], k: int, ranks: Ranks) -> Tensor:
    """The k-th largest of positive scores over all tensors and ranks, exactly; 0 if there are fewer, infinity for k = 0.

    Radix selection: the bits of positive floats are ordered like the floats, so histograms of 11 bits at a time, summed over
    ranks (16 KB each), narrow the answer down to one number.
    """
    joined = torch.cat(list(scores))
    if k == 0:
        return joined.new_full((), torch.inf)
    width = 8 * joined.element_size()
    keys = joined.view(torch.int32 if width == 32 else torch.int64).long()
    prefix, remaining = 0, k
    for shift in _shifts(width):
        bits = min(11, width - shift)
        counts = torch.bincount((keys >> shift) & (2**bits - 1), minlength=2**bits)
        above = ranks.all_reduce_(counts).flip(0).cumsum(0)
        if int(above[-1]) < remaining:
            return joined.new_zeros(())
        chosen = int(torch.searchsorted(above, remaining))
        digit = 2**bits - 1 - chosen
        remaining -= int(above[chosen - 1]) if chosen else 0
        keys = keys[((keys >> shift) & (2**bits - 1)) == digit]
        prefix |= digit << shift
    key = torch.tensor([prefix], dtype=torch.int32 if width == 32 else torch.int64, device=joined.device)
    return key.view(joined.dtype)[0]


def _shifts(width: int) -> list[int]:
    """Where digits of 11 bits begin, highest first."""
    return list(range(0, width, 11))[::-1]
