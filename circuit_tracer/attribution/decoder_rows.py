"""What writes into the residual stream: decoder rows of the active features, ready to be contracted with rows of gradients.

Letters: L layers, P positions, D d_model, N active features, n those that write to one layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from circuit_tracer.attribution.decoder_tables import DecoderTables
from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.kernels.contract import contract_, contract_rows_
from circuit_tracer.kernels.contract.offsets import Offsets
from circuit_tracer.kernels.device import sent
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.weight_rows import by_slot
from circuit_tracer.workers import in_order

CHUNK_BYTES = 64 * 2**20  # of decoder rows read at once, where they are not kept
# From so many sources with the same decoder row on, gathering it for each block of rows costs less than copies of it, of memory
# and of the time to make them.
SOURCES_A_ROW = 2


class DecoderRows:
    """Write vectors of the sources, kept or made whenever a layer is swept; which of the two may change on the way.

    All layers' scaled decoder rows take N (L + 1) / 2 rows of D for a cross-layer transcoder. Long prompts repeat their
    features: of these each row is kept once (decoder_tables.py) and scaled on its way to the product. What is not kept is read
    from the transcoder's files, `chunk_bytes` at a time, each row once for all rows in flight.
    """

    def __init__(
        self,
        sources: SourceTable,
        transcoders: Transcoders,
        network: FrozenNetwork,
        chunk_bytes: int,
        kept: list[Tensor] | None = None,
        attention: FrozenAttention | None = None,
    ) -> None:
        """attention: the rows are those of a dictionary of attention outputs instead, which is `transcoders` then."""
        self.sources, self.transcoders, self.network, self.chunk_bytes = sources, transcoders, network, chunk_bytes
        self.written = sources.layers if attention is None else sources.attention  # what writes to each layer
        self._first = 0 if attention is None else sources.first_attention
        self._write: FrozenNetwork | FrozenAttention = network if attention is None else attention
        self._dtype, self._device = network.parts.compute_dtype, network.parts.device
        self._kept = kept or []  # L x (n, D), in the residual stream
        self.tables = DecoderTables(sources, transcoders, attention is not None, self._dtype, self._device)

    def contract_(self, layer: int, g_TPD: Tensor, out_TN: Tensor) -> None:
        """Add what rows of gradients (T, P, D) find of the write vectors at a layer to the edges of the first features."""
        written, n_pos = self.written[layer], g_TPD.shape[1]
        if self._kept:
            kept = self._kept[layer][: written.ptr[n_pos]]
            return contract_(out_TN, g_TPD, kept, written.ptr, written.column)
        if not len(g_TPD):
            return None
        step = max(1, self.chunk_bytes // g_TPD[:, :1].nbytes)
        for rows in self.tables.pieces(layer, n_pos, self.chunk_bytes):
            if self._write.writes_plainly(layer):
                contract_rows_(out_TN, g_TPD, rows)
                continue
            for first in range(0, n_pos, step):
                last = min(n_pos, first + step)
                place = torch.arange(first, last, device=g_TPD.device).repeat(len(g_TPD))
                some = self._write.write_adjoint(layer, g_TPD[:, first:last].flatten(0, 1), place)
                here = rows if last - first == n_pos else rows.between(first, last)
                contract_rows_(out_TN, some.unflatten(0, (len(g_TPD), -1)), here)
        return None

    @property
    def at_hand(self) -> bool:
        """Whether rows are kept, one for each source."""
        return bool(self._kept)

    def bytes_at(self, layer: int, n_pos: int) -> int:
        """What the rows of a layer take at the first `n_pos` positions."""
        return self.written[layer].ptr[n_pos] * self.transcoders.d_model * self._dtype.itemsize

    def between(self, layer: int, first: int, last: int) -> Tensor:
        """The kept rows (n, D) of some positions, in the residual stream."""
        ptr = self.written[layer].ptr
        return self._kept[layer][ptr[first] : ptr[last]]

    def release(self) -> bool:
        """Keep no rows from now on; False if none were kept."""
        kept, self._kept = self._kept, []
        return self.tables.release() or bool(kept)

    def at_hook(self, layer: int, first: int, last: int) -> Tensor:
        """Scaled decoder rows (n, D) of one layer at the output hook, of some positions, read from the transcoder."""
        layer_sources, active = self.written[layer], self.sources.active
        feature = layer_sources.feature[layer_sources.ptr[first] : layer_sources.ptr[last]]
        if not len(feature):
            return torch.empty(0, self.transcoders.d_model, dtype=self._dtype, device=self._device)
        key = active.layer[feature] * self.transcoders.d_transcoder + active.index[feature] - self._first
        unique, inverse = torch.unique(key, return_inverse=True)
        depth, index = unique // self.transcoders.d_transcoder, unique % self.transcoders.d_transcoder
        tables = [
            self.transcoders.decoder_rows(int(source), index[depth == source], target_layer=layer).to(
                self._device, self._dtype
            )
            for source in depth.unique()
        ]
        if not tables:  # nothing writes here, as where a layer has no transcoder
            return torch.empty(0, self.transcoders.d_model, dtype=self._dtype, device=self._device)
        rows = torch.cat(tables).index_select(0, inverse.to(self._device))
        return rows.mul_(active.value[feature].to(rows)[:, None])

    def into_residual(self, layer: int, rows_nD: Tensor, first: int, last: int) -> Tensor:
        """What rows at the output hook of some positions write into the residual stream."""
        layer_sources = self.written[layer]
        feature = layer_sources.feature[layer_sources.ptr[first] : layer_sources.ptr[last]]
        return self._write.write_at(layer, rows_nD, sent(self.sources.active.position[feature], rows_nD.device))

    def _of_layer(self, source: int) -> Tensor:
        """The dictionary's own features of a layer, by canonical index."""
        here = self.sources.active.of_layer(source)
        index = self.sources.active.index[here]
        own = (index >= self._first) & (index < self._first + self.transcoders.d_transcoder)
        found: Tensor = torch.nonzero(own).flatten() + here.start
        return found

    def read_all(self, workers: int = 1) -> list[Tensor]:
        """Scaled decoder rows (n, D) of all layers at the output hook; each file is read once, front to back, by one of the
        workers.
        """
        active, width = self.sources.active, self.transcoders.d_model
        place: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        rows = [torch.empty(len(layer.feature), width, **place) for layer in self.written]
        # the sources of a position that write to a layer lie side by side, in the order of their columns
        shifts = [torch.tensor(layer.ptr[:-1]) - torch.tensor(layer.column) for layer in self.written]

        def read(source: int) -> None:
            here = self._of_layer(source)
            if not len(here):
                return
            index, order = (active.index[here] - self._first).sort(stable=True)
            here = here[order]
            column, position = self.sources.column[here], active.position[here]
            scale = sent(active.value[here].to(self._dtype), self._device)[:, None]
            blocks = by_slot(self.transcoders.decoder(source), index)
            for layer, block in zip(self.transcoders.target_layers(source), blocks, strict=True):
                there = sent(column + shifts[layer][position], self._device)
                rows[layer].index_copy_(0, there, block.to(self._device, self._dtype).mul_(scale))

        for _ in in_order(read, range(self.transcoders.n_layers), workers):
            pass
        return rows


def read_decoder_rows(
    sources: SourceTable,
    transcoders: Transcoders,
    network: FrozenNetwork,
    keep: bool,
    chunk_bytes: int = CHUNK_BYTES,
    attention: FrozenAttention | None = None,
    side_by_side: bool = False,
    workers: int = 1,
) -> tuple[DecoderRows, Tensor]:
    """Read the decoder rows once, and what the features reconstruct with them, (L, P, D), at the output hook.

    Each file is read for the unique active features only. attention: of its dictionary, which is `transcoders`. side_by_side:
    keep a row for every source, however often features repeat.
    """
    read = DecoderRows(sources, transcoders, network, chunk_bytes, attention=attention)
    n_sources = sum(len(layer.feature) for layer in read.written)
    shape, parts = (transcoders.n_layers, sources.n_pos, transcoders.d_model), network.parts
    reconstruction = torch.zeros(shape, dtype=parts.compute_dtype, device=parts.device)
    if not keep or (not side_by_side and stored_once(n_sources, len(read.tables))):
        if keep:
            read.tables.keep(workers)
        for layer in range(len(read.written)):
            reconstruction[layer] = read.tables.reconstruct(layer, chunk_bytes)
        return read, reconstruction
    kept = read.read_all(workers)

    def rebuild(layer: int) -> None:
        reconstruction[layer] = sums_at(kept[layer], read.written[layer].ptr)
        kept[layer] = read.into_residual(layer, kept[layer], 0, sources.n_pos)

    for _ in in_order(rebuild, range(len(kept)), workers):
        pass
    return DecoderRows(sources, transcoders, network, chunk_bytes, kept, attention), reconstruction


def sums_at(rows_nD: Tensor, ptr: Offsets) -> Tensor:
    """The sums (P, D) of the rows of each position, row after row, in one launch."""
    every = torch.arange(len(rows_nD), device=rows_nD.device)
    return embedding_bag(every, rows_nD, ptr.on(rows_nD.device)[:-1], mode="sum")


def stored_once(n_sources: int, n_unique: int) -> bool:
    """Whether rows are kept once each, when they are kept, and not as often as sources write them."""
    return n_sources > SOURCES_A_ROW * n_unique
