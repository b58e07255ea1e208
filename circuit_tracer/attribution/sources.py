"""Columns of edge rows: which active feature each is, and which of them write to a layer.

Columns of edge rows are ordered by (position, layer, feature). In that order the features of one position that write to a
layer are contiguous (cross-layer: all layers up to it; per-layer: that layer), and a row that ends at a position is a prefix.
The canonical order of a graph is (layer, position, feature); `column` and `feature_of_column` translate.

Letters: P positions, N active features, n those that write to one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders


@dataclass(frozen=True)
class LayerSources:
    """Features that write to one layer, in column order."""

    feature: Tensor  # (n,) canonical index of each
    ptr: list[int]  # (P + 1,) first of each position
    column: list[int]  # (P,) column of the first feature of each position

    def chunks(self, n_pos: int, most: int) -> Iterator[tuple[int, int]]:
        """Ranges of the first `n_pos` positions that hold at most `most` features each, or one position."""
        start = 0
        for position in range(1, n_pos + 1):
            if position == n_pos or self.ptr[position + 1] - self.ptr[start] > most:
                yield start, position
                start = position


@dataclass(frozen=True)
class SourceTable:
    """All columns, and those that write to each layer."""

    active: ActiveFeatures
    n_pos: int
    feature_of_column: Tensor  # (N,) canonical index of each column
    column: Tensor  # (N,) column of each canonical index
    position_ptr: list[int]  # (P + 1,) first column of each position
    layers: list[LayerSources]

    @classmethod
    def of(cls, active: ActiveFeatures, transcoders: Transcoders, n_pos: int) -> SourceTable:
        """The columns of a prompt of `n_pos` tokens."""
        # by (position, layer, feature), since the canonical order is (layer, position, feature)
        feature_of_column = torch.argsort(active.position, stable=True)
        column = torch.empty_like(feature_of_column)
        column[feature_of_column] = torch.arange(len(column))
        layers, column_layer = [], active.layer[feature_of_column]
        written = [transcoders.target_layers(source) for source in range(transcoders.n_layers)]
        for layer in range(transcoders.n_layers):
            writes = torch.tensor([layer in targets for targets in written])
            feature = feature_of_column[writes[column_layer]]
            ptr = _offsets(active.position[feature], n_pos)
            first = _firsts(column[feature], ptr)
            layers.append(LayerSources(feature, ptr, first))
        return cls(active, n_pos, feature_of_column, column, _offsets(active.position, n_pos), layers)

    def __len__(self) -> int:
        return int(self.active.index.shape[0])


def _firsts(column_n: Tensor, ptr: list[int]) -> list[int]:
    """The column of the first feature of each position; 0 where there is none."""
    columns = column_n.tolist()
    return [columns[start] if stop > start else 0 for start, stop in pairwise(ptr)]


def _offsets(position: Tensor, n_pos: int) -> list[int]:
    counts = torch.bincount(position, minlength=n_pos)
    return [0, *torch.cumsum(counts, 0).tolist()]
