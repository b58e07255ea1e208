"""Probes of every kind of columns beside scores that nothing was learned for, all on the same groups that were not seen.

Learned ones are those of `circuit_tracer.probes.compare`: learned on some groups, thresholds set on the negatives of others,
tested on the rest, in turn. A score that is not learned (a judge, the model's own probability) has its thresholds set on the
same negatives. Letters: T texts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuit_tracer.classify.folds import Array, group_draws
from circuit_tracer.probes.compare import Split, measure, split_of
from circuit_tracer.probes.evaluate import RATES, AtRate, Share, at_rate, auc_share
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.learn import Method
from circuit_tracer.probes.probe import Pool
from circuit_tracer.probes.reading import Subject
from circuit_tracer.probes.table import Table, gather

DRAWS = 500
Learned = Mapping[str, tuple[str, Method]]  # what a row is called -> the columns, how they are learned


@dataclass(frozen=True)
class Task:
    """Examples, then texts without what is looked for that only set thresholds. groups: by name of a grouping, one an example
    (the others are a group of their own). scores: by name, of every text, higher for what is looked for; shorter lists are of
    the first examples.
    """

    examples: Sequence[Example]
    negatives: Sequence[Example]
    groups: Mapping[str, Sequence[str]]
    scores: Mapping[str, Sequence[float]]

    def table(self, subject: Subject, place: tuple[str, int], layers: Sequence[int], pool: Pool) -> Table:
        """What all kinds of columns are of the texts."""
        return gather(subject, [*self.examples, *self.negatives], place, layers, pool)

    def measured(self, table: Table, learned: Learned, folds: int, seed: int) -> dict[str, list[dict[str, Any]]]:
        """By grouping: a row for each way."""
        found: dict[str, list[dict[str, Any]]] = {}
        for grouping, groups in self.groups.items():
            grouped = [replace(each, group=group) for each, group in zip(self.examples, groups, strict=True)]
            others = [replace(each, group="only thresholds") for each in self.negatives]
            here = replace(table, examples=[*grouped, *others])
            split = split_of(here, len(grouped), min(folds, len(set(groups))), seed)
            rows = []
            for name, (kind, method) in learned.items():
                started = time.perf_counter()
                rows.append(_row(name, measure(here, split, kind, method, DRAWS, seed)))
                print(f"{grouping:10} {name:28} {_shown(rows[-1])}   {time.perf_counter() - started:.0f} s", flush=True)
            for name, scores in self.scores.items():
                rows.append(_unlearned(name, here, split, np.array(scores), seed))
                print(f"{grouping:10} {name:28} {_shown(rows[-1])}", flush=True)
            found[grouping] = rows
        return found


def _row(name: str, scores: Any) -> dict[str, Any]:
    of_texts = scores.texts is not None
    return {
        "name": name,
        "columns": scores.columns,
        "tokens": _found(scores.auc, scores.at) if of_texts else None,
        "texts": _found(scores.texts_auc, scores.texts) if of_texts else _found(scores.auc, scores.at),
        "f1": scores.f1,
        "f1_spans": scores.f1_spans,
        "microseconds": 1e6 * scores.seconds,
    }


def _unlearned(name: str, table: Table, split: Split, score_T: Array, seed: int) -> dict[str, Any]:
    """score_T: of the first texts of the table; those behind it have none."""
    texts = np.arange(len(score_T))
    first = np.searchsorted(table.text, texts)
    fold, group, positive = split.fold[first], table.group[first], table.positive_texts[texts]
    own = fold >= 0
    weight_BN = group_draws(group[own], DRAWS, seed)
    others = []
    for number in range(split.folds):
        setting = ((fold == (number + 1) % split.folds) | ~own) & ~positive
        others.append(score_T[setting])
    auc = auc_share(score_T[own], positive[own], np.zeros(int(own.sum()), int), weight_BN)
    at = [at_rate(rate, score_T[own], positive[own], fold[own], others, weight_BN) for rate in RATES]
    return {"name": name, "columns": None, "tokens": None, "texts": _found(auc, at), "f1": None, "f1_spans": None}


def _found(auc: Share, at: Sequence[AtRate]) -> dict[str, Any]:
    """Recall and what is flagged of negatives, by rate; null where there are too few negatives to set a threshold."""
    return {
        "auc": list(auc),
        "at": {
            str(each.rate): {"recall": list(each.recall), "false": each.false.value} if each.measured else None
            for each in at
        },
    }


def _shown(row: dict[str, Any]) -> str:
    found = row["texts"]
    rates = (f"{rate}: {each['recall'][0]:.3f} ({each['false']:.3f})" for rate, each in found["at"].items() if each)
    tokens = f"tokens {row['tokens']['auc'][0]:.3f} f1 {row['f1']:.3f} " if row["tokens"] else ""
    return f"AUC {found['auc'][0]:.3f}  {'  '.join(rates)} {tokens}"
