"""Which features are active: every activation rule, over all source layers and ranks (training/README.md §4).

Letters: S source layers, B tokens, F features of a layer owned by this rank, D width, n entries of one source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.kernels.encode import encode, encode_top_k
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.step.counter_random import uniform
from circuit_tracer.training.step.dictionary import Dictionary

# Candidates of batch_topk are looked for above the running cut times these, one after the other until there are enough.
LOWERED = (0.95, 0.8, 0.5, 0.0)
SAMPLE_ROWS = 64  # tokens on which a first cut is guessed


@dataclass(frozen=True)
class Selection:
    """Active features of a batch. ``entries[s].value`` (n,) are pre-activations; for a JumpReLU near misses are among them.

    ``active[s]`` (n,) tells the active from the near misses; ``band[s]`` (n,) weighs an entry in the gradient of its
    threshold (JumpReLU only). ``cut``: the least score kept (batch_topk only).
    """

    entries: list[SparseActivations]
    active: list[Tensor]
    band: list[Tensor] | None = None
    cut: float | None = None

    def activations(self, source: int) -> SparseActivations:
        """The active entries with their activations."""
        entries, active = self.entries[source], self.active[source]
        return entries if self.band is None else entries.with_value(torch.where(active, entries.value, 0))


def select(
    dictionary: Dictionary,
    x_SBD: Sequence[Tensor],
    settings: SparsitySection,
    *,
    active: float,
    running_cut: float | None,
    step: int,
    ranks: FeatureRanks,
) -> Selection:
    """Apply the activation rule. x_SBD: normalised inputs (B, D) of every source. active: k now."""
    if settings.activation == "jumprelu":
        return _jump_relu(dictionary, x_SBD, settings, step)
    if settings.activation == "batch_topk":
        return _batch_top_k(dictionary, x_SBD, round(active * len(x_SBD) * x_SBD[0].shape[0]), running_cut, ranks)
    if settings.activation == "topk":
        weights = zip(x_SBD, dictionary.W_enc, dictionary.b_enc, strict=True)
        return _all_active([top_k(x_BD, W, b, round(active), ranks) for x_BD, W, b in weights])
    zeros = [torch.zeros_like(bias) for bias in dictionary.b_enc]
    return _all_active(_above(dictionary, x_SBD, zeros))


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


def kth_largest(scores: Sequence[Tensor], k: int, ranks: FeatureRanks) -> Tensor:
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


def _batch_top_k(
    dictionary: Dictionary, x_SBD: Sequence[Tensor], kept: int, running_cut: float | None, ranks: FeatureRanks
) -> Selection:
    start = _guess(dictionary, x_SBD, kept, ranks) if running_cut is None else running_cut
    for share in LOWERED:
        level = share * start
        low = [level / norm_F if level else torch.zeros_like(norm_F) for norm_F in dictionary.norms]
        candidates = _above(dictionary, x_SBD, low)
        scores = [_scores(one, norm_F) for one, norm_F in zip(candidates, dictionary.norms, strict=True)]
        cut = kth_largest(scores, kept, ranks)
        # scores right at the lowered cut may be missing for rounding: below it nothing is certain
        if level == 0 or float(cut) > level * (1 + 1e-5):
            break
    entries = [one.keep(score >= cut) for one, score in zip(candidates, scores, strict=True)]
    return Selection(entries, [torch.ones_like(one.feature, dtype=torch.bool) for one in entries], cut=float(cut))


def _guess(dictionary: Dictionary, x_SBD: Sequence[Tensor], kept: int, ranks: FeatureRanks) -> float:
    """A first cut: the one that a few tokens would have."""
    n_rows = x_SBD[0].shape[0]
    sample = [x_BD[:: max(1, n_rows // SAMPLE_ROWS)][:SAMPLE_ROWS] for x_BD in x_SBD]
    entries = _above(dictionary, sample, [torch.zeros_like(norm_F) for norm_F in dictionary.norms])
    scores = [_scores(one, norm_F) for one, norm_F in zip(entries, dictionary.norms, strict=True)]
    return float(kth_largest(scores, max(1, kept * sample[0].shape[0] // max(1, n_rows)), ranks))


def _above(dictionary: Dictionary, x_SBD: Sequence[Tensor], cut_SF: Sequence[Tensor]) -> list[SparseActivations]:
    parts = zip(x_SBD, dictionary.W_enc, dictionary.b_enc, cut_SF, strict=True)
    return [encode(x_BD, W, b, cut_F) for x_BD, W, b, cut_F in parts]


def _scores(entries: SparseActivations, norm_F: Tensor) -> Tensor:
    return entries.value * norm_F[entries.feature].to(entries.value.dtype)


def _all_active(entries: list[SparseActivations]) -> Selection:
    return Selection(entries, [torch.ones_like(one.feature, dtype=torch.bool) for one in entries])


def _jump_relu(dictionary: Dictionary, x_SBD: Sequence[Tensor], settings: SparsitySection, step: int) -> Selection:
    """Entries above threshold - bandwidth / 2; near misses are thinned out to a share ``band_probability``."""
    half, share = settings.bandwidth / 2, settings.band_probability
    all_entries, all_active, all_band = [], [], []
    for source, x_BD in enumerate(x_SBD):
        threshold_F = dictionary.thresholds(source).to(x_BD.dtype)
        level_F = threshold_F - half
        # encode is strict and the band is closed
        level_F = torch.nextafter(level_F, level_F.new_tensor(-torch.inf))
        entries = encode(x_BD, dictionary.W_enc[source], dictionary.b_enc[source], torch.minimum(level_F, threshold_F))
        active = entries.value > threshold_F[entries.feature]
        if share < 1:
            counter = entries.row * dictionary.n_features + entries.feature + dictionary.owned.start
            kept = active | (uniform(counter, step, source) < share)
            entries, active = entries.keep(kept), active[kept]
        inside = (entries.value - threshold_F[entries.feature]).abs() <= half
        weight = torch.where(active, 1.0, 1.0 / share)
        all_entries.append(entries)
        all_active.append(active)
        all_band.append(torch.where(inside, weight, 0.0).to(x_BD.dtype))
    return Selection(all_entries, all_active, all_band)
