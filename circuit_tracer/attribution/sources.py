"""What writes into the residual stream: decoder rows of the active features, ready to be contracted with rows of gradients.

Columns of edge rows are ordered by (position, layer, feature). In that order the features of one position that write to a
layer are contiguous (cross-layer: all layers up to it; per-layer: that layer), and a row that ends at a position is a prefix.
The canonical order of a graph is (layer, position, feature); `column` and `feature_of_column` translate.

Letters: L layers, P positions, D d_model, N active features, n those that write to one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders


@dataclass(frozen=True)
class LayerSources:
    """Features that write to one layer, in column order."""

    feature: Tensor  # (n,) canonical index of each
    ptr: list[int]  # (P + 1,) first of each position
    column: list[int]  # (P,) column of the first feature of each position


class SourceTable:
    """Columns of the edge rows, and the rows of write vectors behind them.

    With `keep_rows` the scaled decoder rows of all layers stay in memory (N (L + 1) / 2 rows of D for a cross-layer
    transcoder); without, they are gathered from the transcoder's files whenever a layer is swept.
    """

    def __init__(self, active: ActiveFeatures, transcoders: Transcoders, n_pos: int, keep_rows: bool) -> None:
        self.active, self.transcoders, self.n_pos = active, transcoders, n_pos
        self.feature_of_column = _column_order(active)
        self.column = torch.empty_like(self.feature_of_column)
        self.column[self.feature_of_column] = torch.arange(len(self.column))
        self.position_ptr = _offsets(active.position, n_pos)
        self._slot: list[Tensor] = []  # by target layer: row of each feature (N,), -1 where it does not write
        self.layers = [self._layer_sources(layer) for layer in range(transcoders.n_layers)]
        self._kept: list[Tensor | None] = [None] * transcoders.n_layers
        self._decoder: dict[int, Tensor] = {}  # rows (U, T, D) of the source layer being gathered
        self.keep_rows = keep_rows

    def __len__(self) -> int:
        return int(self.active.index.shape[0])

    def fill(self, network: FrozenNetwork, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Read the decoder rows once; returns what the features reconstruct, (L, P, D), at the output hook.

        Each file is read for the unique active features only.
        """
        n_layers, d_model = self.transcoders.n_layers, self.transcoders.d_model
        reconstruction = torch.zeros(n_layers, self.n_pos, d_model, dtype=dtype, device=device)
        if self.keep_rows:
            rows = [torch.empty(len(layer.feature), d_model, dtype=dtype, device=device) for layer in self.layers]
            for source in range(n_layers):
                for layer in self.transcoders.target_layers(source):
                    self._gather(rows[layer], source, layer)
        for layer, sources in enumerate(self.layers):
            at_hook = rows[layer] if self.keep_rows else self._at_hook(layer, dtype, device)
            for position, (start, stop) in enumerate(pairwise(sources.ptr)):
                reconstruction[layer, position] = at_hook[start:stop].sum(0)
            if self.keep_rows:
                self._kept[layer] = self._into_residual(layer, at_hook, network)
        self._decoder.clear()
        return reconstruction

    def rows(self, layer: int, network: FrozenNetwork, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Write vectors (n, D) into the residual stream at `layer`, scaled by activation, in column order."""
        kept = self._kept[layer]
        return self._into_residual(layer, self._at_hook(layer, dtype, device), network) if kept is None else kept

    def _at_hook(self, layer: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Scaled decoder rows (n, D) of one layer at the output hook, read from the transcoder."""
        rows = torch.empty(len(self.layers[layer].feature), self.transcoders.d_model, dtype=dtype, device=device)
        for source in range(layer + 1):
            if layer in self.transcoders.target_layers(source):
                self._gather(rows, source, layer)
        return rows

    def _into_residual(self, layer: int, rows_nD: Tensor, network: FrozenNetwork) -> Tensor:
        position = self.active.position[self.layers[layer].feature].to(rows_nD.device)
        return network.write_at(layer, rows_nD, position)

    def _gather(self, rows_nD: Tensor, source: int, layer: int) -> None:
        """Put what the features of layer `source` write to `layer` into their places in that layer's rows."""
        here = self.active.of_layer(source)
        if here.start == here.stop:
            return
        unique, inverse = torch.unique(self.active.index[here], return_inverse=True)
        if self.keep_rows:  # all targets of a source are needed, one after the other
            if source not in self._decoder:
                self._decoder.clear()
                self._decoder[source] = self.transcoders.decoder_rows(source, unique).to(rows_nD.device)
            decoder = self._decoder[source][:, layer - self.transcoders.target_layers(source).start]
        else:
            decoder = self.transcoders.decoder_rows(source, unique, target_layer=layer).to(rows_nD.device)
        block = decoder.to(rows_nD.dtype).index_select(0, inverse.to(rows_nD.device))
        block *= self.active.value[here].to(block)[:, None]
        rows_nD[self._slot[layer][here].to(rows_nD.device)] = block

    def _layer_sources(self, layer: int) -> LayerSources:
        writes = torch.tensor(
            [layer in self.transcoders.target_layers(source) for source in range(self.transcoders.n_layers)]
        )
        chosen = writes[self.active.layer[self.feature_of_column]]
        feature = self.feature_of_column[chosen]
        slot = torch.full((len(self),), -1)
        slot[feature] = torch.arange(len(feature))
        self._slot.append(slot)
        ptr = _offsets(self.active.position[feature], self.n_pos)
        first = [int(self.column[feature[ptr[p]]]) if ptr[p + 1] > ptr[p] else 0 for p in range(self.n_pos)]
        return LayerSources(feature, ptr, first)


def _column_order(active: ActiveFeatures) -> Tensor:
    """Canonical indices sorted by (position, layer, feature); the canonical order is (layer, position, feature)."""
    return torch.argsort(active.position, stable=True)


def _offsets(position: Tensor, n_pos: int) -> list[int]:
    counts = torch.bincount(position, minlength=n_pos)
    return [0, *torch.cumsum(counts, 0).tolist()]
