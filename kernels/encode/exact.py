"""Pre-activations of single entries, which depend on their token and feature alone (README.md, "What decides").

Letters: B tokens, D width, F features, n entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.kernels.csr import csr
from circuit_tracer.kernels.sparse_activations import pointers

PIECE_BYTES = 2**18  # of products in float64 in hand
TINY = 2.0**-110  # more than what underflows in a float32 sum
OWN_ROUNDING = 2.0**-22  # of a number, more than its rounding to float32


def norms(rows: Tensor) -> Tensor:
    """Norms of rows, float32."""
    norm: Tensor = torch.linalg.vector_norm(rows.detach(), dim=1, dtype=torch.float32)
    return norm


def places(mask: Tensor) -> Tensor:
    """(n,) int64: where a mask holds, in the flattened array, ascending.

    numpy's search steps over words in which it holds nowhere; torch's takes three times as long.
    """
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def bounding(norm: Tensor) -> Tensor:
    """Norms to multiply for a bound; NaN, within which nothing is, where sums lose nothing (zero) or anything (infinite)."""
    return norm * norm / norm


@dataclass(frozen=True)
class Cuts:
    """Of each feature: its cut, the norm of its weights (`bounding`), and what may be lost besides their product with x."""

    cut_F: Tensor
    norm_F: Tensor
    besides_F: Tensor

    @classmethod
    def of(cls, cut_F: Tensor, bias_F: Tensor, norm_F: Tensor, width: int) -> Cuts:
        """All float32; width: D."""
        besides_F = lost(width) * bias_F.float().abs() + OWN_ROUNDING * cut_F.abs() + TINY
        return cls(cut_F, bounding(norm_F), besides_F)

    def of_entries(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three of each entry's feature, (n,) each."""
        cut_n, norm_n, besides_n = (each.index_select(0, feature) for each in (self.cut_F, self.norm_F, self.besides_F))
        return cut_n, norm_n, besides_n


def lost(width: int) -> float:
    """How much of |x| |w| a float32 sum of so many products and a bias may lose, in any order, and a little more."""
    return 1.02 * (width + 8) * 2.0**-24


@dataclass(frozen=True)
class Rows:
    """Inputs and weights whose entries are asked for: x_BD float32, weight_FD of any floating dtype, bias_F."""

    x_BD: Tensor
    weight_FD: Tensor
    bias_F: Tensor
    norm_F: Tensor  # of the weights

    @cached_property
    def norm_B(self) -> Tensor:
        """Of the inputs."""
        return norms(self.x_BD)

    @cached_property
    def largest(self) -> float:
        """The largest norm of an input; NaN if one is."""
        return float(self.norm_B.max())

    @cached_property
    def losing_B(self) -> Tensor:
        """What, times the norm of weights, a product with them may lose."""
        return lost(self.x_BD.shape[1]) * bounding(self.norm_B)

    def settled(self, row: Tensor, feature: Tensor, cuts: Cuts, value: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(value, kept) of entries: values (n,) of which is true what is true of exact ones, rounded to float32: that they are
        above their cuts (those kept), at them, or below.

        value: pre-activations in float32; None: they are computed, of entries sorted by feature, then row.
        """
        if value is None:
            value = self.dots(row, feature) + self.bias_F.index_select(0, feature).float()
        cut_n, norm_n, besides_n = cuts.of_entries(feature)
        near = places((value - cut_n).abs_() <= norm_n * self.losing_B.index_select(0, row) + besides_n)
        if near.shape[0]:
            value[near] = self.rounded(row[near], feature[near])
        return value, places(value > cut_n)

    def dots(self, row: Tensor, feature: Tensor) -> Tensor:
        """x · w (n,) in float32, of entries sorted by feature, then row: by the same sums wherever an entry stands."""
        shape = (self.weight_FD.shape[0], self.x_BD.shape[0])
        wanted = csr(pointers(feature, shape[0]), row, self.x_BD.new_zeros(row.shape[0]), shape)
        made: Tensor = torch.sparse.sampled_addmm(wanted, self.weight_FD.float(), self.x_BD.T).values()
        return made

    def rounded(self, row: Tensor, feature: Tensor) -> Tensor:
        """x · w + b (n,), summed in float64 from the first product to the last, rounded to float32.

        A running sum has one order, whatever the number of rows or threads.
        """
        piece, sums = max(1, PIECE_BYTES // (8 * self.x_BD.shape[1])), []
        for rows, features in zip(row.split(piece), feature.split(piece), strict=True):
            x_nD, weight_nD = self.x_BD.index_select(0, rows), self.weight_FD.index_select(0, features)
            sums.append((x_nD.double() * weight_nD.double()).cumsum(1)[:, -1])
        return (torch.cat(sums) + self.bias_F[feature]).float()
