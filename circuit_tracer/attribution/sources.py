"""What writes into the residual stream: decoder rows of the active features, ready to be contracted with rows of gradients.

Columns of edge rows are ordered by (position, layer, feature). In that order the features of one position that write to a
layer are contiguous (cross-layer: all layers up to it; per-layer: that layer), and a row that ends at a position is a prefix.
The canonical order of a graph is (layer, position, feature); `column` and `feature_of_column` translate.

Letters: L layers, P positions, D d_model, N active features, n those that write to one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders

CHUNK_BYTES = 64 * 2**20  # of decoder rows gathered at once, where they are not kept


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


class SourceTable:
    """Columns of the edge rows, and the rows of write vectors behind them.

    With `keep_rows` the scaled decoder rows of all layers stay in memory (N (L + 1) / 2 rows of D for a cross-layer
    transcoder); without, they are gathered from the transcoder's files whenever a layer is swept, `chunk_bytes` at a time.
    """

    def __init__(
        self,
        active: ActiveFeatures,
        transcoders: Transcoders,
        n_pos: int,
        keep_rows: bool,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.active, self.transcoders, self.n_pos = active, transcoders, n_pos
        self.keep_rows, self.chunk_bytes = keep_rows, chunk_bytes
        self.feature_of_column = _column_order(active)
        self.column = torch.empty_like(self.feature_of_column)
        self.column[self.feature_of_column] = torch.arange(len(self.column))
        self.position_ptr = _offsets(active.position, n_pos)
        self.layers = [self._layer_sources(layer) for layer in range(transcoders.n_layers)]
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        return int(self.active.index.shape[0])

    def fill(self, network: FrozenNetwork, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Read the decoder rows once; returns what the features reconstruct, (L, P, D), at the output hook.

        Each file is read for the unique active features only.
        """
        n_layers, d_model = self.transcoders.n_layers, self.transcoders.d_model
        kept = self._read_all(dtype, device) if self.keep_rows else []
        reconstruction = torch.zeros(n_layers, self.n_pos, d_model, dtype=dtype, device=device)
        for layer, sources in enumerate(self.layers):
            for first, last in [(0, self.n_pos)] if kept else self._chunks(layer, self.n_pos, dtype):
                at_hook = kept[layer] if kept else self._at_hook(layer, first, last, dtype, device)
                for position in range(first, last):
                    start, stop = (sources.ptr[p] - sources.ptr[first] for p in (position, position + 1))
                    reconstruction[layer, position] = at_hook[start:stop].sum(0)
            if kept:
                kept[layer] = self._into_residual(layer, kept[layer], 0, self.n_pos, network)
        self._kept = kept
        return reconstruction

    def rows(
        self, layer: int, n_pos: int, network: FrozenNetwork, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Write vectors into the residual stream at `layer`, scaled by activation, chunk by chunk of the first `n_pos`
        positions: (first position, one past the last, rows (n, D) in column order)."""
        if self._kept:
            yield 0, n_pos, self._kept[layer][: self.layers[layer].ptr[n_pos]]
            return
        for first, last in self._chunks(layer, n_pos, dtype):
            if self.layers[layer].ptr[last] > self.layers[layer].ptr[first]:
                rows = self._at_hook(layer, first, last, dtype, device)
                yield first, last, self._into_residual(layer, rows, first, last, network)

    def release(self) -> bool:
        """Keep no decoder rows from now on; False if none were kept."""
        kept, self._kept, self.keep_rows = self._kept, [], False
        return bool(kept)

    def _chunks(self, layer: int, n_pos: int, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
        return self.layers[layer].chunks(n_pos, self.chunk_bytes // (self.transcoders.d_model * dtype.itemsize))

    def _at_hook(self, layer: int, first: int, last: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Scaled decoder rows (n, D) of one layer at the output hook, of some positions, read from the transcoder."""
        sources, active = self.layers[layer], self.active
        feature = sources.feature[sources.ptr[first] : sources.ptr[last]]
        key = active.layer[feature] * self.transcoders.d_transcoder + active.index[feature]
        unique, inverse = torch.unique(key, return_inverse=True)
        depth, index = unique // self.transcoders.d_transcoder, unique % self.transcoders.d_transcoder
        tables = [
            self.transcoders.decoder_rows(int(source), index[depth == source], target_layer=layer).to(device, dtype)
            for source in depth.unique()
        ]
        rows = torch.cat(tables).index_select(0, inverse.to(device))
        return rows.mul_(active.value[feature].to(rows)[:, None])

    def _into_residual(self, layer: int, rows_nD: Tensor, first: int, last: int, network: FrozenNetwork) -> Tensor:
        sources = self.layers[layer]
        feature = sources.feature[sources.ptr[first] : sources.ptr[last]]
        return network.write_at(layer, rows_nD, self.active.position[feature].to(rows_nD.device))

    def _read_all(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Scaled decoder rows (n, D) of all layers at the output hook; each file is read once, front to back."""
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        rows = [torch.empty(len(layer.feature), self.transcoders.d_model, **place) for layer in self.layers]
        slot = torch.empty(len(self), dtype=torch.int64)
        for source in range(self.transcoders.n_layers):
            here = self.active.of_layer(source)
            if here.start == here.stop:
                continue
            unique, inverse = torch.unique(self.active.index[here], return_inverse=True)
            decoder, inverse = self.transcoders.decoder_rows(source, unique).to(device), inverse.to(device)
            for number, layer in enumerate(self.transcoders.target_layers(source)):
                block = decoder[:, number].to(dtype).index_select(0, inverse)
                block *= self.active.value[here].to(block)[:, None]
                slot[self.layers[layer].feature] = torch.arange(len(self.layers[layer].feature))
                rows[layer][slot[here].to(device)] = block
        return rows

    def _layer_sources(self, layer: int) -> LayerSources:
        writes = torch.tensor(
            [layer in self.transcoders.target_layers(source) for source in range(self.transcoders.n_layers)]
        )
        chosen = writes[self.active.layer[self.feature_of_column]]
        feature = self.feature_of_column[chosen]
        ptr = _offsets(self.active.position[feature], self.n_pos)
        first = [int(self.column[feature[ptr[p]]]) if ptr[p + 1] > ptr[p] else 0 for p in range(self.n_pos)]
        return LayerSources(feature, ptr, first)


def _column_order(active: ActiveFeatures) -> Tensor:
    """Canonical indices sorted by (position, layer, feature); the canonical order is (layer, position, feature)."""
    return torch.argsort(active.position, stable=True)


def _offsets(position: Tensor, n_pos: int) -> list[int]:
    counts = torch.bincount(position, minlength=n_pos)
    return [0, *torch.cumsum(counts, 0).tolist()]
