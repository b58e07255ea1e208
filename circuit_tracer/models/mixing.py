"""What frozen attention does between its two projections: values of each position become outputs of heads, and back.

    out[q] = output[q] * sum over keys p <= q of pattern[h, q, p] * (value[p] * (taps over positions)(first * values)[p])

Most attention is the pattern alone. Gates and norms of what the heads give are output scales, norms of each head's values are
value scales; linear attention (models/delta_net.py) has both, and a short convolution over positions in front.

Letters: P positions, T rows in flight, H heads, K key/value heads, d d_head, O = H * d, V = K * d, J taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from circuit_tracer.kernels.attend_back import (
    Scores,
    attend_back_,
    attend_back_recomputed_,
    attend_back_several_,
    mix_forward,
)
from circuit_tracer.models.side_patterns import SidePatterns


@dataclass(frozen=True)
class Scales:
    """What multiplies values (P, V), in front of a convolution (first) or behind it, and what the heads give (P, O), number by
    number; None is one.
    """

    first: Tensor | None = None
    value: Tensor | None = None
    output: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Scales:
        """All of them, changed."""
        return Scales(*(None if one is None else change(one) for one in (self.first, self.value, self.output)))

    def at(self, which: Tensor | slice) -> Scales:
        """Those of some positions."""
        return self.each(lambda scale: scale[which])


NO_SCALES = Scales()


class Held(NamedTuple):
    """What is held still of a layer: its pattern (B, H, P, P), or (H, P, P), and scales (B, P, ...), or (P, ...)."""

    pattern: Tensor
    scales: Scales


def convolved(values_BPV: Tensor, taps_VJ: Tensor) -> Tensor:
    """Each number with those of the J - 1 positions before it: out[p] = sum over j of taps[j] * values[p - (J - 1) + j]."""
    n_taps, n_pos = taps_VJ.shape[1], values_BPV.shape[-2]
    padded = pad(values_BPV, (0, 0, n_taps - 1, 0))
    out = torch.zeros_like(values_BPV)
    for tap in range(n_taps):
        out = out + padded[..., tap : tap + n_pos, :] * taps_VJ[:, tap]
    return out


def convolved_back(values_BPV: Tensor, taps_VJ: Tensor) -> Tensor:
    """The adjoint."""
    return convolved(values_BPV.flip(-2), taps_VJ).flip(-2)


@dataclass(frozen=True)
class Mixing:
    """One layer's, of one prompt or of several side by side. Everything in the compute dtype."""

    # (H, P, P), rows = queries; or what it is made from, tile by tile; or those of several prompts side by side
    pattern: Tensor | Scores | SidePatterns
    n_kv: int
    scales: Scales = NO_SCALES
    taps_VJ: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether it is the pattern alone."""
        return (
            all(each is None for each in (self.scales.first, self.scales.value, self.scales.output))
            and self.taps_VJ is None
        )

    def forward(self, values_PV: Tensor) -> Tensor:
        """(P, V) -> (P, O)."""
        if self.scales.first is not None:
            values_PV = values_PV * self.scales.first
        if self.taps_VJ is not None:
            values_PV = self._apart(values_PV, self.taps_VJ)
        if self.scales.value is not None:
            values_PV = values_PV * self.scales.value
        mixed = self._mixed(values_PV.unflatten(-1, (self.n_kv, -1)))
        return mixed if self.scales.output is None else mixed * self.scales.output

    def back(self, z_TPO: Tensor, before: Tensor | None, after: Tensor | None, prompt_T: Tensor | None) -> Tensor:
        """The adjoint, (T, P, O) -> (T, P, V). before, after: (P,), what else multiplies values and outputs of a position.

        The kernels go from the stream to the stream; here both of their projections are the identity, of O numbers that are
        read and V that are written, side by side.
        """
        width = z_TPO.shape[2]
        n_values = width * self.n_kv // self._n_heads
        both = z_TPO.new_zeros(*z_TPO.shape[:2], width + n_values)
        both[..., :width] = self._times(self._times(z_TPO, after, prompt_T), self.scales.output, prompt_T)
        every = torch.eye(width + n_values, dtype=z_TPO.dtype, device=z_TPO.device)
        self.attend_back_(both, every[:, :width], every[width:], None, None, prompt_T)
        values = self._times(both[..., width:], self.scales.value, prompt_T)
        values = values if self.taps_VJ is None else convolved_back(values, self.taps_VJ)
        return self._times(self._times(values, self.scales.first, prompt_T), before, prompt_T)

    def attend_back_(
        self,
        g_TPD: Tensor,
        output_DO: Tensor,
        value_VD: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        prompt_T: Tensor | None,
    ) -> None:
        """Adjoint of the pattern alone between two projections, added to rows of gradients in place."""
        n_pos = g_TPD.shape[1]
        if isinstance(self.pattern, SidePatterns):
            patterns = self.pattern.scaled(after, before)[:, :, :n_pos, :n_pos]
            attend_back_several_(g_TPD, patterns, cast(Tensor, prompt_T), output_DO, value_VD)
            return
        if isinstance(self.pattern, Scores):
            attend_back_recomputed_(g_TPD, self.pattern.scaled(after, before), output_DO, value_VD)
            return
        pattern = self.pattern[:, :n_pos, :n_pos]
        pattern = pattern if before is None else pattern * before[:n_pos]
        pattern = pattern if after is None else pattern * after[:n_pos, None]
        attend_back_(g_TPD, pattern, output_DO, value_VD)

    @property
    def _n_heads(self) -> int:
        if isinstance(self.pattern, Scores):
            return self.pattern.n_heads
        return int((self.pattern.pattern_BHPP if isinstance(self.pattern, SidePatterns) else self.pattern).shape[-3])

    def _mixed(self, values_PKd: Tensor) -> Tensor:
        """Values of each key position, mixed by the pattern and joined over heads: (P, H * d)."""
        if isinstance(self.pattern, Scores):
            return mix_forward(values_PKd, self.pattern)
        if isinstance(self.pattern, SidePatterns):
            return self.pattern.mix(values_PKd)
        heads = values_PKd.repeat_interleave(self.pattern.shape[0] // self.n_kv, dim=1)
        return torch.einsum("hqk,khd->qhd", self.pattern, heads).flatten(1)

    def _apart(self, values_PV: Tensor, taps_VJ: Tensor) -> Tensor:
        """Convolved, those of several prompts each by itself."""
        if not isinstance(self.pattern, SidePatterns):
            return convolved(values_PV, taps_VJ)
        return convolved(self.pattern.padded(values_PV), taps_VJ).flatten(0, 1)[self.pattern.row_n]

    def _times(self, rows_TPX: Tensor, scale: Tensor | None, prompt_T: Tensor | None) -> Tensor:
        """Rows times what multiplies their positions, those of several prompts each by its own."""
        if scale is None:
            return rows_TPX
        scale = scale[:, None] if scale.ndim == 1 else scale
        if isinstance(self.pattern, SidePatterns):
            return rows_TPX * self.pattern.padded(scale)[prompt_T, : rows_TPX.shape[1]]
        return rows_TPX * scale[: rows_TPX.shape[1]]
