"""What learns from rows: boosted trees for tables of numbers, a linear probe for activations. Settings are fixed for all.

A learner is called with the rows to train on and those to score; scores order rows within one call. Nothing of the rows to
score takes part in training, in scaling, or in the choice of a layer.

Letters: N rows, M columns, S places of the residual stream, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from circuit_tracer.many.fingerprints.folds import auc_within, grouped_folds, outside
from circuit_tracer.many.fingerprints.matrix import Array

Learner = Callable[[Array, Array], Array]  # (rows to train on, rows to score) -> their scores

TREES = {"learning_rate": 0.05, "max_iter": 150, "max_leaf_nodes": 8, "min_samples_leaf": 10, "l2_regularization": 1.0}
STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of the probe, on columns of unit variance
INNER_FOLDS = 3
ITERATIONS = 200


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
class Linear:
    """Logistic regression over columns (N, M) of unit variance; C is one of ``STRENGTHS``."""

    values_NM: Array
    positive_N: Array
    strength: float

    def __call__(self, train: Array, test: Array) -> Array:
        from sklearn.linear_model import LogisticRegression

        mean_M, std_M = self.values_NM[train].mean(0), self.values_NM[train].std(0)
        scaled = (self.values_NM - mean_M) / np.where(std_M > 1e-9 * (1 + abs(mean_M)), std_M, np.inf)
        made = LogisticRegression(C=self.strength, max_iter=ITERATIONS, class_weight="balanced")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stopped at ITERATIONS: the order of scores has long settled
            made.fit(scaled[train], self.positive_N[train])
        return np.asarray(made.decision_function(scaled[test]))


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


def cross_scores(learner: Learner, fold_N: Array) -> Array:
    """(N,) the score of each row by what learned on the other folds."""
    score_N = np.zeros(len(fold_N))
    for fold in np.unique(fold_N):
        train, test = outside(fold_N, fold)
        score_N[test] = learner(train, test)
    return score_N
