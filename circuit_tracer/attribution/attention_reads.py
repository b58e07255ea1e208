"""Where rows of features of attention begin: what they read, which is spread over positions (`frozen_attention.py`).

Letters: V width at the dictionary's input hook, n rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.transcoders.transcoder_set import TranscoderSet


@dataclass(frozen=True)
class AttentionReads:
    """Rows of a read-out that are those of features of attention, with their encoder rows and biases."""

    row: Tensor  # (n,) of the read-out
    layer: Tensor  # (n,)
    position: Tensor  # (n,)
    index: Tensor  # (n,) within their dictionary
    vector: Tensor  # (n, V) at the dictionary's input hook
    bias: Tensor  # (n,)

    def __len__(self) -> int:
        return len(self.row)

    def at(self, layer: int) -> AttentionReads:
        """Those of one layer."""
        return self._take(self.layer == layer, self.row)

    def of_rows(self, chosen: Tensor) -> AttentionReads:
        """Those of some rows of the read-out (m,), each at most once, which are numbered in the order asked for."""
        size = 1 + max((int(each.max()) for each in (self.row, chosen) if len(each)), default=0)
        number = torch.full((size,), -1)
        number[chosen.cpu()] = torch.arange(len(chosen))
        row = number[self.row]
        return self._take(row >= 0, row)

    def _take(self, mask: Tensor, row: Tensor) -> AttentionReads:
        others = (self.layer, self.position, self.index, self.vector, self.bias)
        return AttentionReads(row[mask], *(column[mask] for column in others))


def attention_reads(
    dictionary: TranscoderSet, row: Tensor, layer: Tensor, position: Tensor, index: Tensor, dtype: torch.dtype
) -> AttentionReads:
    """The reads of some features (n,), index: within their dictionary; on the CPU."""
    vector = torch.empty(len(row), dictionary.d_model, dtype=dtype)
    bias = torch.empty(len(row), dtype=dtype)
    for depth in layer.unique().tolist():
        here = layer == depth
        unique, inverse = torch.unique(index[here], return_inverse=True)
        rows, biases = dictionary.encoder_rows(depth, unique)
        vector[here], bias[here] = rows.to("cpu", dtype)[inverse], biases.to("cpu", dtype)[inverse]
    return AttentionReads(row, layer, position, index, vector, bias)
