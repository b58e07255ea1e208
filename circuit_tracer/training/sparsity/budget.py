"""Rules that keep a number of features, k a token and layer; it falls to ``active``."""

from __future__ import annotations

from collections.abc import Iterator

from circuit_tracer.training.sparsity.base import Rule


class BudgetRule(Rule):
    """Keeps the largest scores, pre * `scale`."""

    def contradictions(self, n_features: int) -> Iterator[str]:
        """k lies between one and all features."""
        active, start = self.settings.active, self.settings.active_at_start
        if active > n_features:
            yield f"sparsity.active is {active}, more than dictionary.features, {n_features}; lower it"
        if start is not None and not active <= start <= n_features:
            yield (
                f"sparsity.active_at_start is {start}; it falls to sparsity.active, so it must lie between "
                f"{active} and dictionary.features, {n_features}"
            )
        if start is not None and self.settings.anneal == 0:
            yield f"sparsity.active_at_start is {start}, which has no effect with sparsity.anneal 0: leave one of them out"

    def entries(self, active_at_start: float, n_features: int) -> tuple[float, float]:
        """k, which falls over a share of the steps."""
        active, anneal = self.settings.active, self.settings.anneal
        mean = active + (active_at_start - active) * anneal / 2
        return min(mean, n_features), min(active_at_start if anneal else mean, n_features)
