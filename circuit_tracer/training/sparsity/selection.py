"""The active entries of a batch, as every rule hands them to the step, and how to find them.

Letters: S source layers, B tokens, F features of a layer owned by this rank, D width, n entries of one source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.kernels.encode import encode
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.step.dictionary import Dictionary


@dataclass(frozen=True)
class Selection:
    """Active features of a batch. ``entries[s].value`` (n,) are pre-activations; near misses may be among them.

    ``active[s]`` (n,) tells the active from the near misses; ``band[s]`` (n,) weighs an entry in the gradient of its
    threshold (rules that learn thresholds only). ``cut``: the least score kept, if one number decides for the whole batch.
    """

    entries: list[SparseActivations]
    active: list[Tensor]
    band: list[Tensor] | None = None
    cut: float | None = None

    def activations(self, source: int) -> SparseActivations:
        """The active entries with their activations."""
        entries, active = self.entries[source], self.active[source]
        return entries if self.band is None else entries.with_value(torch.where(active, entries.value, 0))


def all_active(entries: list[SparseActivations], cut: float | None = None) -> Selection:
    """A selection without near misses."""
    return Selection(entries, [torch.ones_like(one.feature, dtype=torch.bool) for one in entries], cut=cut)


def above(dictionary: Dictionary, x_SBD: Sequence[Tensor], cut_SF: Sequence[Tensor]) -> list[SparseActivations]:
    """Entries of every source whose pre-activation is larger than their feature's cut (F,)."""
    parts = zip(x_SBD, dictionary.W_enc, dictionary.b_enc, cut_SF, strict=True)
    return [encode(x_BD, W, b, cut_F) for x_BD, W, b, cut_F in parts]


def scores(entries: SparseActivations, scale_F: Tensor) -> Tensor:
    """pre * scale (n,)."""
    return entries.value * scale_F[entries.feature].to(entries.value.dtype)
