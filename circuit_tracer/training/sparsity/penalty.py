"""Rules that the tanh penalty (§5) keeps sparse."""

from __future__ import annotations

import math
from collections.abc import Iterator

from circuit_tracer.training.sparsity.base import Rule


class PenaltyRule(Rule):
    """Decides feature by feature; how many are active is up to the loss."""

    def contradictions(self, n_features: int) -> Iterator[str]:
        """Without a weight nothing is sparse."""
        if self.settings.penalty == 0:
            yield (
                f"sparsity.penalty is 0 with sparsity.activation {self.settings.activation}, so that nothing keeps features "
                "rare; give a weight such as 1.0, or use activation batch_topk"
            )


def share_above(cut: float) -> float:
    """Share of pre-activations above ``cut`` at the start, when they are unit Gaussians (§3).

    Plans count with it: nobody knows how fast a penalty will thin them out.
    """
    return 0.5 * math.erfc(cut / math.sqrt(2))
