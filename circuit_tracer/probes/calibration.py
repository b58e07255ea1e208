"""Thresholds for a wished rate of false alarms, set on texts that have nothing to find, with the interval of the rate.

The threshold is the score of the text of rank k + 1, k = floor(rate * n): at most k of n negatives are above it. If new texts
are drawn as these were, the share of them above it is distributed as Beta(k + 1, n - k), whatever the scores are; its 2.5 and
97.5 percentiles are the interval. It is the rate for such texts: of another stream it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.probes.probe import Probe

LEVEL = 0.95


@dataclass(frozen=True)
class Calibration:
    """A threshold set on `negatives` texts, `above` of which are above it. wished: the rate; low, high: of the true one."""

    threshold: float
    wished: float
    negatives: int
    above: int
    low: float
    high: float

    @property
    def enough(self) -> bool:
        """Whether so few alarms can be told apart from none."""
        return self.wished * self.negatives >= 1

    def applied(self, probe: Probe) -> Probe:
        """The probe with this threshold, and the calibration in its card."""
        return replace(probe, threshold=self.threshold, card={**probe.card, "calibration": self.to_json()})

    def to_json(self) -> dict[str, Any]:
        """As a card keeps it."""
        return asdict(self)


def calibrate(scores: Sequence[float], rate: float) -> Calibration:
    """The threshold above which at most a share `rate` of the scores of negative texts lies. Raises InputError."""
    if not 0 < rate < 1:
        raise InputError(f"the wished rate of false alarms is {rate}; expected a share between 0 and 1, such as 0.01")
    if not scores:
        raise InputError("a threshold is set on texts that have nothing to find; there is none")
    ranked = sorted(scores, reverse=True)
    allowed = math.floor(rate * len(ranked) + 1e-9)
    threshold = ranked[allowed]
    above = sum(score > threshold for score in ranked)
    return Calibration(threshold, rate, len(ranked), above, *rate_interval(above, len(ranked)))


def rate_interval(above: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentiles of Beta(above + 1, total - above): the share of new texts over the text of rank above + 1 of `total`."""
    ends = (1 - level) / 2, (1 + level) / 2
    low, high = (_quantile(end, above, total) for end in ends)
    return low, high


def _quantile(share: float, above: int, total: int) -> float:
    """The p with P(Binomial(total, p) > above) = share, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - _binomial(above, total, middle) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _binomial(most: int, total: int, p: float) -> float:
    """P(Binomial(total, p) <= most), 0 < p < 1."""
    rows = range(min(most, total) + 1)
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in rows]
    terms = (log + k * math.log(p) + (total - k) * math.log1p(-p) for k, log in zip(rows, logs, strict=True))
    return min(1.0, math.fsum(map(math.exp, terms)))
