"""Matryoshka: the first features of every layer are dictionaries of their own (training/README.md §5).

Prefix j reconstructs with the features before its end. Entries of group m, the features between the ends of prefixes m - 1
and m, write to row b M + m instead of b: a running sum over m is what prefixes 0, 1, ... write, and one backwards over their
errors is the gradient of what group m writes. Entries keep their order, so that all products are those without prefixes.

Letters: S source layers, B tokens, M prefixes, F features of a layer, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_activations import SparseActivations, pointers
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.step.counter_random import uniform


@dataclass(frozen=True)
class Prefixes:
    """``ends``: how many features each has, ascending; the last has all F."""

    ends: tuple[int, ...]

    @classmethod
    def at(cls, settings: SparsitySection, n_features: int, step: int) -> Prefixes:
        """Those of a step: the fixed ones, and drawn ones, F^u features for a uniform u: every doubling is as likely."""
        drawn = uniform(torch.arange(settings.prefixes_drawn), step).tolist()
        sizes = {math.ceil(n_features**share) for share in drawn}
        return cls(tuple(sorted({*(settings.prefixes or ()), *sizes, n_features})))

    @property
    def count(self) -> int:
        """M."""
        return len(self.ends)

    def spread(self, entries: SparseActivations, first: int) -> SparseActivations:
        """The same entries with B * M rows. first: the number of the first feature of this rank."""
        if self.count == 1:
            return entries

        def make() -> SparseActivations:
            ends = torch.tensor(self.ends, device=entries.feature.device)
            group = torch.searchsorted(ends, entries.feature + first, right=True)
            row_ptr = pointers(entries.row * self.count + group, entries.n_rows * self.count)
            return SparseActivations(row_ptr, entries.feature, entries.value, entries.n_features)

        return entries.once(f"prefixes {self.ends}", make).with_value(entries.value)

    def add_up_(self, written_BMC: Tensor) -> None:
        """From what groups write to what prefixes do."""
        for prefix in range(1, self.count):
            written_BMC[:, prefix] += written_BMC[:, prefix - 1]

    def collect_(self, grad_BMC: Tensor) -> None:
        """From gradients of what prefixes write to those of what groups do."""
        for prefix in reversed(range(self.count - 1)):
            grad_BMC[:, prefix] += grad_BMC[:, prefix + 1]
