"""ReLU: what is positive is active. In few steps it wants a higher learning rate than other rules (training/README.md §8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.base import Dense, Now
from circuit_tracer.training.sparsity.penalty import BiasRule
from circuit_tracer.training.sparsity.selection import Selection, above, all_active
from circuit_tracer.training.step.dictionary import Dictionary


class ReLU(BiasRule):
    """a = max(pre, 0)."""

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        return [torch.relu(p) for p in given.pre]

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """Entries above zero."""
        zeros = [torch.zeros_like(bias) for bias in dictionary.b_enc]
        return all_active(above(dictionary, x_SBD, zeros, None, ranks, now.rooms, now.questions))

    def export_thresholds(self, norm_F: Tensor, n_targets: int, own: Mapping[str, Tensor], level: float | None) -> None:
        """None."""
