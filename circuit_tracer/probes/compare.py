"""The same protocol for every kind of columns: learn on some groups, set thresholds on others, test on the rest, in turn.

Letters: N rows, K folds, B draws.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from circuit_tracer.classify.folds import Array, group_draws, grouped_folds
from circuit_tracer.probes.evaluate import (
    RATES,
    Scores,
    at_rate,
    auc_share,
    best_threshold,
    by_text,
    f1,
    rows_within,
    span_hits,
)
from circuit_tracer.probes.learn import Method, learn
from circuit_tracer.probes.table import Table

NUMBERS_AT_ONCE = 2**24  # draws x rows: of many rows there are fewer draws
FEWEST_DRAWS = 100
SETS_THRESHOLDS = -1  # the fold of negatives that are there for nothing else


@dataclass(frozen=True)
class Split:
    """fold: (N,) of each row, whole groups in one; `SETS_THRESHOLDS` of some."""

    fold: Array
    folds: int

    def parts(self, number: int) -> tuple[Array, Array, Array]:
        """Rows to learn from, to set thresholds on, and to test on, when fold ``number`` is tested."""
        test, calibration = self.fold == number, self.fold == (number + 1) % self.folds
        learned = (self.fold >= 0) & ~test & ~calibration
        return np.flatnonzero(learned), np.flatnonzero(calibration), np.flatnonzero(test)

    @property
    def extra(self) -> Array:
        """Rows that only set thresholds."""
        return np.flatnonzero(self.fold == SETS_THRESHOLDS)


def split_of(table: Table, n_examples: int, folds: int, seed: int) -> Split:
    """Folds of the first texts of the table; those behind them set thresholds. InputError for too few groups of a class."""
    own = np.arange(len(table.texts)) < n_examples
    group = np.zeros(len(table.texts), int)
    group[table.text] = table.group
    fold = np.full(len(table.texts), SETS_THRESHOLDS)
    fold[own] = grouped_folds(table.positive_texts[own], group[own], folds, seed)
    return Split(fold[table.text], folds)


def measure(table: Table, split: Split, kind: str, method: Method, draws: int, seed: int) -> Scores:
    """What one kind of columns reaches."""
    values, score_N = table.columns[kind], np.full(len(table.text), np.nan)
    others, others_texts, best = [], [], []
    seconds = 0.0
    for number in range(split.folds):
        learned, calibration, test = split.parts(number)
        rule, _ = learn(values, table.positive, table.group, learned, method, seed)
        started = time.perf_counter()
        score_N[test] = rule.scores(values[test])
        seconds += time.perf_counter() - started
        setting = np.concatenate([calibration, split.extra])
        scores = rule.scores(values[setting])
        negative = ~table.positive[setting]
        others.append(scores[negative])
        texts = by_text(scores, table.text[setting], len(table.texts))
        others_texts.append(texts[np.isfinite(texts) & ~table.positive_texts])
        best.append(best_threshold(scores[: len(calibration)], table.positive[calibration]))
    own = split.fold >= 0
    by_row = score_N[own], table.positive[own], split.fold[own]
    weight_BN = group_draws(table.group[own], draws_of(draws, int(own.sum())), seed)
    found = Scores(
        kind,
        values.shape[1],
        auc_share(*by_row, weight_BN),
        [at_rate(rate, *by_row, others, weight_BN) for rate in RATES],
        seconds=seconds / sum(len(table.texts[text].ids) for text in np.unique(table.text[own])),
    )
    if not (table.position >= 0).any():
        return found
    return _of_tokens(found, table, split, score_N, others_texts, np.array(best), draws, seed)


def _of_tokens(
    found: Scores,
    table: Table,
    split: Split,
    score_N: Array,
    others: list[Array],
    best_K: Array,
    draws: int,
    seed: int,
) -> Scores:
    """With what rows that are tokens say of texts and of spans."""
    own = np.flatnonzero(split.fold >= 0)
    texts = np.unique(table.text[own])
    first = np.searchsorted(table.text, texts)  # rows stand in the order of texts
    score = by_text(score_N[own], table.text[own], len(table.texts))[texts]
    by_text_ = score, table.positive_texts[texts], split.fold[first]
    weight_BN = group_draws(table.group[first], draws_of(draws, len(texts)), seed)
    fires = score_N[own] > best_K[split.fold[own]]
    positive = table.positive[own]
    right = int((fires & positive).sum())
    spans = _f1_spans(table, own, fires) if any(table.examples[text].spans for text in texts) else None
    return Scores(
        found.name,
        found.columns,
        found.auc,
        found.at,
        auc_share(*by_text_, weight_BN),
        [at_rate(rate, *by_text_, others, weight_BN) for rate in RATES],
        f1(int(fires.sum()), int(positive.sum()), right, right),
        spans,
        found.seconds,
    )


def _f1_spans(table: Table, own: Array, fires: Array) -> float:
    total = np.zeros(4, int)
    for text in np.unique(table.text[own]):
        rows = table.text[own] == text
        position = table.position[own][rows]
        inside = rows_within(table.texts[text], table.examples[text].spans or (), position)
        total += span_hits(fires[rows], inside, position)
    return f1(*total.tolist())


def draws_of(draws: int, rows: int) -> int:
    """So many, or as many as `NUMBERS_AT_ONCE` allows for that many rows."""
    return min(draws, max(FEWEST_DRAWS, NUMBERS_AT_ONCE // rows))
