"""One linear rule from rows: the difference of means, or logistic regression of a strength chosen among groups.

Letters: N rows, M columns.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from circuit_tracer.classify.folds import Array, auc_within, cross_scores, grouped_folds
from circuit_tracer.classify.linear import Linear, LinearRule, Penalty, logistic, mean_difference

Method = Literal["l2", "l1", "mean"]
METHODS: tuple[Method, ...] = get_args(Method)
STRENGTHS = (1e-3, 1e-2, 1e-1)  # C, of columns of unit variance
INNER_FOLDS = 3
MOST_ROWS = 20_000  # that are learned from; of more, positive ones up to half, and others, by chance


def learn(
    values_NM: Any, positive_N: Array, group_N: Array, rows: Array, method: Method, seed: int
) -> tuple[LinearRule, float | None]:
    """(rule, strength) from some rows. The strength is the one with the best AUC in cross-validation over their groups, the
    weakest of equals; the middle one where there are fewer than two groups of a class.
    """
    rows = sampled(rows, positive_N, seed)
    values, positive, group = values_NM[rows], positive_N[rows], group_N[rows]
    if method == "mean":
        return mean_difference(values, positive), None
    strength = _strength(values, positive, group, method, seed)
    return logistic(values, positive, strength, method), strength


def sampled(rows: Array, positive_N: Array, seed: int) -> Array:
    """Some of the rows, ascending, if they are more than `MOST_ROWS`."""
    if len(rows) <= MOST_ROWS:
        return rows
    mixed = np.random.default_rng(seed).permutation(rows)
    up, down = mixed[positive_N[mixed]], mixed[~positive_N[mixed]]
    n_up = min(len(up), max(MOST_ROWS // 2, MOST_ROWS - len(down)))
    return np.sort(np.concatenate([up[:n_up], down[: MOST_ROWS - n_up]]))


def _strength(values: Any, positive: Array, group: Array, penalty: Penalty, seed: int) -> float:
    folds = min(INNER_FOLDS, *(len(np.unique(group[which])) for which in (positive, ~positive)))
    if folds < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    fold = grouped_folds(positive, group, folds, seed)
    best, found = -1.0, STRENGTHS[0]
    for strength in STRENGTHS:
        scores = cross_scores(Linear(values, positive, strength, penalty), fold)
        reached = float(auc_within(scores, positive, fold, np.ones((1, len(fold))))[0])
        if reached > best + 1e-9:
            best, found = reached, strength
    return found
