"""Columns of edge rows: which active feature each is, and which of them write to a layer.

Columns of edge rows are ordered by (position, layer, feature), features of attention behind the others of their position. In
that order the features of one position that write to a layer's MLP output are contiguous (cross-layer: all layers up to it;
per-layer: that layer), as are those that write to its attention output, and a row that ends at a position is a prefix.
The canonical order of a graph is (layer, position, feature); `column` and `feature_of_column` translate.

Rows begin, and influence is passed on, *step* by step: a layer each; where attention is replaced too, two a layer, first its
attention, then its MLP. The last step is behind the final norm.

Letters: P positions, N active features, n those that write to one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from circuit_tracer.kernels.contract.offsets import Offsets
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders


@dataclass(frozen=True)
class LayerSources:
    """Features that write to one layer, in column order."""

    feature: Tensor  # (n,) canonical index of each
    ptr: Offsets  # (P + 1,) first of each position
    column: Offsets  # (P,) column of the first feature of each position

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
    layers: list[LayerSources]  # those that write to the MLP output of each layer
    attention: list[LayerSources]  # those that write to its attention output; empty without a dictionary of these
    first_attention: int  # index of the first feature of attention of a layer

    @classmethod
    def of(cls, active: ActiveFeatures, transcoders: Transcoders, n_pos: int, attention: bool = False) -> SourceTable:
        """The columns of a prompt of `n_pos` tokens. attention: features behind those of the transcoders are of attention."""
        of_attention = active.index >= transcoders.d_transcoder
        # by (position, layer, feature), since the canonical order is (layer, position, feature)
        feature_of_column = torch.argsort(2 * active.position + of_attention, stable=True)
        column = torch.empty_like(feature_of_column)
        column[feature_of_column] = torch.arange(len(column))

        def written_by(writes_N: Tensor) -> LayerSources:
            feature = feature_of_column[writes_N[feature_of_column]]
            ptr = _offsets(active.position[feature], n_pos)
            return LayerSources(feature, Offsets(ptr), Offsets(_firsts(column[feature], ptr)))

        every = range(transcoders.n_layers)
        reach = torch.tensor([[layer in transcoders.target_layers(source) for source in every] for layer in every])
        layers = [written_by(reaches[active.layer] & ~of_attention) for reaches in reach]
        own = [written_by((active.layer == layer) & of_attention) for layer in every] if attention else []
        offsets = _offsets(active.position, n_pos)
        return cls(active, n_pos, feature_of_column, column, offsets, layers, own, transcoders.d_transcoder)

    def __len__(self) -> int:
        return int(self.active.index.shape[0])

    @property
    def n_steps(self) -> int:
        """Steps, without the last: as many as there are rows of errors."""
        return len(self.layers) + len(self.attention)

    @property
    def step_of_column(self) -> Tensor:
        """(N,)"""
        active = self.active
        return self.step(active.layer, active.index >= self.first_attention)[self.feature_of_column]

    def step(self, layer_n: Tensor, of_attention_n: Tensor) -> Tensor:
        """Of rows that begin at the MLPs of layers (L: behind the final norm), or at their attention, (n,)."""
        if not self.attention:
            return layer_n
        return (2 * layer_n + 1 - of_attention_n.long()).clamp_max(self.n_steps)


def _firsts(column_n: Tensor, ptr: list[int]) -> list[int]:
    """The column of the first feature of each position; 0 where there is none."""
    columns = column_n.tolist()
    return [columns[start] if stop > start else 0 for start, stop in pairwise(ptr)]


def _offsets(position: Tensor, n_pos: int) -> list[int]:
    counts = torch.bincount(position, minlength=n_pos)
    return [0, *torch.cumsum(counts, 0).tolist()]
