"""Rules that keep a number of features, k a token and layer; it falls to ``active``."""

from __future__ import annotations

from circuit_tracer.training.sparsity.base import Rule


class BudgetRule(Rule):
    """Keeps the largest scores, pre * `scale`."""

    has_budget = True
    has_penalty = False
