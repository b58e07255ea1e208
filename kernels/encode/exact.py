"""Pre-activations of single entries, which depend on their token and feature alone (README.md, "What decides").

Letters: B tokens, D width, F features, n entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.kernels.csr import csr
from circuit_tracer.kernels.sparse_activations import pointers

PIECE_BYTES = 2**20  # of products in float64 in hand
TINY = 2.0**-110  # more than what underflows in a float32 sum
OWN_ROUNDING = 2.0**-22  # of a number, more than its rounding to float32


def norms(rows: Tensor) -> Tensor:
    """Norms of rows, float32."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    return norm


def bounding(norm: Tensor) -> Tensor:
    """Norms to multiply for a bound; NaN, within which nothing is, where sums lose nothing (zero) or anything (infinite)."""
    return norm * norm / norm


@dataclass(frozen=True)
class Cuts:
    """Of each feature: its cut, the norm of its weights (`bounding`), and what may be lost besides their product with x."""

    table_F3: Tensor

    @classmethod
    def of(cls, cut_F: Tensor, bias_F: Tensor, norm_F: Tensor, width: int) -> Cuts:
        """All float32; width: D."""
        besides_F = lost(width) * bias_F.float().abs() + OWN_ROUNDING * cut_F.abs() + TINY
        return cls(torch.stack([cut_F, bounding(norm_F), besides_F], dim=1))


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
            value = self.dots(row, feature) + self.bias_F[feature].float()
        cut_n, norm_n, besides_n = cuts.table_F3[feature].unbind(1)
        near = ((value - cut_n).abs_() <= norm_n * self.losing_B[row] + besides_n).nonzero()[:, 0]
        if near.shape[0]:
            value[near] = self.rounded(row[near], feature[near])
        return value, (value > cut_n).nonzero()[:, 0]

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
        piece = max(1, PIECE_BYTES // (8 * self.x_BD.shape[1]))
        sums = [
            (self.x_BD[rows].double() * self.weight_FD[features]).cumsum(1)[:, -1]
            for rows, features in zip(row.split(piece), feature.split(piece), strict=True)
        ]
        return (torch.cat(sums) + self.bias_F[feature]).float()
