"""How well scores tell positive rows from others: thresholds set on other negatives, and what is found with them.

Letters: N rows, n negatives, K folds, B draws, A rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from circuit_tracer.classify.folds import Array, auc_within, interval
from circuit_tracer.probes.examples import Span
from circuit_tracer.probes.probe import finite

RATES = (0.01, 0.001)  # of false positives
ROUNDING = 1e-5  # of the range of scores: how far a text's scores of two passes may lie apart


class Alarm(NamedTuple):
    """threshold: a score above it is an alarm. rate: how often at most a negative like those it was set on raises one, on
    average over what they might have been: k / (n + 1). negatives: n.
    """

    threshold: float
    rate: float
    negatives: int


class Share(NamedTuple):
    """A share of rows with its interval over groups; nan where there are no rows."""

    value: float
    low: float
    high: float

    @classmethod
    def unknown(cls) -> Share:
        """Of no rows."""
        return cls(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class AtRate:
    """What is found at a rate of false positives, with thresholds set on negatives of other groups.

    Attributes:
        measured: Whether there are enough of these, 1 / rate - 1; if not, the shares are nan.
        recall: Of positive rows.
        false: Of negative rows that nothing is learned from or set on, which should be about the rate.
    """

    rate: float
    measured: bool
    negatives: int
    recall: Share
    false: Share


@dataclass(frozen=True)
class Scores:
    """Of one kind of columns.

    Attributes:
        at: By rate.
        texts: The same of whole texts, where rows are tokens, by their highest.
        f1: Of tokens, at thresholds that are best on the rows of another fold; None without spans.
        f1_spans: The same of spans.
        seconds: A token, of scoring alone.
    """

    name: str
    columns: int
    auc: Share
    at: list[AtRate]
    texts_auc: Share | None = None
    texts: list[AtRate] | None = None
    f1: float | None = None
    f1_spans: float | None = None
    seconds: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is not known."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def plain(value: Any) -> Any:
    """JSON values; null for what is not finite."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return finite(value) if isinstance(value, float) else value


def alarm(negatives_n: Array, rate: float) -> Alarm | None:
    """The lowest threshold that keeps a rate of false positives; None if the negatives are too few to set it.

    It is the k-th highest of n scores, k = floor(rate (n + 1)). A further score that is exchangeable with them lies above it
    with probability k / (n + 1) at most, since for that it must be among the k highest of n + 1. The threshold is a hair above
    it (`ROUNDING`): tokens that are alike in many texts have one score up to rounding, which must not say who is above.
    """
    n = len(negatives_n)
    k = math.floor(rate * (n + 1) + 1e-9)
    if k < 1:
        return None
    return Alarm(_just_above(float(np.partition(negatives_n, n - k)[n - k]), negatives_n), k / (n + 1), n)


def lowest_alarm(negatives_n: Array, rate: float) -> Alarm:
    """The same, or that of the lowest rate that so few negatives can set: their highest score. At least one negative."""
    n = len(negatives_n)
    return alarm(negatives_n, rate) or Alarm(_just_above(float(negatives_n.max()), negatives_n), 1 / (n + 1), n)


def _just_above(score: float, scores_n: Array) -> float:
    return score + ROUNDING * float(np.ptp(scores_n))


def auc_share(score_N: Array, positive_N: Array, fold_N: Array, weight_BN: Array) -> Share:
    """AUC within folds, with its interval over groups (classify/folds.py)."""
    auc_B = auc_within(score_N, positive_N, fold_N, weight_BN)
    low, high = interval(auc_B, len(np.unique(fold_N)))
    return Share(float(auc_B[0]), max(0.0, low), min(1.0, high))


def at_rate(
    rate: float, score_N: Array, positive_N: Array, fold_N: Array, others: Sequence[Array], weight_BN: Array
) -> AtRate:
    """others: K arrays, for each fold the scores that its model gives to the negatives which set its threshold."""
    alarms = [alarm(negatives_n, rate) for negatives_n in others]
    set_on = min(map(len, others))
    if any(each is None for each in alarms):
        return AtRate(rate, False, set_on, Share.unknown(), Share.unknown())
    threshold_K = np.array([each.threshold for each in alarms if each is not None])
    fires_N = score_N > threshold_K[fold_N]
    shares = [share(fires_N, which, weight_BN, len(others)) for which in (positive_N, ~positive_N)]
    return AtRate(rate, True, set_on, *shares)


def share(fires_N: Array, which_N: Array, weight_BN: Array, folds: int) -> Share:
    """How many of some rows fire."""
    weight_B = weight_BN @ which_N
    share_B = np.divide(
        weight_BN @ (fires_N & which_N), weight_B, out=np.full(len(weight_B), np.nan), where=weight_B > 0
    )
    if np.isnan(share_B[0]):
        return Share.unknown()
    low, high = interval(share_B, folds)
    return Share(float(share_B[0]), max(0.0, low), min(1.0, high))


def by_text(score_N: Array, text_N: Array, n_texts: int) -> Array:
    """(texts,) the highest score of each."""
    found = np.full(n_texts, -np.inf)
    np.maximum.at(found, text_N, score_N)
    return found


def f1(found: int, true: int, both_found: int, both_true: int) -> float:
    """From how many were found and how many are there, and how many of each are right; 0 if none is."""
    precision, recall = both_found / max(found, 1), both_true / max(true, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def best_threshold(score_N: Array, positive_N: Array) -> float:
    """The threshold with the highest F1 of rows: an alarm is above it."""
    order = np.argsort(-score_N, kind="stable")
    ranked, right = score_N[order], np.cumsum(positive_N[order])
    ends = np.flatnonzero(np.r_[np.diff(ranked) < 0, True])  # behind the last of equal scores
    value = 2 * right[ends] / (ends + 1 + positive_N.sum())
    last = int(ends[np.argmax(value)])
    below = ranked[last + 1] if last + 1 < len(ranked) else ranked[last] - 1
    return float((ranked[last] + below) / 2)


def span_hits(fires_n: Array, inside: Sequence[Array], position_n: Array) -> tuple[int, int, int, int]:
    """(runs, spans, runs that touch a span, spans that a run touches) of one text, for `f1`.

    A run: neighbouring tokens that fire, however long. fires, position: (n,) of the text's rows; inside: for each span,
    (n,) the rows that lie in it.
    """
    fires_n = fires_n.astype(bool)
    begins = fires_n & ~np.r_[False, fires_n[:-1] & (np.diff(position_n) == 1)]
    run_n = np.cumsum(begins) - 1  # of rows that fire, the run
    touched: set[int] = set()
    reached = 0
    for inside_n in inside:
        runs = set(run_n[fires_n & inside_n].tolist())
        touched |= runs
        reached += bool(runs)
    return int(begins.sum()), len(inside), len(touched), reached


def rows_within(text: Any, spans: Sequence[Span], position_n: Array) -> list[Array]:
    """For each span, (n,) which rows of the text lie in it."""
    return [text.within([span])[position_n] for span in spans]
