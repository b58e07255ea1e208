"""JumpReLU: what lies above a learned threshold is active.

The activation is a step in the threshold, so its gradient is a straight-through estimate from a band around it (§4).

Letters: S source layers, B tokens, F features of a layer (f: owned by this rank), D width, n entries of one source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Dense, Now, Through
from circuit_tracer.training.sparsity.penalty import PenaltyRule, gaussian_level, share_above, start_thresholds
from circuit_tracer.training.sparsity.selection import Masks, Selection, above
from circuit_tracer.training.step.counter_random import uniform
from circuit_tracer.training.step.dictionary import UNSET, Dictionary

# Of what log L0 is off, the share that log theta moves by after a step. For a few percent of Gaussians, log L0 falls by about
# 5 for each 1 that log theta rises: half of the error goes.
STEERED = 0.1


class JumpReLU(PenaltyRule):
    """a = pre where pre > theta = exp(log theta)."""

    learns_thresholds = True
    own: ClassVar[Mapping[str, float]] = {"log_threshold": UNSET}
    bears = 0.5  # more, and features that many tokens share become ones that hardly any token has

    def start_(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], active: float, ranks: FeatureRanks) -> None:
        """Thresholds at the level of ``active`` features; those that a dictionary came with stay."""
        assert dictionary.log_threshold is not None
        for source, (x_BD, log_threshold_f) in enumerate(zip(x_SBD, dictionary.log_threshold, strict=True)):
            started_f = start_thresholds(dictionary, source, x_BD, active, ranks).log_()
            log_threshold_f.copy_(torch.where(log_threshold_f == UNSET, started_f, log_threshold_f))

    def steer_(self, dictionary: Dictionary, excess: Tensor, rare: Sequence[Tensor]) -> None:
        """All thresholds by the same factor; those of rare features fall besides, as hardly a gradient reaches them."""
        assert dictionary.log_threshold is not None
        for log_threshold_f, rare_f in zip(dictionary.log_threshold, rare, strict=True):
            log_threshold_f += STEERED * excess - rare_f

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        weight = [torch.ones_like(p) for p in given.pre] if given.band is None else given.band
        return [
            Jump.apply(p, theta, w, self.settings.bandwidth)
            for p, theta, w in zip(given.pre, given.thresholds, weight, strict=True)
        ]

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """Entries above threshold (1 - w / 2); near misses are thinned out to a share ``band_probability``."""
        half, share = self.settings.bandwidth / 2, self.settings.band_probability
        thresholds = [dictionary.thresholds(source).to(x_BD.dtype) for source, x_BD in enumerate(x_SBD)]
        lowest = []
        for threshold_F in thresholds:
            level_F = threshold_F * (1 - half)
            # encode is strict and the band is closed
            lowest.append(torch.nextafter(level_F, level_F.new_tensor(-torch.inf)))

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
            threshold_n = threshold_F[entries.feature]
            over_n = entries.value - threshold_n
            weight = torch.where(over_n > 0, 1.0, 1.0 / share)
            all_above.append(over_n > 0)
            all_band.append(torch.where(over_n.abs() <= half * threshold_n, weight, 0.0).to(entries.value.dtype))
        return Selection(all_entries, all_above, all_band)

    def through(
        self,
        dictionary: Dictionary,
        source: int,
        selection: Selection,
        x_BD: Tensor,
        da_n: Tensor,
        direct_n: Tensor | None,
        ranks: FeatureRanks,
    ) -> Through:
        """theta * dL/dtheta = -(theta / w) sum of dL/da in the band; near misses change nothing else."""
        assert selection.band is not None
        da_n = da_n if direct_n is None else da_n + direct_n
        threshold_f = dictionary.thresholds(source).to(da_n.dtype)
        in_band_f = torch.zeros_like(threshold_f).index_add_(
            0, selection.entries[source].feature, da_n * selection.band[source]
        )
        grad_f = -threshold_f / self.settings.bandwidth * in_band_f
        return Through(torch.where(selection.active[source], da_n, 0), own={"log_threshold": grad_f})

    def export_thresholds(
        self, norm_F: Tensor, n_targets: int, own: Mapping[str, Tensor], level: float | None
    ) -> Tensor:
        """Those learned."""
        return own["log_threshold"].float().exp()

    def entries(self, active_at_start: float, n_features: int) -> tuple[float, float]:
        """Those above the threshold, and near misses, as many as among Gaussians."""

        def with_near_misses(active: float) -> float:
            level = gaussian_level(active / n_features)
            near = (share_above(level * (1 - self.settings.bandwidth / 2)) - share_above(level)) * n_features
            return active + near * self.settings.band_probability

        mean, most = (with_near_misses(active) for active in super().entries(active_at_start, n_features))
        return mean, most


class Jump(torch.autograd.Function):
    """a = pre * [pre > theta]; a step in theta, so its gradient is a straight-through estimate.

        da/dpre   = [pre > theta]
        da/dtheta = -1 / w * [|pre - theta| <= w theta / 2]

    The second is a kernel estimate: where pre has a smooth density, moving theta up by one loses the entries that lie at
    theta, and those in a band of width w theta around it stand for them. Entries above theta count once; near misses
    (theta (1 - w/2) <= pre <= theta) count as often as `near_miss_BF` says, whose mean is one.
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
        in_band = (pre_BF - theta_F).abs() <= ctx.bandwidth / 2 * theta_F
        count = in_band * torch.where(above, 1, near_miss_BF)
        return grad_BF * above, -(grad_BF * count).sum(0) / ctx.bandwidth, None, None
