"""What is known of one feature as JSON, in the fields that Anthropic's, circuit-tracer's and this project's viewers read.

Letters: W window, B bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuit_tracer.features.logits import LogitEffects
from circuit_tracer.features.summary import BINS, Examples, LayerSummary

QUANTILES = 5  # groups that the evenly drawn examples are shown in
PERCENTILES = 100


@dataclass(frozen=True)
class LayerRecords:
    """The records of one layer's features, made one by one.

    index: the features, ascending; effects: theirs, row by row. summary: None if there was no text. n_tokens: tokens that
    count. before: tokens of a window in front of the one in question.
    """

    transcoder_id: str
    layer: int
    index: np.ndarray
    effects: LogitEffects
    summary: LayerSummary | None
    n_tokens: int
    before: int
    text: Callable[[int], str]

    def record(self, row: int) -> dict[str, Any]:
        """That of feature ``index[row]``; without examples for one that was never active."""
        feature = int(self.index[row])
        effects = self.effects
        return {
            "transcoder_id": self.transcoder_id,
            "layer": self.layer,
            "index": feature,
            **self._activity(feature),
            "top_logits": [self.text(token) for token in effects.top[row].tolist()],
            "bottom_logits": [self.text(token) for token in effects.bottom[row].tolist()],
            "top_logit_values": _short(effects.top_value[row].tolist()),
            "bottom_logit_values": _short(effects.bottom_value[row].tolist()),
            "logit_spread": _round(float(effects.spread[row])),
            "n_vocabulary": effects.vocabulary,
        }

    def _activity(self, feature: int) -> dict[str, Any]:
        summary = self.summary
        if summary is None or (place := _find(summary.feature, feature)) is None:
            activity = {"act_min": 0.0, "act_max": 0.0, "quantile_values": [], "histogram": [], "n_active": 0}
            return {"examples_quantiles": [], **activity, "n_tokens": self.n_tokens, "activation_frequency": 0.0}
        count, most, least = int(summary.count[place]), float(summary.most[place]), float(summary.least[place])
        width = 2.0 ** float(summary.exponent[place]) / BINS if most > 0 else 0.0
        used = int(np.flatnonzero(summary.bins[place])[-1]) + 1
        histogram = summary.bins[place][:used]
        return {
            "examples_quantiles": self._groups(feature),
            "act_min": min(0.0, _round(least)),
            "act_max": _round(most),
            "quantile_values": _short(quantile_values(histogram, width, most)),
            "histogram": histogram.tolist(),
            "n_active": count,
            "n_tokens": self.n_tokens,
            "activation_frequency": _round(count / self.n_tokens),
        }

    def _groups(self, feature: int) -> list[dict[str, Any]]:
        assert self.summary is not None
        top, sample = _of(self.summary.top, feature), _of(self.summary.sample, feature)
        shown = set(top.key.tolist())
        groups = [{"quantile_name": "Top activations", "examples": self._examples(top, set())}]
        from_best = sample.take(np.lexsort((sample.place, -sample.value)))
        for number, rows in enumerate(np.array_split(np.arange(len(from_best.value)), QUANTILES)):
            if len(rows):
                high, low = (100 - 100 * part // QUANTILES for part in (number, number + 1))
                examples = self._examples(from_best.take(rows), shown)
                groups.append({"quantile_name": f"Activations from {low} % to {high} %", "examples": examples})
        return groups

    def _examples(self, examples: Examples, shown: set[int]) -> list[dict[str, Any]]:
        columns = zip(examples.tokens, examples.acts, examples.key.tolist(), strict=True)
        return [self._example(tokens, acts, key in shown) for tokens, acts, key in columns]

    def _example(self, tokens_W: np.ndarray, acts_W: np.ndarray, repeated: bool) -> dict[str, Any]:
        inside = tokens_W >= 0
        return {
            "tokens": [self.text(token) for token in tokens_W[inside].tolist()],
            "tokens_acts_list": _short(acts_W[inside].tolist()),
            "train_token_ind": int(inside[: self.before].sum()),
            "is_repeated_datapoint": repeated,
        }


def quantile_values(histogram: np.ndarray, width: float, most: float) -> list[float]:
    """The 1st to 100th percentile of a histogram's activations, interpolated within bins; the last is ``most``."""
    if width == 0:
        return [most] * PERCENTILES
    cumulative = np.cumsum(histogram)
    rank = -(-np.arange(1, PERCENTILES + 1) * int(cumulative[-1]) // PERCENTILES)  # of 1 ... number of activations
    place = np.searchsorted(cumulative, rank)
    within = (rank - cumulative[place] + histogram[place]) / histogram[place]
    values = np.minimum((place + within) * width, most)
    return [float(value) for value in values[:-1]] + [most]


def _of(examples: Examples, feature: int) -> Examples:
    start, stop = np.searchsorted(examples.feature, [feature, feature + 1])
    return examples.take(np.arange(start, stop))


def _find(ascending: np.ndarray, value: int) -> int | None:
    place = int(np.searchsorted(ascending, value))
    return place if place < len(ascending) and int(ascending[place]) == value else None


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _short(values: list[float]) -> list[float]:
    """Four digits: what a reader can use of an activation. Whole numbers without a point, which is shorter in JSON."""
    return [int(short) if (short := _round(value)) == int(short) else short for value in values]
