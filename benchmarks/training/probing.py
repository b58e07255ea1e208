"""Sparse probing: how much of a question a few features answer.

The k features whose mean differs most between both answers, in units of their spread, and a least-squares classifier on them;
accuracy on tokens of other documents, as many with either answer.

Letters: N tokens, F features, k of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.training.labelled import TASKS, Rows

FEW = (1, 5)  # k
LEAST = 100  # tokens with either answer
RIDGE = 1e-3  # of the features' mean square


def probed(train: Rows, test: Rows, features_train_NF: Tensor, features_test_NF: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy by task, for every k of `FEW` and with all features."""
    found = {}
    for task in TASKS:
        chosen = [_balanced(rows.labels[task]) for rows in (train, test)]
        sides = [(features[rows], one.labels[task][rows]) for features, rows, one in zip(
            (features_train_NF, features_test_NF), chosen, (train, test), strict=True)]  # fmt: skip
        order = _by_difference(*sides[0])
        found[task] = {str(k): _accuracy(sides, order[:k]) for k in FEW} | {"all": _accuracy(sides, order)}
    return found


def _balanced(label_N: Tensor) -> Tensor:
    """Numbers of tokens, as many with either answer, drawn alike at every call."""
    generator = torch.Generator().manual_seed(0)
    each = [(label_N == answer).nonzero()[:, 0] for answer in (True, False)]
    count = min(map(len, each))
    if count < LEAST:
        raise SystemExit(f"{count} tokens with one of both answers, at least {LEAST} are wanted: ask for more --tokens")
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)[:count]] for rows in each])


def _by_difference(feature_NF: Tensor, label_N: Tensor) -> Tensor:
    difference_F = feature_NF[label_N].mean(0) - feature_NF[~label_N].mean(0)
    return (difference_F.abs() / (feature_NF.std(0) + 1e-6)).argsort(descending=True, stable=True)


def _accuracy(sides: list[tuple[Tensor, Tensor]], features: Tensor) -> float:
    """Of a classifier fitted on the first side, on the second."""
    (train_Nk, answer_N), (test_Nk, truth_N) = ((values[:, features].double(), labels) for values, labels in sides)
    mean_k = train_Nk.mean(0)
    centred_Nk = train_Nk - mean_k
    gram_kk = centred_Nk.T @ centred_Nk
    gram_kk.diagonal().add_(RIDGE * gram_kk.diagonal().mean() + 1e-9)
    weight_k = torch.linalg.solve(gram_kk, centred_Nk.T @ (2.0 * answer_N.double() - 1))
    return float((((test_Nk - mean_k) @ weight_k > 0) == truth_N).double().mean())
