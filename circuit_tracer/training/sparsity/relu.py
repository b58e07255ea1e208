"""ReLU: what is positive is active. In few steps it wants a higher learning rate than other rules (training/README.md §8)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Dense, Now
from circuit_tracer.training.sparsity.penalty import PenaltyRule, start_thresholds
from circuit_tracer.training.sparsity.selection import Selection, above, all_active
from circuit_tracer.training.step.dictionary import Dictionary, row_norms

# Of what log L0 is off, the share that a bias falls by after a step, in units of the encoder's norm. For a few percent of
# Gaussians, log L0 falls by about 2.4 for each 1 in units of the spread: half of the error goes.
STEERED = 0.2


class ReLU(PenaltyRule):
    """a = max(pre, 0)."""

    def start_(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], active: float, ranks: FeatureRanks) -> None:
        """Biases as far below zero as ``active`` features need; those that a dictionary came with stay."""
        for source, (x_BD, bias_f) in enumerate(zip(x_SBD, dictionary.b_enc, strict=True)):
            started_f = start_thresholds(dictionary, source, x_BD, active, ranks).neg_().to(bias_f.dtype)
            bias_f.copy_(torch.where(bias_f == 0, started_f, bias_f))

    def steer_(self, dictionary: Dictionary, excess: Tensor, rare: Sequence[Tensor]) -> None:
        """All biases, each by a share of its feature's encoder norm: about that of the spread of its pre-activations."""
        for weight_fD, bias_f in zip(dictionary.W_enc, dictionary.b_enc, strict=True):
            bias_f -= (STEERED * excess) * row_norms(weight_fD).to(bias_f.dtype)

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        return [torch.relu(p) for p in given.pre]

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """Entries above zero."""
        zeros = [torch.zeros_like(bias) for bias in dictionary.b_enc]
        return all_active(above(dictionary, x_SBD, zeros, None, ranks, now.rooms, now.questions))

    def export_thresholds(
        self, norm_F: Tensor, n_targets: int, log_threshold_F: Tensor | None, level: float | None
    ) -> None:
        """None."""
