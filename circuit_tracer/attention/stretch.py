"""Some neighbouring positions of a frozen prompt: all that lies between where an edge starts and where it ends.

The frozen network never looks right, so nothing outside of them takes part. Fields and gradients (N, P, D) have one row for
each of the positions, `start` first.

Letters: N fields, P positions of the stretch, D d_model, R rows, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.attention.head_maps import HeadMaps
from circuit_tracer.attention.stream_terms import StreamTerms
from circuit_tracer.models.frozen import FrozenNetwork

SkipAt = Callable[[int, Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class Stretch:
    """Positions start .. stop - 1. skips: L x (D, D) skip connections of the transcoder, or None."""

    network: FrozenNetwork
    skips: list[Tensor | None]
    start: int
    stop: int

    @property
    def n_pos(self) -> int:
        """P."""
        return self.stop - self.start

    @property
    def dtype(self) -> torch.dtype:
        """Of all that is computed."""
        return self.network.parts.compute_dtype

    def zeros(self, n: int) -> Tensor:
        """n fields of nothing."""
        config = self.network.parts.config
        return torch.zeros(n, self.n_pos, config.d_model, dtype=self.dtype, device=self.network.parts.device)

    def heads(self, layer: int) -> HeadMaps:
        """Attention of a layer."""
        return HeadMaps.of(self.network.layers[layer], self.start, self.stop, self.dtype)

    def skipped(self, layer: int, mid_NPD: Tensor) -> Tensor | None:
        """What the transcoder's skip connection writes when its input reads `mid`; None if there is none."""
        return self._at_all(layer, mid_NPD, self.skip_at)

    def skipped_back(self, layer: int, g_NPD: Tensor) -> Tensor | None:
        """The adjoint of `skipped`."""
        return self._at_all(layer, g_NPD, self.skip_back_at)

    def skip_at(self, layer: int, r_nD: Tensor, position_n: Tensor) -> Tensor | None:
        """`skipped` for vectors (n, D) at positions (n,) of the prompt."""
        if (skip := self.skips[layer]) is None:
            return None
        return self.network.write_at(layer, self.network.read_at(layer, r_nD, position_n) @ skip, position_n)

    def skip_back_at(self, layer: int, g_nD: Tensor, position_n: Tensor) -> Tensor | None:
        """The adjoint of `skip_at`."""
        if (skip := self.skips[layer]) is None:
            return None
        at_output = self.network.write_adjoint(layer, g_nD, position_n)
        return self.network.read_adjoint(layer, at_output @ skip.T, position_n)

    def add_(self, field_NPD: Tensor, terms: StreamTerms, place: int) -> None:
        """Add to field r what row r of the terms has at a place."""
        here = terms.place == place
        if bool(here.any()):
            at = terms.row[here], terms.position[here] - self.start
            field_NPD.index_put_(at, terms.vector[here], accumulate=True)

    def _at_all(self, layer: int, field_NPD: Tensor, at: SkipAt) -> Tensor | None:
        if self.skips[layer] is None or not len(field_NPD):
            return None
        position = torch.arange(self.start, self.stop, device=field_NPD.device).repeat(len(field_NPD))
        found = at(layer, field_NPD.flatten(0, 1), position)
        return None if found is None else found.view_as(field_NPD)
