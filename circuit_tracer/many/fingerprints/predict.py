"""Can a label be predicted from fingerprints, and better than from less? A classifier, always beside its baselines.

Letters: N rows, B draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from circuit_tracer.arguments import typed
from circuit_tracer.classify.folds import Array, Learner, auc_within, cross_scores, group_draws, grouped_folds, interval
from circuit_tracer.classify.labels import positive_label
from circuit_tracer.classify.linear import Linear
from circuit_tracer.errors import InputError
from circuit_tracer.extras import missing_extra
from circuit_tracer.many.fingerprints.classifiers import STRENGTHS, Probe, Trees
from circuit_tracer.many.fingerprints.evidence import Evidence
from circuit_tracer.many.fingerprints.names import FAMILIES

FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Score:
    """One predictor.

    Attributes:
        auc: Share of pairs of rows, one positive and one negative, that it orders rightly (within folds), with the interval
            ``low`` to ``high`` over groups.
        ahead: The fingerprint's AUC less this one's, in the same draws.
    """

    name: str
    reads: str
    columns: int
    auc: float
    low: float
    high: float
    ahead: float
    ahead_low: float
    ahead_high: float


@dataclass(frozen=True)
class Prediction:
    """How well a label is predicted, and by what.

    Attributes:
        without_label: Rows that were left out.
        scores: Of the fingerprint, its baselines, and the fingerprint without each of its families.
        places: Of the residual stream the one that the probe chose, by fold (0: before the first layer, k: behind the
            k-th).
        out_of_fold: {predictor: {id: score}}, each by what learned on other folds.
    """

    positive: str
    rows: int
    positives: int
    groups: int
    folds: int
    without_label: int
    scores: list[Score]
    places: list[int]
    out_of_fold: dict[str, dict[str, float]]

    def __getitem__(self, name: str) -> Score:
        """The score of a predictor; KeyError for one that there is not."""
        return {score.name: score for score in self.scores}[name]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the scores of single rows."""
        found = asdict(self)
        del found["out_of_fold"]
        return found

    def lines(self) -> list[str]:
        """A table for people."""
        head = (
            f"{self.positives} of {self.rows} rows are {self.positive}; {self.groups} groups in {self.folds} folds"
            + (f"; {self.without_label} rows have no label" if self.without_label else "")
        )
        rows = [
            f"{each.name:36}{each.auc:6.3f}  {each.low:.3f}..{each.high:.3f}"
            + ("" if each.name == FINGERPRINT else f"{each.ahead:+9.3f}  {each.ahead_low:+.3f}..{each.ahead_high:+.3f}")
            for each in self.scores
        ]
        return [head, "", f"{'':36}{'AUC':>6}  95 %{'':10}fingerprint ahead, 95 %", *rows]


class Split(NamedTuple):
    """rows: those with a label. Of each of them, positive_N: whether it has the value named positive; its group; its fold."""

    rows: Array
    positive: str
    positive_N: Array
    group_N: Array
    fold_N: Array


def split(
    ids: Sequence[str],
    labels: Mapping[str, Any],
    groups: Mapping[str, Any] | None = None,
    *,
    positive: Any = None,
    folds: int = 5,
    seed: int = 0,
) -> Split:
    """What `predict` learns from and tests on; it needs no evidence, which takes long to gather.

    Args:
        ids: Of the rows.
        labels: Value by id; rows without one are left out.
        groups: Value by id; None: each row is a group of its own.
        positive: The value that is predicted; None: the true one of true and false, yes and no, 1 and 0.
        folds: Parts of the cross-validation.
        seed: Of the folds.

    Returns:
        The folds.

    Raises:
        InputError: For labels without two sides, for a row without group, for too few groups, or without scikit-learn.
    """
    try:
        import sklearn  # noqa: F401 (before any work)
    except ImportError as error:
        raise missing_extra("classifiers", error) from error
    if folds < 2:
        raise InputError(f"folds is {folds}; expected at least 2")
    rows = np.array([row for row, one in enumerate(ids) if labels.get(one) is not None], dtype=int)
    labelled = [ids[row] for row in rows]
    texts = [str(labels[one]) for one in labelled]
    name = positive_label(texts, positive, "the rows with a label")
    positive_N = np.array([text == name for text in texts])
    group_N = np.array(_groups(labelled, groups))
    return Split(rows, name, positive_N, group_N, grouped_folds(positive_N, group_N, folds, seed))


@typed
def predict(
    evidence: Evidence,
    labels: Mapping[str, Any],
    groups: Mapping[str, Any] | None = None,
    *,
    positive: Any = None,
    folds: int = 5,
    draws: int = 2000,
    seed: int = 0,
) -> Prediction:
    """Predict a label with two values from each row's evidence, by grouped cross-validation.

    Args:
        evidence: Of `gather` or `evidence_of`.
        labels: Value by id; rows without one are left out.
        groups: Value by id; rows of one group are never on both sides of a fold, and intervals are over groups. None: each
            row is a group of its own.
        positive: The value that is predicted, all others are not it; None: the true one of true and false, yes and no, 1
            and 0.
        folds: Parts of the cross-validation.
        draws: Of the bootstrap.
        seed: Of folds and draws.

    Returns:
        AUC with interval of the fingerprint and of each baseline, and the scores out of fold.

    Raises:
        InputError: As `split` does, and for draws below 1.
    """
    if draws < 1:
        raise InputError(f"draws is {draws}; expected at least 1")
    rows, name, positive_N, group_N, fold_N = split(
        evidence.ids, labels, groups, positive=positive, folds=folds, seed=seed
    )
    ids = [evidence.ids[row] for row in rows]
    weight_BN = group_draws(group_N, draws, seed)
    probe = Probe(evidence.stream[rows], positive_N, group_N, seed)
    scores, aucs, found = dict[str, Array](), dict[str, Array](), list[Score]()
    for predictor, reads, columns, learner in _predictors(evidence, rows, positive_N, probe, seed):
        scores[predictor] = cross_scores(learner, fold_N)
        auc_B = aucs[predictor] = auc_within(scores[predictor], positive_N, fold_N, weight_BN)
        ahead_B = aucs[FINGERPRINT] - auc_B
        low, high = interval(auc_B, folds)
        spans = (max(0.0, low), min(1.0, high), float(ahead_B[0]), *interval(ahead_B, folds))
        found.append(Score(predictor, reads, columns, float(auc_B[0]), *spans))
    return Prediction(
        positive=name,
        rows=len(ids),
        positives=int(positive_N.sum()),
        groups=len(np.unique(group_N)),
        folds=folds,
        without_label=len(evidence.ids) - len(ids),
        scores=found,
        places=[place for place, _ in probe.chosen],
        out_of_fold={each: dict(zip(ids, score_N.tolist(), strict=True)) for each, score_N in scores.items()},
    )


def _predictors(
    evidence: Evidence, rows: Array, positive_N: Array, probe: Probe, seed: int
) -> Iterator[tuple[str, str, int, Learner]]:
    """(name, what it reads, how many numbers, learner) of each; the fingerprint first."""

    def trees(values: Array) -> tuple[int, Learner]:
        return values.shape[1], Trees(values[rows], positive_N, seed)

    real, logits = evidence.fingerprints, evidence.logits.values
    yield FINGERPRINT, "all numbers of the graph", *trees(real.values)
    yield "logits alone", "statistics of the model's logits, no graph", *trees(logits)
    yield (
        "logits alone, linear",
        "the same, logistic regression",
        logits.shape[1],
        Linear(logits[rows], positive_N, STRENGTHS[-1]),
    )
    yield "linear probe", "the residual stream at one layer, no graph", evidence.stream.shape[2], probe
    yield "random dictionary", "all numbers of the graph with a random dictionary", *trees(evidence.random.values)
    for left_out in FAMILIES:
        yield (
            f"fingerprint without {left_out}",
            f"all but {left_out}.*",
            *trees(real.without(left_out)),
        )


def _groups(ids: list[str], groups: Mapping[str, Any] | None) -> list[str]:
    if groups is None:
        return ids
    if missing := [one for one in ids if groups.get(one) is None]:
        raise InputError(
            f"{len(missing)} of {len(ids)} rows with a label have no group, such as {missing[0]!r}; give each one, or leave "
            "the groups out if rows have nothing in common"
        )
    return [str(groups[one]) for one in ids]
