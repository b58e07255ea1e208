"""Logistic regression over columns of unit variance, and what it is over the columns as they are.

Letters: N rows, M columns.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from circuit_tracer.classify.folds import Array

Penalty = Literal["l2", "l1"]
ITERATIONS = 200


class LinearRule(NamedTuple):
    """score = values @ weight + bias. weight: (M,) float64."""

    weight: Array
    bias: float

    def scores(self, values_NM: Any) -> Array:
        """(N,) of dense or sparse rows."""
        return np.asarray(values_NM @ self.weight + self.bias)


def logistic(values_NM: Any, positive_N: Array, strength: float, penalty: Penalty = "l2") -> LinearRule:
    """Fitted with both classes weighing the same. strength: C, of columns of unit variance; others get no weight.

    Columns are centred too, unless the rows are sparse. The scaling is folded into weight and bias:
    w = v / std, b = c - <v, mean / std>.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    mean_M, std_M = _moments(values_NM)
    varies = std_M > 1e-9 * (1 + abs(mean_M))
    scale_M = np.where(varies, 1 / np.where(varies, std_M, 1), 0)
    if isinstance(values_NM, np.ndarray):
        scaled: Any = (values_NM - mean_M) * scale_M
    else:
        scaled, mean_M = values_NM.multiply(scale_M[None]).tocsr(), np.zeros_like(mean_M)
        scaled.indices, scaled.indptr = (
            scaled.indices.astype(np.int32),
            scaled.indptr.astype(np.int32),
        )  # as liblinear wants
    made = LogisticRegression(C=strength, max_iter=ITERATIONS, class_weight="balanced", **_settings(penalty))
    with (
        warnings.catch_warnings(),
        threadpool_limits(1, "blas"),
    ):  # its threads wait for each other longer than they work
        warnings.simplefilter("ignore")  # that it stopped at ITERATIONS: the order of scores has long settled
        made.fit(scaled, positive_N)
    weight_M = np.asarray(made.coef_[0], np.float64) * scale_M
    return LinearRule(weight_M, float(made.intercept_[0]) - float(weight_M @ mean_M))


def mean_difference(values_NM: Any, positive_N: Array) -> LinearRule:
    """w = mean of the positive rows - mean of the others; the score is 0 half-way between them."""
    up_M, down_M = (np.asarray(values_NM[which].mean(0), np.float64).ravel() for which in (positive_N, ~positive_N))
    weight_M = up_M - down_M
    return LinearRule(weight_M, -float(weight_M @ (up_M + down_M)) / 2)


@dataclass(frozen=True)
class Linear:
    """Logistic regression over columns (N, M) of unit variance, as a learner (folds.py); C is ``strength``."""

    values_NM: Any
    positive_N: Array
    strength: float
    penalty: Penalty = "l2"

    def __call__(self, train: Array, test: Array) -> Array:
        rule = logistic(self.values_NM[train], self.positive_N[train], self.strength, self.penalty)
        return rule.scores(self.values_NM[test])


def _moments(values_NM: Any) -> tuple[Array, Array]:
    """Mean and standard deviation of every column."""
    if isinstance(values_NM, np.ndarray):
        return values_NM.mean(0), values_NM.std(0)
    n_rows, n_columns = values_NM.shape
    column, value = values_NM.indices, values_NM.data.astype(np.float64)
    mean_M = np.bincount(column, value, n_columns) / n_rows
    away_M = np.bincount(column, (value - mean_M[column]) ** 2, n_columns)
    zeros_M = n_rows - np.bincount(column, minlength=n_columns)
    return mean_M, np.sqrt((away_M + zeros_M * mean_M**2) / n_rows)


def _settings(penalty: Penalty) -> dict[str, Any]:
    """scikit-learn calls the penalty `l1_ratio` from 1.8 on."""
    if penalty == "l2":
        return {}
    from sklearn.linear_model import LogisticRegression

    named = {"l1_ratio": 1.0} if LogisticRegression().penalty == "deprecated" else {"penalty": "l1"}
    return {**named, "solver": "liblinear", "random_state": 0}
