"""Active features of one source layer over a batch, as compressed sparse rows, and the same sorted by feature.

Letters: B tokens, F features, n entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseColumns:
    """The entries of `SparseActivations` sorted by feature, then token."""

    feature_ptr: Tensor  # (F + 1,) int64: entries of feature f are feature_ptr[f] .. feature_ptr[f + 1]
    row: Tensor  # (n,) int64
    entry: Tensor  # (n,) int64: where the entry stands in the rows


@dataclass(frozen=True)
class SparseActivations:
    """n entries (token, feature, value) of a B x F matrix, token by token, features ascending within a token."""

    row_ptr: Tensor  # (B + 1,) int64
    feature: Tensor  # (n,) int64
    value: Tensor  # (n,) floating
    n_features: int
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
        """(n,) int64: the token of each entry."""
        if "row" not in self._made:
            counts = self.row_ptr.diff()
            self._made["row"] = torch.repeat_interleave(counts, output_size=self.feature.shape[0])
        row: Tensor = self._made["row"]
        return row

    @property
    def columns(self) -> SparseColumns:
        """The index by feature; made once, used by every product that needs it."""
        if "columns" not in self._made:
            entry = torch.argsort(self.feature, stable=True)
            self._made["columns"] = SparseColumns(pointers(self.feature, self.n_features), self.row[entry], entry)
        columns: SparseColumns = self._made["columns"]
        return columns

    def with_value(self, value: Tensor) -> SparseActivations:
        """The same entries with other values (n,); indices are shared, whichever of the two makes them first."""
        return replace(self, value=value)

    def keep(self, mask: Tensor) -> SparseActivations:
        """The entries where ``mask`` (n,) holds."""
        return SparseActivations.from_entries(
            self.row[mask], self.feature[mask], self.value[mask], self.n_rows, self.n_features
        )


def pointers(ids: Tensor, n_ids: int) -> Tensor:
    """(n_ids + 1,) int64: where each id begins in ``ids``, once these are sorted."""
    counts = torch.bincount(ids, minlength=n_ids)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
