"""JumpReLU: what lies above a learned threshold is active.

The activation is a step in the threshold, so its gradient is a straight-through estimate from a band around it (§4).

Letters: S source layers, B tokens, F features of a layer (f: owned by this rank), D width, n entries of one source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Dense, Now
from circuit_tracer.training.sparsity.penalty import PenaltyRule, share_above
from circuit_tracer.training.sparsity.selection import Masks, Selection, above
from circuit_tracer.training.step.counter_random import uniform
from circuit_tracer.training.step.dictionary import Dictionary


class JumpReLU(PenaltyRule):
    """a = pre where pre > theta = exp(log theta)."""

    @property
    def threshold_start(self) -> float:
        """The same for all features."""
        return self.settings.threshold_start

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        weight = [torch.ones_like(p) for p in given.pre] if given.band is None else given.band
        return [
            Jump.apply(p, theta, w, self.settings.bandwidth)
            for p, theta, w in zip(given.pre, given.thresholds, weight, strict=True)
        ]

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """Entries above threshold - bandwidth / 2; near misses are thinned out to a share ``band_probability``."""
        half, share = self.settings.bandwidth / 2, self.settings.band_probability
        thresholds = [dictionary.thresholds(source).to(x_BD.dtype) for source, x_BD in enumerate(x_SBD)]
        lowest = []
        for threshold_F in thresholds:
            level_F = threshold_F - half
            # encode is strict and the band is closed
            level_F = torch.nextafter(level_F, level_F.new_tensor(-torch.inf))
            lowest.append(torch.minimum(level_F, threshold_F))

        def seen(found: list[SparseActivations]) -> Masks:
            masks = []
            for source, (entries, threshold_F) in enumerate(zip(found, thresholds, strict=True)):
                place = ranks.replicas.rank * now.parts + now.part
                row = entries.row + place * entries.n_rows  # in the whole batch
                counter = row * dictionary.n_features + entries.feature + dictionary.owned.start
                drawn = uniform(counter, now.step, source) < share
                masks.append(drawn | (entries.value > threshold_F[entries.feature]))
            return masks

        thinned = seen if share < 1 else None
        all_entries = above(dictionary, x_SBD, lowest, thinned, ranks, now.rooms, now.questions)
        all_above, all_band = [], []
        for entries, threshold_F in zip(all_entries, thresholds, strict=True):
            over_n = entries.value - threshold_F[entries.feature]
            weight = torch.where(over_n > 0, 1.0, 1.0 / share)
            all_above.append(over_n > 0)
            all_band.append(torch.where(over_n.abs() <= half, weight, 0.0).to(entries.value.dtype))
        return Selection(all_entries, all_above, all_band)

    def threshold_gradient(
        self, entries: SparseActivations, band_n: Tensor, da_n: Tensor, threshold_f: Tensor
    ) -> Tensor:
        """theta * dL/dtheta, dL/dtheta = -(theta / w) sum of dL/da in the band."""
        threshold_f = threshold_f.to(da_n.dtype)
        in_band_f = torch.zeros_like(threshold_f).index_add_(0, entries.feature, da_n * band_n)
        return -threshold_f.square() / self.settings.bandwidth * in_band_f

    def export_thresholds(
        self, norm_F: Tensor, n_targets: int, log_threshold_F: Tensor | None, level: float | None
    ) -> Tensor:
        """Those learned."""
        assert log_threshold_F is not None
        return log_threshold_F.float().exp()

    def entries(self, active_at_start: float, n_features: int) -> tuple[float, float]:
        """Those above the threshold, and near misses."""
        threshold = self.settings.threshold_start
        above = share_above(threshold)
        near = share_above(threshold - self.settings.bandwidth / 2) - above
        count = (above + near * self.settings.band_probability) * n_features
        return count, count


class Jump(torch.autograd.Function):
    """a = pre * [pre > theta]; a step in theta, so its gradient is a straight-through estimate.

        da/dpre   = [pre > theta]
        da/dtheta = -(theta / w) * [|pre - theta| <= w / 2]

    The second is a kernel estimate: where pre has a smooth density, moving theta up by one loses the entries that lie at
    theta, and those within half a bandwidth stand for them. Entries above theta count once; near misses (theta - w/2 <= pre
    <= theta) count as often as `near_miss_BF` says, whose mean is one.
    """

    @staticmethod
    def forward(ctx: Any, pre_BF: Tensor, theta_F: Tensor, near_miss_BF: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_BF, theta_F, near_miss_BF)
        ctx.bandwidth = bandwidth
        return torch.where(pre_BF > theta_F, pre_BF, 0)

    @staticmethod
    def backward(ctx: Any, grad_BF: Tensor) -> tuple[Tensor, Tensor, None, None]:
        pre_BF, theta_F, near_miss_BF = ctx.saved_tensors
        above = pre_BF > theta_F
        in_band = (pre_BF - theta_F).abs() <= ctx.bandwidth / 2
        count = in_band * torch.where(above, 1, near_miss_BF)
        return grad_BF * above, -theta_F / ctx.bandwidth * (grad_BF * count).sum(0), None, None
