"""Decoder rows of the active features, each once, however many positions its feature is active at.

The table of a layer has a row for every active feature that writes there, by source layer and index: so the sources of a
position, which are in that order too, find theirs in ascending order, and a range of rows of the table belongs to neighbours
among the sources of each position.

Letters: L layers, P positions, D d_model, N active features, n those that write to one layer, U rows of its table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.attribution.transfers import beside
from circuit_tracer.kernels.contract.addressed import AddressedRows
from circuit_tracer.kernels.contract.offsets import on_device
from circuit_tracer.kernels.device import sent
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.workers import in_order


class DecoderTables:
    """What each layer's sources write at the output hook, before it is scaled by their activations; kept, or read a piece at a
    time.
    """

    def __init__(
        self,
        sources: SourceTable,
        transcoders: Transcoders,
        of_attention: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """of_attention: `transcoders` is the dictionary that replaces attention."""
        self.sources, self.transcoders = sources, transcoders
        self.written = sources.attention if of_attention else sources.layers
        self._first = sources.first_attention if of_attention else 0
        self._dtype, self._device = dtype, device
        self._kept: list[Tensor] = []
        self._told: dict[int, AddressedRows] = {}  # by layer, where what is kept lies on a device

    @cached_property
    def _features(self) -> tuple[list[Tensor], Tensor]:
        """The dictionary's active features of each layer, ascending, and the place (N,) of each active feature among its
        layer's.
        """
        active, place = self.sources.active, torch.zeros(len(self.sources), dtype=torch.int64)
        unique = []
        for source in range(self.transcoders.n_layers):
            here = active.of_layer(source)
            index = active.index[here] - self._first
            own = (index >= 0) & (index < self.transcoders.d_transcoder)
            found, inverse = torch.unique(index[own], return_inverse=True)
            place[here][own] = inverse
            unique.append(found)
        return unique, place

    @cached_property
    def _offsets(self) -> list[list[int]]:
        """L x (L + 1): where the rows of each source layer begin in a layer's table, and how many rows there are."""
        unique, every = self._features[0], range(self.transcoders.n_layers)
        writes = [self.transcoders.target_layers(source) for source in every]
        counts = [[len(unique[source]) * (layer in writes[source]) for source in every] for layer in every]
        return [[0, *torch.tensor(each).cumsum(0).tolist()] for each in counts]

    def __len__(self) -> int:
        """Rows of all tables."""
        return sum(offsets[-1] for offsets in self._offsets)

    def keep(self, workers: int = 1) -> None:
        """Read all tables; each file is read once, front to back, by one of the workers."""
        width, (features, _) = self.transcoders.d_model, self._features
        tables = [torch.empty(of[-1], width, dtype=self._dtype, device=self._device) for of in self._offsets]

        def read(source: int) -> None:
            if not len(index := features[source]):
                return
            decoder = self.transcoders.decoder_rows(source, index)
            for number, layer in enumerate(self.transcoders.target_layers(source)):
                start = self._offsets[layer][source]
                tables[layer][start : start + len(index)] = decoder[:, number]

        for _ in in_order(read, range(self.transcoders.n_layers), workers):
            pass
        self._kept = tables

    def release(self) -> bool:
        """Keep no table from now on; False if none were kept."""
        kept, self._kept, self._told = self._kept, [], {}
        return bool(kept)

    def pieces(self, layer: int, n_pos: int, most: int) -> Iterator[AddressedRows]:
        """The sources of a layer at the first `n_pos` positions, range by range of its table, of at most `most` bytes each if
        it has to be read; of what is kept on a device those of all positions.
        """
        if not self.written[layer].ptr[n_pos]:
            return
        if self._kept and self._device.type != "cpu":
            yield self._whole(layer)
        else:
            yield from beside(self._some(layer, n_pos, most), self._device, _tensors)

    def _whole(self, layer: int) -> AddressedRows:
        """All sources of a layer: a device is told once where they find their rows."""
        written = self.written[layer]
        if layer not in self._told:
            row = self._row(layer, written.feature)
            self._told[layer] = self._addressed(self._kept[layer], row, written.feature, written.ptr)
        return self._told[layer]

    def _some(self, layer: int, n_pos: int, most: int) -> Iterator[AddressedRows]:
        written = self.written[layer]
        end = written.ptr[n_pos]
        feature = written.feature[:end]
        row = self._row(layer, feature)
        every = torch.arange(end)
        for first, last in self._ranges(layer, most):
            table = self._kept[layer] if self._kept else self._read(layer, first, last)
            inside = every
            if last - first < self._offsets[layer][-1]:
                inside = torch.nonzero((row >= first) & (row < last)).flatten()
            if len(inside):
                ptr = torch.searchsorted(inside, torch.tensor(written.ptr[: n_pos + 1])).tolist()
                yield self._addressed(table, row[inside] - first, feature[inside], ptr)

    def reconstruct(self, layer: int, most: int) -> Tensor:
        """What the features that write to a layer add up to there, at the output hook: (P, D)."""
        n_pos = self.sources.n_pos
        made = torch.zeros(n_pos, self.transcoders.d_model, dtype=self._dtype, device=self._device)
        for rows in self.pieces(layer, n_pos, most):
            starts = on_device(rows.ptr, self._device)[:-1]
            made += embedding_bag(rows.row, rows.tables[0], starts, mode="sum", per_sample_weights=rows.scale)
        return made

    def _row(self, layer: int, feature_n: Tensor) -> Tensor:
        """(n,): where the rows of some features are in a layer's table."""
        return torch.tensor(self._offsets[layer])[self.sources.active.layer[feature_n]] + self._features[1][feature_n]

    def _addressed(self, table: Tensor, row_n: Tensor, feature_n: Tensor, ptr: Sequence[int]) -> AddressedRows:
        """Sources that find their rows in a table."""
        there, value = self._device, self.sources.active.value[feature_n]
        return AddressedRows(
            [table],
            torch.zeros(1, dtype=torch.int64, device=there).expand(len(row_n)),
            sent(row_n, there),
            sent(value.to(self._dtype), there),
            sent(self.sources.column[feature_n], there),
            ptr,
        )

    def _ranges(self, layer: int, most: int) -> list[tuple[int, int]]:
        """Ranges of a layer's table: all of it, where it is kept."""
        n_rows = self._offsets[layer][-1]
        step = max(1, most // (self.transcoders.d_model * self._dtype.itemsize))
        return [(0, n_rows)] if self._kept else list(pairwise([*range(0, n_rows, step), n_rows]))

    def _read(self, layer: int, first: int, last: int) -> Tensor:
        """Some rows of a layer's table, (n, D)."""
        table = torch.empty(last - first, self.transcoders.d_model, dtype=self._dtype, device=self._device)
        for source, (start, stop) in enumerate(pairwise(self._offsets[layer])):
            low, high = max(first, start), min(last, stop)
            if low < high:
                index = self._features[0][source][low - start : high - start]
                table[low - first : high - first] = self.transcoders.decoder_rows(source, index, target_layer=layer)
        return table


def _tensors(rows: AddressedRows) -> list[Tensor]:
    return [*rows.tables, rows.table, rows.row, rows.scale, rows.column]
