"""Shares and means with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from circuit_tracer.classify.intervals import LEVEL, resampled, wilson

RESAMPLES = 2000


@dataclass(frozen=True)
class Rate:
    """``count`` of ``total``, with Wilson's 95 % interval; share and interval are None of nothing."""

    count: int
    total: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, hits: Sequence[bool]) -> Rate:
        """How many of them are true."""
        count, total = sum(hits), len(hits)
        if not total:
            return cls(0, 0, None, None, None)
        low, high = wilson(np.array([count]), total)
        return cls(count, total, count / total, float(low[0]), float(high[0]))


@dataclass(frozen=True)
class Mean:
    """Mean of ``total`` values with a 95 % bootstrap interval; None of nothing."""

    total: int
    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float], seed: int) -> Mean:
        """Percentiles of the means of resamples, `RESAMPLES` of them."""
        total = len(values)
        if not total:
            return cls(0, None, None, None)
        numbers = np.array(values, dtype=np.float64)
        means = resampled(total, RESAMPLES, seed) @ numbers / total
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(total, float(numbers.mean()), float(low), float(high))
