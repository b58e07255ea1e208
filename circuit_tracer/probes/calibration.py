"""Thresholds for a wished rate of false alarms, set on texts that have nothing to find, with the interval of the rate.

The threshold is a hair above the k-th highest of n negatives' scores, k = floor(rate (n + 1)) (`evaluate.alarm`). If new texts
are drawn as these were, the share of them above it is distributed as Beta(k, n + 1 - k), whatever the scores are, with the
mean k / (n + 1); its 2.5 and 97.5 percentiles are the interval. It is the rate for such texts: of another stream it says
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.probes.evaluate import Alarm, lowest_alarm
from circuit_tracer.probes.probe import Probe

if TYPE_CHECKING:
    from circuit_tracer.probes.incoming import Incoming
    from circuit_tracer.probes.monitor import Monitor

LEVEL = 0.95


@dataclass(frozen=True)
class Calibration:
    """A threshold set on so many negatives.

    Attributes:
        wished: The rate of false alarms.
        rate: The one expected, which is higher if the negatives are too few for that wished.
        low: Where the true one lies.
        high: Where the true one lies.
    """

    threshold: float
    wished: float
    rate: float
    low: float
    high: float
    negatives: int

    def applied(self, probe: Probe) -> Probe:
        """The probe with this threshold; in its card the calibration, and the alarm that it now is."""
        alarm = Alarm(self.threshold, self.rate, self.negatives)._asdict()
        card = {**probe.card, "alarm": alarm, "calibration": asdict(self)}
        return replace(probe, threshold=self.threshold, card=card)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def calibrate(scores: Sequence[float], rate: float) -> Calibration:
    """Of the scores of negative texts.

    Args:
        scores: Of negative texts.
        rate: Of false alarms that is wished, 0 to 1.

    Returns:
        The threshold, the rate that it stands for, and where the true one lies.

    Raises:
        InputError: For a rate outside 0..1, or no scores.
    """
    if not 0 < rate < 1:
        raise InputError(f"the wished rate of false alarms is {rate}; expected a share between 0 and 1, such as 0.01")
    if not scores:
        raise InputError("a threshold is set on texts that have nothing to find; there is none")
    found = lowest_alarm(np.array(scores, dtype=np.float64), rate)
    rank = round(found.rate * (found.negatives + 1))
    return Calibration(found.threshold, rate, found.rate, *rate_interval(rank, found.negatives), found.negatives)


def calibrated(monitor: Monitor, negatives: Iterable[Incoming | str], rate: float) -> list[tuple[Probe, Calibration]]:
    """The monitor's probes with thresholds set on a stream of texts.

    Args:
        monitor: With the probes.
        negatives: Texts without what the probes look for.
        rate: Of false alarms that is wished, 0 to 1.

    Returns:
        The probes with their thresholds, and what each stands for.

    Raises:
        InputError: For a text that cannot be read.
    """
    scores: dict[str, list[float]] = {probe.name: [] for probe in monitor.probes}
    for verdict in monitor.watch(negatives):
        if verdict.problem is not None:
            raise InputError(f"negative text {verdict.id}: {verdict.problem}")
        for name, score in verdict.scores.items():
            scores[name].append(score)
    found = [(probe, calibrate(scores[probe.name], rate)) for probe in monitor.probes]
    return [(made.applied(probe), made) for probe, made in found]


def rate_interval(rank: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentiles of Beta(rank, total + 1 - rank): the share of new texts above the one of that rank, from 1, among `total`."""
    low, high = (_quantile(end, rank, total) for end in ((1 - level) / 2, (1 + level) / 2))
    return low, high


def _quantile(share: float, rank: int, total: int) -> float:
    """The p with P(Binomial(total, p) >= rank) = share, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - _binomial(rank - 1, total, middle) < share else (low, middle)
    return (low + high) / 2


def _binomial(most: int, total: int, p: float) -> float:
    """P(Binomial(total, p) <= most), 0 < p < 1."""
    rows = range(most + 1)
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in rows]
    terms = (log + k * math.log(p) + (total - k) * math.log1p(-p) for k, log in zip(rows, logs, strict=True))
    return min(1.0, math.fsum(map(math.exp, terms)))
