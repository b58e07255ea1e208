"""What writes into the residual stream: decoder rows of the active features, ready to be contracted with rows of gradients.

Letters: L layers, P positions, D d_model, N active features, n those that write to one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.workers import in_order

CHUNK_BYTES = 64 * 2**20  # of decoder rows gathered at once, where they are not kept


class DecoderRows:
    """Write vectors of the sources, kept or made whenever a layer is swept; which of the two may change on the way.

    All layers' scaled decoder rows take N (L + 1) / 2 rows of D for a cross-layer transcoder. Without `kept` they are gathered
    from the transcoder's files, `chunk_bytes` at a time.
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
        self._write_at: Callable[[int, Tensor, Tensor], Tensor] = (
            network.write_at if attention is None else attention.write_at
        )
        self._dtype, self._device = network.parts.compute_dtype, network.parts.device
        self._kept = kept or []  # L x (n, D), in the residual stream

    def rows(self, layer: int, n_pos: int) -> Iterator[tuple[int, int, Tensor]]:
        """Write vectors into the residual stream at `layer`, scaled by activation, chunk by chunk of the first `n_pos`
        positions: (first position, one past the last, rows (n, D) in column order)."""
        if self._kept:
            yield 0, n_pos, self._kept[layer][: self.written[layer].ptr[n_pos]]
            return
        for first, last in self.chunks(layer, n_pos):
            if self.written[layer].ptr[last] > self.written[layer].ptr[first]:
                yield first, last, self.into_residual(layer, self.at_hook(layer, first, last), first, last)

    @property
    def at_hand(self) -> bool:
        """Whether rows are kept, one for each source."""
        return bool(self._kept)

    def bytes_until(self, n_pos: int) -> int:
        """What the rows of the first `n_pos` positions take in all layers."""
        row_bytes = self.transcoders.d_model * self._dtype.itemsize
        return sum(written.ptr[n_pos] for written in self.written) * row_bytes

    def between(self, layer: int, first: int, last: int) -> Tensor:
        """The kept rows (n, D) of some positions, in the residual stream."""
        ptr = self.written[layer].ptr
        return self._kept[layer][ptr[first] : ptr[last]]

    def release(self) -> bool:
        """Keep no rows from now on; False if none were kept."""
        kept, self._kept = self._kept, []
        return bool(kept)

    def chunks(self, layer: int, n_pos: int) -> Iterator[tuple[int, int]]:
        """Ranges of the first `n_pos` positions whose rows are gathered together."""
        row_bytes = self.transcoders.d_model * self._dtype.itemsize
        return self.written[layer].chunks(n_pos, self.chunk_bytes // row_bytes)

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
        return self._write_at(layer, rows_nD, self.sources.active.position[feature].to(rows_nD.device))

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
        active, layers = self.sources.active, self.written
        place: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        rows = [torch.empty(len(layer.feature), self.transcoders.d_model, **place) for layer in layers]

        def read(source: int) -> None:
            here = self._of_layer(source)
            if not len(here):
                return
            slot = torch.empty(len(self.sources), dtype=torch.int64)
            unique, inverse = torch.unique(active.index[here] - self._first, return_inverse=True)
            decoder, inverse = self.transcoders.decoder_rows(source, unique).to(self._device), inverse.to(self._device)
            for number, layer in enumerate(self.transcoders.target_layers(source)):
                block = decoder[:, number].to(self._dtype).index_select(0, inverse)
                block *= active.value[here].to(block)[:, None]
                slot[layers[layer].feature] = torch.arange(len(layers[layer].feature))
                rows[layer][slot[here].to(self._device)] = block

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
    workers: int = 1,
) -> tuple[DecoderRows, Tensor]:
    """Read the decoder rows once, and what the features reconstruct with them, (L, P, D), at the output hook.

    Each file is read for the unique active features only. attention: of its dictionary, which is `transcoders`.
    """
    files = DecoderRows(sources, transcoders, network, chunk_bytes, attention=attention)
    kept = files.read_all(workers) if keep else []
    shape, parts = (transcoders.n_layers, sources.n_pos, transcoders.d_model), network.parts
    reconstruction = torch.zeros(shape, dtype=parts.compute_dtype, device=parts.device)
    for layer, layer_sources in enumerate(files.written):
        for first, last in [(0, sources.n_pos)] if kept else files.chunks(layer, sources.n_pos):
            at_hook = kept[layer] if kept else files.at_hook(layer, first, last)
            for position in range(first, last):
                start, stop = (layer_sources.ptr[p] - layer_sources.ptr[first] for p in (position, position + 1))
                reconstruction[layer, position] = at_hook[start:stop].sum(0)
        if kept:
            kept[layer] = files.into_residual(layer, kept[layer], 0, sources.n_pos)
    return DecoderRows(sources, transcoders, network, chunk_bytes, kept, attention), reconstruction
