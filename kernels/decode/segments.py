"""Work items of the decoder's gradients: entries sorted by feature, cut into chunks of bounded length (README.md, "Segments").

Everything is computed without waiting for the device: numbers of items are bounds, and items beyond the last have no feature.

Letters: F features, n entries, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.kernels.sparse_activations import SparseColumns

# Entries of one feature that one work item sums: a feature active on every token makes many items, not one long one.
CHUNK = 64


@dataclass(frozen=True)
class Segments:
    """Chunks of the features ``start`` to ``stop``; features are counted from ``start`` here.

    A feature without entries has one item, which writes zeros.
    """

    item_feature: Tensor  # (I,) int64, number of features for items beyond the last
    item_ptr: Tensor  # (features + 1,) int64: items of each feature
    split_feature: (
        Tensor  # (n // chunk,) int64: features with more than one item, in order; number of features beyond the last
    )
    split_ptr: Tensor  # (features + 1,) int64: rows of the workspace of each feature, none if it has one item
    workspace_rows: int  # a bound
    chunk: int

    @classmethod
    def of(cls, columns: SparseColumns, start: int, stop: int, chunk: int = CHUNK) -> Segments:
        """For the entries of some features."""
        n_entries = columns.row.shape[0]
        counts = columns.feature_ptr[start : stop + 1].diff()
        items = ((counts + chunk - 1) // chunk).clamp(min=1)
        split = items > 1
        item_ptr, split_ptr = _offsets(items), _offsets(torch.where(split, items, 0))
        # A feature with two items or more has over `chunk` entries, and fewer than two items for each `chunk` of them.
        n_split = n_entries // chunk
        device = counts.device
        item = torch.arange(stop - start + n_split, device=device)
        rank = torch.arange(1, n_split + 1, device=device)
        return cls(
            item_feature=torch.searchsorted(item_ptr[1:], item, right=True),
            item_ptr=item_ptr,
            split_feature=torch.searchsorted(split.cumsum(0), rank),
            split_ptr=split_ptr,
            workspace_rows=2 * n_split,
            chunk=chunk,
        )


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
