"""How sure a number is: 95 % intervals by leaving out one unit after the other (README.md §5).

A unit is what may count as drawn by itself: a held-out sequence, or a prompt. Tokens of one sequence resemble each other, so an
interval over tokens would be too narrow. Letters: U units, M sums, K numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_UNITS = 128  # more sequences share units, in turn: so an interval takes bounded memory
NORMAL = 1.959964  # the quantile of the normal distribution that 95 % lie within


@dataclass(frozen=True)
class Estimate:
    """A number, and what it is without each of its units. Differences of two are paired: both leave out the same unit."""

    value: float
    without: tuple[float, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: delete-one jackknife, Student's t; NaN for fewer than two units or a number not defined."""
        units = len(self.without)
        if units < 2 or not all(map(math.isfinite, (self.value, *self.without))):
            return math.nan, math.nan
        centre = math.fsum(self.without) / units
        variance = math.fsum((one - centre) ** 2 for one in self.without) * (units - 1) / units
        reach = student(units - 1) * math.sqrt(variance)
        return self.value - reach, self.value + reach

    def __sub__(self, other: Estimate) -> Estimate:
        """The paired difference; without an interval if the units are not the same."""
        same = len(self.without) == len(other.without)
        pairs = zip(self.without, other.without, strict=True) if same else ()
        return Estimate(self.value - other.value, tuple(one - another for one, another in pairs))

    def plain(self) -> dict[str, float]:
        """For JSON."""
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high, "units": len(self.without)}


def student(freedom: int) -> float:
    """The quantile of Student's t that 95 % lie within; from three degrees on to .2 % (Abramowitz and Stegun, 26.7.5)."""
    if freedom < 3:
        return (12.706205, 4.302653)[freedom - 1]
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


def estimates(sums_UM: Tensor, numbers: Callable[[Tensor], Tensor]) -> list[Estimate]:
    """K numbers, each a function of sums over units, (..., M) -> (..., K); units without any sum are none."""
    sums_UM = sums_UM[(sums_UM != 0).any(1)]
    total_M = sums_UM.sum(0)
    values, without_UK = numbers(total_M).tolist(), numbers(total_M - sums_UM)
    return [Estimate(value, tuple(column)) for value, column in zip(values, without_UK.T.tolist(), strict=True)]


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean of one number a unit."""
    if not values:
        return Estimate(math.nan)
    total, others = math.fsum(values), len(values) - 1
    return Estimate(total / len(values), tuple((total - value) / others for value in values) if others else ())


def unit_rows(ids_BP: Tensor, first: int) -> Tensor:
    """(B * P,) the units of rows that are the tokens of sequences (B, P) side by side, which are numbered from `first`."""
    numbers = torch.arange(first, first + len(ids_BP)) % MOST_UNITS
    return numbers.repeat_interleave(ids_BP.shape[1])


def by_unit(values_n: Tensor, unit_n: Tensor) -> Tensor:
    """Sums (MOST_UNITS, ...) of rows (n, ...), in float64, on the CPU."""
    values_n = in_float64(values_n)
    return values_n.new_zeros(MOST_UNITS, *values_n.shape[1:]).index_add_(0, unit_n.to(values_n.device), values_n).cpu()


def in_float64(values: Tensor) -> Tensor:
    """In float64, on the CPU if the device has none (mps)."""
    return (values.cpu() if values.device.type == "mps" else values).double()
