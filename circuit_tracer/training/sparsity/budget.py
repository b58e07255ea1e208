"""Rules that keep a number of features, k a token and layer: it falls to ``active``, and becomes thresholds at the end.

Letters: F features of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.training.sparsity.base import Rule


class BudgetRule(Rule):
    """Keeps the largest scores, pre * `scale`."""

    has_budget = True
    has_penalty = False

    def export_thresholds(
        self, norm_F: Tensor, n_targets: int, log_threshold_F: Tensor | None, level: float | None
    ) -> Tensor:
        """The calibrated level, by the scale of each feature."""
        assert level is not None
        scale_F = self.scale(norm_F, n_targets)
        # a feature with scale 0 has score 0 and is never active
        return torch.where(scale_F > 0, level / scale_F, torch.inf).clamp(max=torch.finfo(torch.float32).max).float()
