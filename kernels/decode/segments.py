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
    slot_feature: (
        Tensor  # (workspace rows,) int64: the feature of each row of the workspace; number of features beyond the last
    )
    slot_ptr: Tensor  # (features + 1,) int64: rows of the workspace of each feature, none if it has one item
    chunk: int

    @classmethod
    def of(cls, columns: SparseColumns, start: int, stop: int, chunk: int = CHUNK) -> Segments:
        """For the entries of some features."""
        n_features, device = stop - start, columns.row.device
        # A feature with two items or more has over `chunk` entries, and fewer than two items for each `chunk` of them.
        n_split = columns.row.shape[0] // chunk
        sizes = torch.zeros(2, n_features + 1, dtype=torch.int64, device=device)  # of items, of rows of the workspace
        items, rows = sizes[:, 1:]
        torch.add(columns.feature_ptr[start : stop + 1].diff(), chunk - 1, out=items)
        items.floor_divide_(chunk).clamp_(min=1)
        torch.mul(items, items > 1, out=rows)
        item_ptr, slot_ptr = sizes.cumsum(1)
        number = torch.arange(max(n_features + n_split, 2 * n_split), device=device)
        return cls(
            item_feature=torch.searchsorted(item_ptr[1:], number[: n_features + n_split], right=True),
            item_ptr=item_ptr,
            slot_feature=torch.searchsorted(slot_ptr[1:], number[: 2 * n_split], right=True),
            slot_ptr=slot_ptr,
            chunk=chunk,
        )
