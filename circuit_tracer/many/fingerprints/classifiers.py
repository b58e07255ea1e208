"""What learns from rows: boosted trees for tables of numbers, a linear probe for activations. Settings are fixed for all.

A learner is called with the rows to train on and those to score; scores order rows within one call. Nothing of the rows to
score takes part in training, in scaling, or in the choice of a layer.

Letters: N rows, M columns, S places of the residual stream, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from circuit_tracer.classify.folds import Array, auc_within, cross_scores, grouped_folds
from circuit_tracer.classify.linear import Linear

TREES = {"learning_rate": 0.05, "max_iter": 150, "max_leaf_nodes": 8, "min_samples_leaf": 10, "l2_regularization": 1.0}
STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of the probe, on columns of unit variance
INNER_FOLDS = 3


@dataclass(frozen=True)
class Trees:
    """Gradient boosting (histograms of scikit-learn) over columns (N, M)."""

    values_NM: Array
    positive_N: Array
    seed: int

    def __call__(self, train: Array, test: Array) -> Array:
        from sklearn.ensemble import HistGradientBoostingClassifier

        made = HistGradientBoostingClassifier(**TREES, early_stopping=False, random_state=self.seed)
        made.fit(self.values_NM[train], self.positive_N[train])
        return np.asarray(made.decision_function(self.values_NM[test]))


@dataclass(frozen=True)
class Probe:
    """The linear probe: logistic regression on one place of the stream (N, S, D).

    Place and strength are those with the best AUC in grouped cross-validation among the rows to train on, the earliest of
    equals. chosen: (place, strength) of each call.
    """

    stream_NSD: Array
    positive_N: Array
    group_N: Array
    seed: int
    chosen: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, train: Array, test: Array) -> Array:
        positive_n = self.positive_N[train]
        fold_n = grouped_folds(positive_n, self.group_N[train], INNER_FOLDS, self.seed)
        best, found = -1.0, (0, STRENGTHS[0])
        for place in range(self.stream_NSD.shape[1]):
            for strength in STRENGTHS:
                learner = Linear(self.stream_NSD[train, place], positive_n, strength)
                reached = float(
                    auc_within(cross_scores(learner, fold_n), positive_n, fold_n, np.ones((1, len(train))))[0]
                )
                if reached > best + 1e-9:
                    best, found = reached, (place, strength)
        self.chosen.append(found)
        return Linear(self.stream_NSD[:, found[0]], self.positive_N, found[1])(train, test)
