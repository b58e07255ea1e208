"""Fit a probe, and say how well it does on groups that it has not seen, beside what has less to go by.

    made = fit(model, read_examples("names.jsonl"), layer=12, pool="token")
    print("\\n".join(made.lines())); made.probe.save("names.safetensors")

README.md has the method. Letters: N rows, M columns, K folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from circuit_tracer.arguments import require_seed, typed
from circuit_tracer.classify.linear import LinearRule
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.extras import missing_extra
from circuit_tracer.fingerprint import VERSION, model_fingerprint, transcoder_fingerprint
from circuit_tracer.models.sites import site_of
from circuit_tracer.models.sources import public_name
from circuit_tracer.probes.compare import Split, measure, split_of
from circuit_tracer.probes.evaluate import RATES, Alarm, Scores, alarm, by_text, lowest_alarm
from circuit_tracer.probes.examples import Example, require_fit
from circuit_tracer.probes.learn import Method, learn
from circuit_tracer.probes.probe import FEATURES, Pool, Probe
from circuit_tracer.probes.reading import Subject
from circuit_tracer.probes.show import WIDTH, table_lines
from circuit_tracer.probes.table import WORDS, Columns, Table, gather
from circuit_tracer.progress import Progress, silent

FEWEST_FOLDS = 3  # one to learn from, one to set thresholds on, one to test on


@dataclass(frozen=True)
class Fit:
    """A probe, and what it reaches beside its baselines.

    Attributes:
        probe: Learned from all folds but one, which set its threshold.
        scores: Of every kind of columns, the probe's own first; each is learned, set and tested on three parts in turn.
        notes: What a reader should know.
    """

    probe: Probe
    scores: list[Scores]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values; the scores and notes are in the card."""
        probe = self.probe
        return {"name": probe.name, "threshold": probe.threshold, "bias": probe.bias, "card": probe.card}

    def lines(self) -> list[str]:
        """A table for people."""
        reading = f"{'reading the model':{WIDTH}}{1e6 * self.probe.card['seconds_a_token']:>23.2f} us"
        return [*table_lines(self.scores), reading, *(f"note: {note}" for note in self.notes)]


@typed
def fit(
    model: Any,
    examples: Sequence[Example],
    *,
    layer: int,
    site: str = "hook_resid_post",
    columns: Columns = "stream",
    feature_layers: Sequence[int] | None = None,
    pool: Pool = "last",
    method: Method = "l2",
    rate: float = 0.01,
    negatives: Sequence[Example] = (),
    folds: int = 5,
    draws: int = 1000,
    seed: int = 0,
    name: str = "probe",
    progress: Progress = silent,
) -> Fit:
    """A probe on a site of a layer, on features, or both, with what it reaches on groups that it has not seen.

    Args:
        model: As `Subject.of` takes it.
        examples: With labels or spans.
        layer: That is read.
        site: Place of the layer that is read (`models/sites.py`).
        columns: What the probe reads; the others are measured beside it.
        feature_layers: Whose features are read; None: the layer's own, if the dictionary has it.
        pool: What is read of a text: each "token", its "last", their "mean" or "max".
        method: How weights are learned.
        rate: Of false positives, at which it fires.
        negatives: More examples without what is looked for, on which thresholds are set and nothing is learned.
        folds: Parts of the cross-validation, whole groups in one.
        draws: Of the bootstrap over groups.
        seed: Of folds and draws.
        name: Of the probe.
        progress: Called with (stage, done, total).

    Returns:
        The probe and what it reaches.

    Raises:
        InputError: For examples of one class, fewer groups of either than folds, a text on both sides, or without
            scikit-learn.
        CompatibilityError: For a place or a dictionary that there is not.
    """
    _check(folds, draws, rate, seed)
    subject = Subject.of(model)
    place = site_of(subject.parts, site).name, layer
    layers = _feature_layers(subject, layer, feature_layers, columns)
    require_fit([*examples, *negatives])
    _require_negatives(examples, negatives)
    table = gather(subject, [*examples, *negatives], place, layers, pool, seed=seed, progress=progress)
    split = split_of(table, len(examples), folds, seed)
    kinds = sorted(table.columns, key=lambda each: each != columns)
    found = []
    for number, kind in enumerate(kinds):
        progress("fitting", number, len(kinds))
        found.append(measure(table, split, kind, "l2" if kind == WORDS else method, draws, seed))
    progress("fitting", len(kinds), len(kinds))
    rows = np.flatnonzero(split.fold > 0)
    rule, strength = learn(table.columns[columns], table.positive, table.group, rows, method, seed)
    # as it scores, in float32: where no feature is active the score is the bias, and often the threshold too
    rule = LinearRule(rule.weight.astype(np.float32).astype(np.float64), float(np.float32(rule.bias)))
    probe = _probe(rule, table, name, columns, place, pool)
    alarms, own = _alarms(rule, table, split, columns, rate)
    notes = _notes(table, examples, own, rate, layers)
    card = {
        "model": _model_card(subject),
        **({"dictionary": _dictionary_card(subject)} if probe.features else {}),
        "data": _data_card(table, examples, negatives),
        "method": method,
        "strength": strength,
        "seed": seed,
        "alarm": own._asdict(),
        "alarms": alarms,
        "seconds_a_token": table.seconds["reading"],
        "scores": [each.to_json() for each in found],
        "notes": notes,
    }
    return Fit(replace(probe, threshold=own.threshold, card=card), found, notes)


def _check(folds: int, draws: int, rate: float, seed: int) -> None:
    require_seed(seed)
    if folds < FEWEST_FOLDS or draws < 1:
        raise InputError(
            f"folds is {folds} and draws {draws}; at least {FEWEST_FOLDS} (to learn from, to set thresholds on, to test on) "
            "and 1 are needed"
        )
    if not 0 < rate < 1:
        raise InputError(f"rate is {rate}; expected a share of false positives, such as 0.01")
    try:
        import sklearn  # noqa: F401 (before any work)
    except ImportError as error:
        raise missing_extra("probes", error) from error


def _feature_layers(subject: Subject, layer: int, asked: Sequence[int] | None, columns: Columns) -> tuple[int, ...]:
    transcoders = subject.transcoders
    if transcoders is None:
        if asked is not None or columns != "stream":
            raise CompatibilityError("features are asked for, and there is no dictionary; name it (-t)")
        return ()
    if asked is None:
        if layer in transcoders.layers:
            return (layer,)
        if columns == "stream":
            return ()
        asked = [layer]
    if not asked or set(asked) - set(transcoders.layers):
        raise CompatibilityError(
            f"features of layers {sorted(asked)} are asked for; the dictionary has {', '.join(map(str, transcoders.layers))}"
            f"{'' if asked else ': name one at least'}"
        )
    return tuple(sorted(set(asked)))


def _require_negatives(examples: Sequence[Example], negatives: Sequence[Example]) -> None:
    groups = {example.group for example in examples} - {None}
    for example in negatives:
        if example.label:
            raise InputError(
                f"{example.where} is positive, and stands among the negatives; give it label 0 and no spans"
            )
        if example.group in groups:
            raise InputError(
                f"{example.where} is of group {example.group!r}, which is learned from; negatives that set thresholds must be "
                "of others"
            )


def _probe(rule: LinearRule, table: Table, name: str, columns: Columns, place: tuple[str, int], pool: Pool) -> Probe:
    """The rule as a probe, without features that have no weight; no threshold yet."""
    d_stream = 0 if columns == "features" else len(table.centre)
    kept = np.flatnonzero(rule.weight[d_stream:])
    features = tuple(table.feature(int(column)) for column in kept)
    weight = np.concatenate([rule.weight[:d_stream], rule.weight[d_stream:][kept]]).astype(np.float32)
    bias = rule.bias - (float(rule.weight[:d_stream] @ table.centre) if columns == "both" else 0.0)
    if columns == "features" and not features:
        raise InputError(
            "no feature got a weight: none of those that are active tells the classes apart. Read other layers"
        )
    site, layer = (FEATURES, None) if columns == "features" else place
    return Probe(name, site, layer, torch.from_numpy(weight), bias, 0.0, pool, features)


def _alarms(
    rule: LinearRule, table: Table, split: Split, columns: Columns, rate: float
) -> tuple[dict[str, Any], Alarm]:
    """Thresholds of rows and of texts by rate, where they can be set, and the probe's own; on negatives of the fold that it has
    not learned from.
    """
    rows = np.flatnonzero(split.fold <= 0)
    scores = rule.scores(table.columns[columns][rows])
    texts = by_text(scores, table.text[rows], len(table.texts))
    negatives = {
        "rows": scores[~table.positive[rows]],
        "texts": texts[np.isfinite(texts) & ~table.positive_texts],
    }
    found = {
        kind: {str(each): made._asdict() for each in RATES if (made := alarm(negatives_n, each)) is not None}
        for kind, negatives_n in negatives.items()
    }
    return found, lowest_alarm(negatives["rows"], rate)


def _notes(table: Table, examples: Sequence[Example], own: Alarm, rate: float, layers: Sequence[int]) -> list[str]:
    found = []
    if own.rate > rate:
        found.append(
            f"{own.negatives} held-out negatives cannot set a threshold at {rate:.3g}; the probe's is their highest score, a "
            f"rate of {own.rate:.3g}. Give more negatives (--negatives)"
        )
    if all(example.group is None for example in examples):
        found.append(
            "no example names its group, so each is its own: texts that resemble each other may be learned from and tested on"
        )
    if not layers:
        found.append("no dictionary, or none at this layer: nothing is said of features and of a random dictionary")
    if (table.position >= 0).any():
        found.append(
            "rows are tokens; those of one text resemble each other, so rates hold less surely than for as many texts"
        )
    return found


def _model_card(subject: Subject) -> dict[str, Any]:
    config = subject.parts.config
    return {
        "name": public_name(config.model_name),
        "fingerprint": model_fingerprint(subject.parts),
        "version": VERSION,
        "dtype": config.dtype,
    }


def _dictionary_card(subject: Subject) -> dict[str, Any]:
    transcoders = subject.transcoders
    assert transcoders is not None
    scan = transcoders.scan
    return {
        "name": public_name(scan if isinstance(scan, str) else scan[0] if scan else transcoders.kind),
        "fingerprint": transcoder_fingerprint(transcoders),
        "version": VERSION,
        "dtype": str(transcoders.dtype).removeprefix("torch."),
    }


def _data_card(table: Table, examples: Sequence[Example], negatives: Sequence[Example]) -> dict[str, Any]:
    own = table.text < len(examples)
    return {
        "examples": len(examples),
        "positive": int(table.positive_texts[: len(examples)].sum()),
        "groups": len(np.unique(table.group[own])),
        "rows": int(own.sum()),
        "positive_rows": int(table.positive[own].sum()),
        "spans": any(example.spans is not None for example in examples),
        "negatives": len(negatives),
    }
