"""Frozen attention of one layer, head by head, forwards and backwards, among some positions of a prompt (README.md §2).

A head is values -> mixed -> joined; its adjoint reads -> unmixed -> gathered. What multiplies whole rows or columns of the
pattern (1/sigma of the norms) is in the pattern, gains and multipliers are in the projections.

Letters: N fields, P positions, D d_model, H heads, K key/value heads, G = H / K heads of a group, d d_head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.kernels.attend_back import Scores
from circuit_tracer.models.frozen import FrozenLayer
from circuit_tracer.models.mixing import NO_SCALES, Scales

QUERIES_A_TILE = 256


@dataclass(frozen=True)
class HeadMaps:
    """The heads of one layer. pattern: (H, P, P), rows = queries, or what it is made from."""

    pattern: Tensor | Scores
    output_DO: Tensor
    value_VD: Tensor
    n_kv: int
    scales: Scales = NO_SCALES

    @classmethod
    def of(cls, layer: FrozenLayer, start: int, stop: int, dtype: torch.dtype) -> HeadMaps:
        """Among positions start .. stop - 1, which become 0, 1, ...; UnsupportedModelError for what has no heads."""
        mixing = layer.mixing
        if mixing.taps_VJ is not None or layer.parts.multiplier != 1:
            what = (
                "a convolution in front of its heads" if layer.parts.multiplier == 1 else "a factor of the whole stream"
            )
            raise UnsupportedModelError(
                f"a layer of this model has {what} ({type(layer.parts.module).__name__}); what runs through it can be traced, "
                "but not be split by attention head"
            )
        output, value, before, after = layer.projections(dtype)
        before, after = (scale if scale is None else scale[start:stop] for scale in (before, after))
        scales = mixing.scales.at(slice(start, stop))
        if isinstance(mixing.pattern, Scores):
            return cls(mixing.pattern.between(start, stop).scaled(after, before), output, value, mixing.n_kv, scales)
        pattern = cast(Tensor, mixing.pattern)[:, start:stop, start:stop]  # of one prompt
        pattern = pattern if before is None else pattern * before
        pattern = pattern if after is None else pattern * after[:, None]
        return cls(pattern, output, value, mixing.n_kv, scales)

    @cached_property
    def n_heads(self) -> int:
        """H."""
        return self.pattern.n_heads if isinstance(self.pattern, Scores) else int(self.pattern.shape[0])

    @property
    def groups(self) -> int:
        """G."""
        return self.n_heads // self.n_kv

    # forwards

    def values(self, x_NPD: Tensor, place_n: Tensor | None = None) -> Tensor:
        """(..., K, d) values of what enters the layer, of any leading shape. place_n: the positions of vectors (n, D), which
        are otherwise all, in their order.
        """
        return _split(_times(x_NPD @ self.value_VD.T, self.scales.value, place_n), -1, self.n_kv)

    def mixed(self, values_NPKd: Tensor) -> Tensor:
        """(N, P, H, d): what each head has taken from the positions that it looks at."""
        n, n_pos, _, d_head = values_NPKd.shape
        out = values_NPKd.new_zeros(n, n_pos, self.n_heads, d_head)
        for kv, queries, keys, tile in self._tiles(n_pos):
            flat = values_NPKd[:, keys, kv].transpose(0, 1).flatten(1)  # (keys, N d)
            found = _split(torch.matmul(tile, flat), -1, n)  # (G, queries, N, d)
            out[:, queries, self._heads(kv)] = found.permute(2, 1, 0, 3)
        return out

    def joined(self, mixed_NPHd: Tensor) -> Tensor:
        """(N, P, D): what the heads write into the stream, together."""
        joined: Tensor = _times(mixed_NPHd.flatten(-2), self.scales.output) @ self.output_DO.T
        return joined

    def of_head(self, head: int, x_PD: Tensor) -> Tensor:
        """(P, D): what one head writes when x enters the layer."""
        values = _times(x_PD @ _split(self.value_VD, 0, self.n_kv)[head // self.groups].T, self._value_scale(head))
        mixed = _times(self._pattern_of(head) @ values, self._output_scale(head))
        written: Tensor = mixed @ _split(self.output_DO, 1, self.n_heads)[:, head].T
        return written

    # backwards

    def reads(self, g_NPD: Tensor, place_n: Tensor | None = None) -> Tensor:
        """(..., H, d): what a gradient of the heads' outputs reads of each head's mixed values, of any leading shape.
        place_n: as of `values`.
        """
        return _split(_times(g_NPD @ self.output_DO, self.scales.output, place_n), -1, self.n_heads)

    def unmixed(self, reads_NPHd: Tensor) -> Tensor:
        """(N, P, H, d): the adjoint of `mixed`, heads of a group apart."""
        n, n_pos = reads_NPHd.shape[:2]
        out = torch.zeros_like(reads_NPHd)
        for kv, queries, keys, tile in self._tiles(n_pos):
            flat = reads_NPHd[:, queries, self._heads(kv)].permute(2, 1, 0, 3).flatten(2)  # (G, queries, N d)
            found = _split(torch.matmul(tile.transpose(1, 2), flat), -1, n)  # (G, keys, N, d)
            out[:, keys, self._heads(kv)] += found.permute(2, 1, 0, 3)
        return out

    def gathered(self, unmixed_NPHd: Tensor) -> Tensor:
        """(N, P, D): the gradient of what enters the layer, over all heads."""
        values = _split(unmixed_NPHd, 2, self.n_kv).sum(3).flatten(-2)
        gathered: Tensor = _times(values, self.scales.value) @ self.value_VD
        return gathered

    def back_of_head(self, head: int, g_PD: Tensor) -> Tensor:
        """(P, D): the adjoint of `of_head`."""
        reads = _times(g_PD @ _split(self.output_DO, 1, self.n_heads)[:, head], self._output_scale(head))
        values = _times(self._pattern_of(head).T @ reads, self._value_scale(head))
        read: Tensor = values @ _split(self.value_VD, 0, self.n_kv)[head // self.groups]
        return read

    def score(self, unmixed_NPHd: Tensor, values_BPKd: Tensor) -> Tensor:
        """(N, B, H): what N gradients, unmixed, read of B fields through each head."""
        n_rows, width = unmixed_NPHd.shape[0], values_BPKd.shape[1] * values_BPKd.shape[3]
        read = _split(unmixed_NPHd, 2, self.n_kv).permute(2, 0, 3, 1, 4).reshape(self.n_kv, -1, width)
        given = values_BPKd.permute(2, 1, 3, 0).reshape(self.n_kv, width, -1)
        return _split(torch.bmm(read, given), 1, n_rows).permute(1, 3, 0, 2).flatten(2)

    def _value_scale(self, head: int) -> Tensor | None:
        scale = self.scales.value
        return None if scale is None else _split(scale, 1, self.n_kv)[:, head // self.groups]

    def _output_scale(self, head: int) -> Tensor | None:
        scale = self.scales.output
        return None if scale is None else _split(scale, 1, self.n_heads)[:, head]

    def _heads(self, kv: int) -> slice:
        return slice(kv * self.groups, (kv + 1) * self.groups)

    def _tiles(self, n_pos: int) -> Iterator[tuple[int, slice, slice, Tensor]]:
        """(key/value head, queries, keys, pattern of the group (G, queries, keys)), together all that is not zero."""
        for kv in range(self.n_kv):
            for start in range(0, n_pos, QUERIES_A_TILE):
                queries = slice(start, min(n_pos, start + QUERIES_A_TILE))
                if isinstance(self.pattern, Scores):
                    keys = slice(*self.pattern.keys_of(queries.start, queries.stop))
                    yield kv, queries, keys, self.pattern.tile(kv, queries, keys)
                else:
                    keys = slice(0, queries.stop)  # nothing looks right
                    yield kv, queries, keys, self.pattern[self._heads(kv), queries, keys]

    def _pattern_of(self, head: int) -> Tensor:
        """(P, P)."""
        if not isinstance(self.pattern, Scores):
            return self.pattern[head]
        every = slice(0, self.pattern.n_pos)
        return self.pattern.of_head(head).tile(0, every, every)[0]


def _times(rows_NPX: Tensor, scale_PX: Tensor | None, place_n: Tensor | None = None) -> Tensor:
    if scale_PX is None:
        return rows_NPX
    return rows_NPX * (scale_PX if place_n is None else scale_PX[place_n])


def _split(tensor: Tensor, dim: int, parts: int) -> Tensor:
    """One dimension as (parts, the rest)."""
    split: Tensor = tensor.unflatten(dim, (parts, -1))
    return split
