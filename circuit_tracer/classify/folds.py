"""Grouped cross-validation, and how well scores order rows within a fold, with intervals over groups.

A score of one fold's model is compared with scores of the same model alone: pooled over folds, AUC is below .5 for labels that
nothing predicts, since a fold with more positives than usual leaves fewer to train on.

Letters: N rows, G groups, B draws, U different scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from circuit_tracer.classify.intervals import LEVEL, resampled
from circuit_tracer.errors import InputError

Array = np.ndarray[Any, Any]
Learner = Callable[[Array, Array], Array]  # (rows to train on, rows to score) -> their scores


def grouped_folds(positive_N: Array, group_N: Array, folds: int, seed: int) -> Array:
    """(N,) the fold of each row: groups whole, positives spread evenly. Raises InputError for fewer groups of a class than
    folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    for name, which in (("positive", positive_N), ("negative", ~positive_N)):
        if (count := len(np.unique(group_N[which]))) < folds:
            raise InputError(
                f"{int(which.sum())} {name} rows in {count} groups; {folds} folds need that many groups of each kind. Give "
                "more rows, fewer folds, or groups that are smaller"
            )
    fold_N = np.zeros(len(positive_N), dtype=int)
    chosen = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(chosen.split(np.zeros(len(fold_N)), positive_N, group_N)):
        fold_N[test] = number
    return fold_N


def auc_within(score_N: Array, positive_N: Array, fold_N: Array, weight_BN: Array) -> Array:
    """(B,) the share of pairs of a positive and a negative row of one fold that scores order rightly, ties counting half;
    nan without pairs. weight_BN: how often each row counts, a draw a row.
    """
    right, pairs = np.zeros(len(weight_BN)), np.zeros(len(weight_BN))
    for fold in np.unique(fold_N):
        rows = np.flatnonzero(fold_N == fold)
        rows = rows[np.argsort(score_N[rows], kind="stable")]
        starts = np.flatnonzero(np.r_[True, np.diff(score_N[rows]) > 0])
        up_BU = np.add.reduceat(weight_BN[:, rows] * positive_N[rows], starts, axis=1)
        down_BU = np.add.reduceat(weight_BN[:, rows] * ~positive_N[rows], starts, axis=1)
        below_BU = np.cumsum(down_BU, axis=1) - down_BU
        right += (up_BU * (below_BU + down_BU / 2)).sum(1)
        pairs += up_BU.sum(1) * down_BU.sum(1)
    return np.where(pairs > 0, right / np.where(pairs > 0, pairs, 1), np.nan)


def group_draws(group_N: Array, draws: int, seed: int) -> Array:
    """(1 + B, N) how often each row counts: once each in the first draw, then in bootstrap draws of whole groups."""
    _, group_of_N = np.unique(group_N, return_inverse=True)
    count = int(group_of_N.max()) + 1
    return np.concatenate([np.ones((1, len(group_N))), resampled(count, draws, seed)[:, group_of_N]])


def interval(values_B: Array, folds: int) -> tuple[float, float]:
    """The middle ``LEVEL`` of draws, the first of which is the value itself, stretched about it for what draws leave out:
    that other rows would have trained other models.

    folds: 1 where nothing was trained, and nothing is stretched.
    By the corrected variance of Nadeau and Bengio (Machine Learning 52, 2003) for K folds, 1/K + 1/(K - 1) in place of 1/K.
    """
    value, stretch = values_B[0], (1 + folds / (folds - 1)) ** 0.5 if folds > 1 else 1.0
    low, high = np.nanquantile(values_B[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(value - stretch * (value - low)), float(value + stretch * (high - value))


def outside(fold_N: Array, fold: Any) -> tuple[Array, Array]:
    """Rows to train on and rows to test on."""
    return np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)


def cross_scores(learner: Learner, fold_N: Array) -> Array:
    """(N,) the score of each row by what learned on the other folds."""
    score_N = np.zeros(len(fold_N))
    for fold in np.unique(fold_N):
        train, test = outside(fold_N, fold)
        score_N[test] = learner(train, test)
    return score_N
