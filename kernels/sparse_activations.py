"""Active features of one source layer over a batch, as compressed sparse rows, and the same sorted by feature.

Letters: B tokens, F features, n entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from circuit_tracer.kernels.device import on_gpu

Made = TypeVar("Made")


@dataclass(frozen=True)
class SparseColumns:
    """The entries of `SparseActivations` sorted by feature, then token."""

    feature_ptr: Tensor  # (F + 1,) int64: entries of feature f are feature_ptr[f] .. feature_ptr[f + 1]
    row: Tensor  # (n,) int64
    entry: Tensor  # (n,) int64: where the entry stands in the rows


@dataclass(frozen=True)
class SparseActivations:
    """n entries (token, feature, value) of a B x F matrix, token by token, features ascending within a token.

    A GPU finds entries without saying how many: ``exact`` is then false, the entries are those before ``row_ptr[-1]``, and
    those after it are void (any feature, any value) until `first` leaves them out.
    """

    row_ptr: Tensor  # (B + 1,) int64
    feature: Tensor  # (n,) int64
    value: Tensor  # (n,) floating
    n_features: int
    exact: bool = True
    _made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # indices, made once

    @classmethod
    def from_entries(
        cls, row: Tensor, feature: Tensor, value: Tensor, n_rows: int, n_features: int
    ) -> SparseActivations:
        """From entries that are already sorted by (row, feature)."""
        return cls(pointers(row, n_rows), feature, value, n_features)

    @property
    def n_rows(self) -> int:
        """B."""
        return self.row_ptr.shape[0] - 1

    @property
    def row(self) -> Tensor:
        """(n,) int64: the token of each entry; B of void ones."""

        def make() -> Tensor:
            if self.exact:
                return torch.repeat_interleave(self.row_ptr.diff(), output_size=self.feature.shape[0])
            return torch.searchsorted(self.row_ptr[1:], self._numbers, right=True)

        return self.once("row", make)

    @property
    def live(self) -> Tensor:
        """(n,) bool: which entries are not void."""
        return self.once("live", lambda: self._numbers < self.row_ptr[-1])

    @property
    def columns(self) -> SparseColumns:
        """The index by feature; used by every product that needs it."""

        def make() -> SparseColumns:
            key = self.feature.int()
            if not self.exact:
                key.masked_fill_(self._numbers >= self.row_ptr[-1], self.n_features)
            feature, entry = torch.sort(key, stable=True)
            return SparseColumns(pointers(feature, self.n_features), self.row[entry], entry)

        return self.once("columns", make)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What ``make`` makes of the places of these entries: kept under a name, for copies with other values too."""
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made

    def with_value(self, value: Tensor) -> SparseActivations:
        """The same entries with other values (n,); indices are shared, whichever of the two makes them first."""
        return replace(self, value=value)

    def keep(self, mask: Tensor) -> SparseActivations:
        """The entries where ``mask`` (n,) holds."""
        return SparseActivations.from_entries(
            self.row[mask], self.feature[mask], self.value[mask], self.n_rows, self.n_features
        )

    def moved_up(self, mask: Tensor) -> SparseActivations:
        """The entries where ``mask`` (n,) holds and void ones after them, as many as before: nothing waits for the device."""
        mask = mask if self.exact else mask & self.live
        so_far = mask.cumsum(0)
        source = torch.searchsorted(so_far, self._numbers, right=True).clamp_(max=max(0, self.feature.shape[0] - 1))
        ptr = torch.cat([so_far.new_zeros(1), so_far])[self.row_ptr]
        return SparseActivations(ptr, self.feature[source], self.value[source], self.n_features, exact=False)

    def first(self, n: int) -> SparseActivations:
        """The first n entries, when it is known that these are all."""
        return SparseActivations(self.row_ptr, self.feature[:n], self.value[:n], self.n_features)

    @property
    def _numbers(self) -> Tensor:
        return self.once("numbers", lambda: torch.arange(self.feature.shape[0], device=self.feature.device))


def pointers(ids: Tensor, n_ids: int) -> Tensor:
    """(n_ids + 1,) int64: where each id begins in the sorted ``ids``."""
    if on_gpu(ids):  # bincount waits for the device, to know how many ids there are
        return torch.searchsorted(ids, torch.arange(n_ids + 1, device=ids.device, dtype=ids.dtype))
    counts = torch.bincount(ids, minlength=n_ids)
    return torch.cat([counts.new_zeros(1), counts[:n_ids].cumsum(0)])


def largest_of_rows(entries: SparseActivations, k: int) -> Tensor:
    """(B, k): the largest values of each token, falling; -inf where there are fewer."""
    if not entries.feature.shape[0]:
        return entries.value.new_full((entries.n_rows, k), -torch.inf)
    falling = torch.argsort(entries.value, descending=True, stable=True)
    order = falling[torch.argsort(entries.row[falling], stable=True)]
    place_Bk = entries.row_ptr[:-1, None] + torch.arange(k, device=order.device)
    value_Bk = entries.value[order[place_Bk.clamp(max=order.shape[0] - 1)]]
    return value_Bk.masked_fill_(place_Bk >= entries.row_ptr[1:, None], -torch.inf)
