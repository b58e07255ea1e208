"""A toy rule of sparsity, added as CONTRIBUTING.md says: this file and a row of the table. `pytest -p` loads it.

A feature is active where its pre-activation lies above `sparsity.threshold_start`, which is never learned.

Letters: F features of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.training.ranks import Ranks
from circuit_tracer.training.sparsity import PENALTY_KEYS, RULES, Listed
from circuit_tracer.training.sparsity.base import Dense, Now
from circuit_tracer.training.sparsity.penalty import PenaltyRule, share_above
from circuit_tracer.training.sparsity.selection import Selection, above, all_active
from circuit_tracer.training.step.dictionary import Dictionary

RULES["fixed"] = Listed(
    "tests.support.fixed_threshold:FixedThreshold", "a fixed threshold", (*PENALTY_KEYS, "threshold_start")
)


class FixedThreshold(PenaltyRule):
    """a = pre where pre > threshold_start."""

    def activate(self, given: Dense) -> list[Tensor]:
        """The definition."""
        return [p * (p > self.settings.threshold_start) for p in given.pre]

    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: Ranks) -> Selection:
        """Entries above the threshold."""
        cuts = [torch.full_like(bias, self.settings.threshold_start) for bias in dictionary.b_enc]
        return all_active(above(dictionary, x_SBD, cuts))

    def level(self, norm_n: Tensor, threshold_n: Tensor, running_cut: float | None) -> Tensor:
        """The threshold."""
        return self.settings.threshold_start * norm_n

    def export_thresholds(self, norm_F: Tensor, log_threshold_F: Tensor | None, level: float | None) -> Tensor:
        """The same for all features."""
        return torch.full_like(norm_F, self.settings.threshold_start, dtype=torch.float32)

    def entries(self, active_at_start: float, n_features: int) -> tuple[float, float]:
        """Those above the threshold, at the start."""
        count = share_above(self.settings.threshold_start) * n_features
        return count, count
